"""The house: imports run one way, from the rooms further up in ``ROOMS`` to those further down, and never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sppbench
from sppbench.extras import PACKAGES

SOURCE = Path(sppbench.__file__).parent

# By room, a folder or a file: the other rooms whose names it may import. A room comes after all that it uses.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "aliases": set(),
    "files": set(),
    "checks": set(),
    "extras": {"errors"},
    "stored_files": {"errors"},
    "interruption": set(),
    "streams": set(),
    "wandb_modes": set(),
    "models": {"checks", "extras"},
    "data": {"errors", "extras", "files"},
    "spp.names": set(),
    "spp.places": set(),
    "spp.schedule": {"checks"},
    "spp.sums": set(),
    "spp.probe": {"checks", "spp.names", "spp.places", "spp.schedule", "spp.sums"},
    "spp.theory": {"spp.names", "spp.probe"},
    "spp.history": {"files", "spp.names", "spp.places", "spp.schedule"},
    "spp.diagnosis": {"spp.names", "spp.probe", "spp.history"},
    "spp.comparison": {"checks", "spp.names", "spp.history"},
    "spp.plots": {"checks", "spp.names", "spp.theory", "spp.history", "spp.comparison"},
    "spp.loggers": set(),
    "spp.run_figures": {"files", "spp.names", "spp.history", "spp.plots", "spp.loggers"},
    "spp.settings": {"checks", "spp.names", "spp.probe", "spp.plots", "spp.schedule"},
    "spp.recording": {
        *("spp.places", "spp.probe", "spp.history", "spp.diagnosis", "spp.loggers", "spp.run_figures", "spp.settings"),
    },
    "spp.recorder": {"checks", "spp.probe", "spp.loggers", "spp.recording", "spp.settings"},
    "spp.integrations": {"checks", "extras", "spp.probe", "spp.loggers", "spp.recording", "spp.settings"},
    "spp.callback": {
        *("checks", "extras", "spp.names", "spp.probe", "spp.plots", "spp.recording", "spp.schedule", "spp.settings"),
    },
    "run": {"errors", "files", "stored_files", "wandb_modes", "data"},
    "evidence": {"errors", "files", "stored_files", "spp.names", "spp.history", "run"},
    "study.common": {"errors", "files", "stored_files", "wandb_modes", "evidence"},
    "study.table": {"errors", "files", "stored_files", "evidence", "study.common", "spp.plots"},
    "study.figures": {"errors", "files", "stored_files", "evidence", "study.common", "spp.names", "spp.plots"},
    "study.claims": {"errors", "files", "stored_files", "evidence", "study.common", "spp.names"},
    "study.report": {
        *("errors", "files", "evidence", "spp.history", "spp.diagnosis", "spp.plots"),
        *("study.common", "study.table", "study.figures", "study.claims"),
    },
    "look": {
        *("errors", "extras", "files", "run", "spp.names", "spp.probe", "spp.theory", "spp.diagnosis", "spp.plots"),
    },
    "dashboard": {"errors", "spp.names"},
    "comparison": {"errors", "files", "spp.names", "spp.history", "spp.comparison", "spp.plots", "study.common"},
    "train": {"errors", "extras", "files", "interruption", "streams", "run"},
    "__main__": {
        *("errors", "extras", "interruption", "streams", "train", "evidence", "look", "dashboard", "comparison"),
        *("study.common", "study.table", "study.figures", "study.claims", "study.report"),
    },
    "__init__": {"aliases"},
}
HEAVY = {"torch", "torchvision", "lightning", "torchmetrics", "wandb", "matplotlib", "numpy", "pyarrow", "sklearn"}


def room_of(name: str) -> str | None:
    """The room that a dotted name, without ``sppbench.``, is in; None for what only holds rooms."""
    return next((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), None)


def imports(tree: ast.AST) -> set[str]:
    """Full dotted names of all that a file imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_at_the_top(tree: ast.Module) -> set[str]:
    """As `imports`, of the statements at the top of the file alone: neither in a function nor in a condition."""
    return imports(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))


def test_rooms_are_in_the_order_of_their_imports() -> None:
    above: set[str] = set()
    for room, used in ROOMS.items():
        assert used <= above, f"{room} uses {used - above} further down"
        above.add(room)


def test_the_library_stands_alone() -> None:
    outside = {used for room, uses in ROOMS.items() if room.startswith("spp.") for used in uses if "spp." not in used}
    assert outside == {"checks", "extras", "files"}


def test_only_those_who_know_a_loop_import_its_library() -> None:
    loops = {"lightning": "callback", "transformers": "integrations", "accelerate": "integrations"}
    for file in (SOURCE / "spp").rglob("*.py"):
        place = file.relative_to(SOURCE / "spp").with_suffix("").parts[0]
        used = {name.partition(".")[0] for name in imports(ast.parse(file.read_text()))} & loops.keys()
        assert all(loops[library] == place for library in used), f"{file} imports {used}"


def test_the_probe_and_its_commands_import_no_extra() -> None:
    """Not at the top of their files, nor of those that these import there. The callbacks try to."""
    extras = {name for names in PACKAGES.values() for name in names}
    todo = [SOURCE / "__main__.py"]
    todo += [file for room in ("spp", "look", "comparison") for file in (SOURCE / room).rglob("*.py")]
    files = dict(_files())
    seen: set[Path] = set()
    while todo:
        if (file := todo.pop()) in seen:
            continue
        seen.add(file)
        found = imports_at_the_top(ast.parse(file.read_text()))
        assert not {name.partition(".")[0] for name in found} & extras, file
        todo += [files[used] for name in found for used in _files_among(name, files)]
    assert SOURCE / "run" / "error_text.py" in seen


def test_imports_run_one_way() -> None:
    files = list(SOURCE.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        place = file.relative_to(SOURCE).with_suffix("")
        room = room_of(".".join(place.parts))
        if room is None:
            assert file.name == "__init__.py", f"{place} is in no room"
        found = {
            name.removeprefix("sppbench.")
            for name in imports(ast.parse(file.read_text()))
            if name.startswith("sppbench.")
        }
        used = {room_of(name) for name in found} - {room}
        assert None not in used, f"{place} imports from {found}, in which there is something of no room"
        assert used <= (ROOMS[room] if room else set()), f"{place} imports from {used}"


def test_a_name_of_a_file_stands_for_one_thing() -> None:
    """Each room of the study has its formats: what is said there, as text. All other names are unique."""
    names = [file.name for file in SOURCE.rglob("*.py") if file.name not in ("__init__.py", "formats.py")]
    assert sorted(names) == sorted(set(names))


def test_no_files_import_each_other() -> None:
    """Not even inside of a room."""
    files = dict(_files())
    uses = {
        name: {found for one in imports(ast.parse(file.read_text())) for found in _files_among(one, files)} - {name}
        for name, file in files.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for used in sorted(uses[name]):
                visit(used, (*way, name))
            done.add(name)

    for name in files:
        visit(name, ())


def _files() -> Iterator[tuple[str, Path]]:
    """The dotted name of each file, and the file."""
    for file in SOURCE.rglob("*.py"):
        yield ".".join(("sppbench", *file.relative_to(SOURCE).with_suffix("").parts)), file


def _files_among(name: str, files: dict[str, Path]) -> Iterator[str]:
    """The file that a dotted name stands for or is in."""
    for found in (name, name.rpartition(".")[0]):
        if found in files:
            yield found
            return


@pytest.mark.parametrize(
    "name",
    [
        *("train", "run/assembly", "run/sweep", "run/results", "run/run_directory", "run/checkpoint", "run/validation"),
        *("files", "spp/names", "stored_files", "interruption", "streams", "wandb_modes", "__init__", "__main__"),
        "../hydra_plugins/sppbench_sweeper",
    ],
)
def test_what_starts_without_torch_imports_nothing_heavy_at_its_top(name: str) -> None:
    tree = ast.parse((SOURCE / f"{name}.py").read_text())
    assert not {module.split(".")[0] for module in imports_at_the_top(tree)} & HEAVY


def test_the_command_answers_before_it_imports_anything_heavy() -> None:
    script = "import sys; from sppbench.__main__ import main\ntry: main(['table', '--help'])\nexcept SystemExit: pass\n"
    script += "print('modules', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "sppbench" in loaded
    assert not loaded & (HEAVY | {"hydra", "omegaconf", "yaml", "pandas", "scipy", "jinja2", "plotly"})
