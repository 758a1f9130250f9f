"""The house: imports run one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sppbench

SOURCE = Path(sppbench.__file__).parent

# Who may import what of sppbench. The parts meet in train and in assembly, which only train uses.
ALLOWED = {
    "models": {"models"},
    "data": {"data", "files"},
    "spp": {"spp"},
    "callbacks": {"callbacks"},
    "classifier": set(),
    "sync_batchnorm": set(),
    "loggers": {"files"},
    "files": set(),
    "allocator": set(),
    "command_line": set(),
    "output": set(),
    "results": {"files"},
    "run_directory": {"files", "results"},
    "sweep": {"results", "run_directory"},
    "table": {
        "command_line",
        "table",
        "files",
        "output",
        "results",
        "run_directory",
        "spp",
    },  # of spp: the look of the figures
    "evidence": {"command_line", "evidence", "table", "spp"},
    "claims": {"command_line", "claims", "evidence", "table", "files"},
    "figures": {"command_line", "figures", "evidence", "table", "spp", "files", "output"},
    "dashboard": {"command_line"},
    # Of spp: the look of curves.
    "report": {"report", "command_line", "evidence", "claims", "figures", "table", "files", "output", "spp"},
    # Of assembly: a run's data and net, as it began with them.
    "inspection": {"command_line", "assembly", "files", "results"},
    "__init__": set(),
}
HEAVY = {"torch", "torchvision", "lightning", "torchmetrics", "wandb", "matplotlib", "numpy", "pyarrow", "sklearn"}
COMMANDS = ("claims", "dashboard", "evidence", "figures", "inspection", "report", "table")


def _part(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


def _imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_one_way() -> None:
    files = list(SOURCE.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        part = _part(file)
        if part in ("train", "assembly"):
            continue
        used = {name.split(".")[1] for name in _imports(ast.parse(file.read_text())) if name.startswith("sppbench.")}
        assert used <= ALLOWED[part], f"{file.relative_to(SOURCE)} imports {used - ALLOWED[part]}"


def test_what_starts_without_torch_imports_nothing_heavy_at_its_top() -> None:
    names = ("train", "assembly", "sweep", "results", "run_directory", "files", "__init__")
    for name in (*names, "../hydra_plugins/sppbench_sweeper"):
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {module.split(".")[0] for module in _imports(top)} & HEAVY, name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_answers_before_it_imports_anything_heavy(command: str) -> None:
    """At their top, the command and all that it imports there of sppbench need the standard library alone."""
    folder = SOURCE / command
    todo = [folder / "__init__.py", folder / "__main__.py"] if folder.is_dir() else [SOURCE / f"{command}.py"]
    reached: set[Path] = set()
    while todo:
        file = todo.pop()
        reached.add(file)
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for name in _imports(ast.Module(list(top), [])):
            if name.startswith("sppbench."):
                todo += {found for found in _files_of(name) if found not in reached}
            else:
                assert name.split(".")[0] in sys.stdlib_module_names, f"{file.relative_to(SOURCE)} imports {name}"


def _files_of(name: str) -> Iterator[Path]:
    """The files that importing a dotted name runs: packages on the way, and the module; its last part may be a name."""
    place = SOURCE
    for part in name.split(".")[1:]:
        place = place / part
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.exists():
                yield file
