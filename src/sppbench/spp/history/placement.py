"""Where the history of a run goes: never over that of another run."""

from __future__ import annotations

import logging
import re
import shutil
from itertools import count
from pathlib import Path

from sppbench.spp.history.parts import Origin, is_free, origin_of

log = logging.getLogger(__name__)

_TABLES = ("spp", "batchnorm")
_NAME = re.compile(r"(?:spp|batchnorm)(?:-(\d+))?\.parquet")


def place_history(
    directory: Path, run: Origin, *, resume: bool = False, earlier: Path | None = None
) -> tuple[Path, Path]:
    """Chooses where in a directory the two tables of a run go, and writes nothing unless there is something to copy.

    They are ``spp.parquet`` and ``batchnorm.parquet``, or ``spp-2.parquet`` and ``batchnorm-2.parquet`` and so on where
    these names are taken: by another run, or by files that are no history.

    Args:
        directory: It need not exist.
        run: The run, which must have an id.
        resume: Whether the run goes on. A history in which no run is named is then taken for its own.
        earlier: Where the run's ``spp.parquet`` was before it was resumed. If it has none in ``directory``, both tables
            are copied from there, so that its history goes on; the copied ones are left as they are.

    Example:
        >>> place_history(Path("run"), Origin(run_id="4f3a"))
        (PosixPath('run/spp.parquet'), PosixPath('run/batchnorm.parquet'))
    """
    numbers = _numbers_in(directory)
    for number in numbers:
        if all(is_free(path) or _is_of(path, run) for path in _paths(directory, number)):
            return _paths(directory, number)
    if resume:
        for number in numbers:
            if all(is_free(path) or _is_of_no_run(path) for path in _paths(directory, number)):
                return _paths(directory, number)
    number = next(number for number in count(1) if number not in numbers)
    paths = _paths(directory, number)
    if number > 1:
        log.warning(
            f"{_paths(directory, 1)[0]} belongs to another run and stays as it is: this run records in {paths[0]}"
        )
    if resume and earlier is not None and _is_of(earlier, run):
        _copy(earlier, paths)
    return paths


def _paths(directory: Path, number: int) -> tuple[Path, Path]:
    suffix = f"-{number}" if number > 1 else ""
    spp, batchnorm = (directory / f"{table}{suffix}.parquet" for table in _TABLES)
    return spp, batchnorm


def _numbers_in(directory: Path) -> list[int]:
    """The numbers of which a name is taken."""
    if not directory.is_dir():
        return []
    matches = ((_NAME.fullmatch(item.name), item) for item in directory.iterdir())
    return sorted({int(match[1] or 1) for match, item in matches if match and not is_free(item)})


def _is_of(path: Path, run: Origin) -> bool:
    found = origin_of(path)
    return found is not None and found.run_id == run.run_id and found.is_same_run(run)


def _is_of_no_run(path: Path) -> bool:
    found = origin_of(path)
    return path.is_dir() and (found is None or found.run_id is None)


def _copy(earlier: Path, paths: tuple[Path, Path]) -> None:
    for table, path in zip(_TABLES, paths, strict=True):
        source = earlier.with_name(earlier.name.replace(_TABLES[0], table, 1))
        if is_free(source):
            continue
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary)
            temporary.rename(path)
            log.info(f"{path} continues {source}, which stays as it is")
        except OSError as error:
            log.warning(f"{source} could not be copied to {path}: {error.strerror or error}")
            shutil.rmtree(temporary, ignore_errors=True)
