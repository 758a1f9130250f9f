"""Where runs are: under a directory at any depth, in folders of any name; and how their place is read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sppbench.stored_files import read_text

# What a run's configuration begins lines with, and what its result holds: other programs have files of these names.
_RUN_KEYS = tuple(re.compile(rf"^{key}:", re.MULTILINE) for key in ("seed", "name", "output_dir", "model", "optimizer"))
_RESULT_KEYS = ('"config_hash"', '"status"', '"wall_seconds"')
# W&B stores the configuration of a run once more, in one of these in its folder ``wandb``.
_COPIES = re.compile(r"(offline-)?run-.*")


def find_runs(directory: Path) -> list[Path]:
    """The directories of all runs in a directory, itself included, sorted.

    A symbolic link to a run is one; a link to a folder with runs is not followed.

    Example:
        >>> find_runs(Path("results/figures"))[0]
        PosixPath('results/figures/efficientnet_bn/lr=0.001/seed=868')
    """
    found = [directory] if is_run(directory) else []
    for parent, folders, _ in os.walk(directory):
        folders[:] = [name for name in folders if _may_hold_runs(Path(parent), name)]
        found += [path for name in folders if is_run(path := Path(parent, name))]
    return sorted(found)


def _may_hold_runs(parent: Path, name: str) -> bool:
    copy = parent.name == "wandb" and _COPIES.fullmatch(name)
    return not name.startswith(".") and not name.endswith(".parquet") and not copy


def is_run(path: Path) -> bool:
    """Whether a directory holds a run, whatever became of it.

    In a folder ``seed=...`` any config.yaml or result.json is a run's, be it damaged; elsewhere it must look like one.
    """
    named = path.name.startswith("seed=")
    config, result = path / "config.yaml", path / "result.json"
    if config.exists():
        return named or all(key.search(_text(config)) for key in _RUN_KEYS)
    return result.exists() and (named or all(key in _text(result) for key in _RESULT_KEYS))


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, ValueError):
        return ""


def place_of(path: Path, name: str) -> tuple[str, Path]:
    """The sweep that a run is from, and its place below that: ``<name>/<key>=<value>/...``.

    Args:
        path: Of the run; a symbolic link keeps the place at which it stands.
        name: What its configuration calls it; it may be several folders.

    Example:
        >>> place_of(Path("/outputs/table1/ffnn/lr=0.001/seed=868"), "ffnn")
        ('table1', PosixPath('ffnn/lr=0.001/seed=868'))
        >>> place_of(Path("/outputs/demo"), "ffnn")
        ('outputs', PosixPath('demo'))
    """
    parts = Path(os.path.abspath(path)).parts  # noqa: PTH100 - without "..", and not where links lead
    own = tuple(name.split("/"))
    end = len(parts)
    while end > 1 and parts[end - len(own) : end] != own and "=" in parts[end - 1]:
        end -= 1
    begin = max(end - len(own) if parts[end - len(own) : end] == own else end - 1, 1)
    return Path(*parts[:begin]).resolve().name, Path(*parts[begin:])
