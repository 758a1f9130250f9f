"""A table of steps that grows on disk: a directory of immutable Parquet files, each the rows of some steps.

A single Parquet file cannot grow and stay readable, because its footer comes last. pandas, pyarrow and duckdb read the
directory as one table by its name, also while it grows; polars reads ``<directory>/*.parquet``. Whoever reads it, at
any moment and after any crash, sees whole parts only. What the rows hold is said by
:class:`sppbench.spp.history.schema.Columns`.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from sppbench.files import replacing, sync_directory
from sppbench.spp.history.schema import Columns

_PART = re.compile(r"steps-(\d+)-(\d+)\.parquet")
_TEMPORARY = re.compile(r"\.steps-\d+-\d+\.parquet\.tmp")


class HistoryError(ValueError):
    """A history that cannot be read, or that does not hold what was asked for.

    Example:
        >>> try:
        ...     history = read_history("run/spp.parquet", layers="nowhere")
        ... except HistoryError as error:
        ...     print(error)
        no layer matches 'nowhere' in run/spp.parquet; ...
    """


class PartsWriter:
    """Appends to a directory of parts. Every :meth:`append` makes one part; a run that is killed loses what was not
    appended. Only one writer at a time.

    Args:
        path: The directory; made, with its parents, if there is none.
        columns: What the rows hold.
        resume_at: The step that comes next, from 0, as after loading a checkpoint: rows of this step and later are
            dropped, earlier ones kept. None starts anew. Files that are not parts are never touched.

    Raises:
        ValueError: ``resume_at`` is negative.
        HistoryError: A part that must be cut is damaged.
        OSError: The directory cannot be made or written, or ``path`` is a file.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Columns, *, resume_at: int | None = None) -> None:
        if resume_at is not None and resume_at < 0:
            raise ValueError(f"resume_at must not be negative, got {resume_at}")
        self.path, self._columns = Path(path), columns
        self.path.mkdir(parents=True, exist_ok=True)
        for file in list(self.path.iterdir()):
            if _TEMPORARY.fullmatch(file.name):
                file.unlink()
        self._last_step = _drop_from(self.path, columns, resume_at or 0)

    @property
    def last_step(self) -> int | None:
        """The last step on disk, None if there is none. Below ``resume_at - 1`` after a resume: steps were lost."""
        return self._last_step

    def append(self, frame: pd.DataFrame) -> None:
        """Writes the rows as one part and waits until they are on disk. An empty frame writes nothing.

        Args:
            frame: The table's columns, rows and columns in any order; other columns are left out. All steps come after
                those on disk. Statistics beyond the range of float32 (about 1e-45 to 3e38) become 0 or infinite.

        Raises:
            ValueError: Columns are missing, values have the wrong type or a step is not after those on disk. Nothing is
                written.
            OSError: The part could not be written. Nothing is left of it, and the same frame may be appended again.
        """
        if frame.empty:
            return
        table = self._columns.to_table(frame)
        first, last = _step_range(table)
        if first < 0 or (self._last_step is not None and first <= self._last_step):
            raise ValueError(f"steps {first} to {last} do not follow step {self._last_step}, the last in {self.path}")
        table = table.sort_by([(name, "ascending") for name in self._columns.order])
        _write(table, self._columns, _Part.at(self.path, first, last))
        self._last_step = last


def read_parts(
    path: str | os.PathLike[str],
    columns: Columns,
    wanted: Collection[str],
    *,
    layers: str | Iterable[str] | None = None,
    epochs: int | Collection[int] | None = None,
    steps: int | Collection[int] | None = None,
    conditions: Iterable[pc.Expression] = (),
) -> pa.Table:
    """Reads a directory of parts, or only a part of it, without reading the rest.

    Args:
        path: The directory, or a single Parquet file with the same columns.
        columns: What the rows hold.
        wanted: Which columns to read.
        layers: Names or globs (``"features.1.*"``), or one of them; all by default.
        epochs, steps: From 0, several or one; all by default.
        conditions: What else a row must meet.

    Returns:
        The rows in no particular order, columns in the order of ``columns``; none if no row passes the filters.

    Raises:
        HistoryError: The table is missing, empty, damaged or lacks columns, or ``layers`` names none in it.
    """
    conditions = list(conditions)
    if epochs is not None:
        conditions.append(is_in("epoch", listed(epochs)))
    if steps is not None:
        conditions.append(is_in("step", listed(steps)))
    files = _Files.of(Path(path), columns, None if steps is None else listed(steps))
    patterns = None if layers is None else listed(layers)
    if patterns is not None:
        conditions.append(is_in("layer", files.match_layers(patterns)))
    table = files.read([name for name in columns.names if name in wanted], conditions)
    if patterns is not None:
        files.check_layers(patterns, table)
    return table


def is_in(column: str, values: list[Any]) -> pc.Expression:
    """The condition that a column's value is one of those given."""
    if not values:
        return pc.scalar(False)
    # The bounds say nothing new, but with them every pyarrow can skip row groups.
    field = pc.field(column)
    return (field >= min(values)) & (field <= max(values)) & field.isin(values)


def listed(values: Any) -> list[Any]:
    """One value or several, as a list."""
    return [values] if isinstance(values, str | int | np.integer) else list(values)


@dataclass(frozen=True, order=True)
class _Part:
    """A part file. Its name says which steps it may hold; ``last`` is too large between the two renames of a cut."""

    first: int
    last: int
    path: Path

    @classmethod
    def at(cls, directory: Path, first: int, last: int) -> _Part:
        return cls(first, last, directory / f"steps-{first:09d}-{last:09d}.parquet")


def _parts(directory: Path) -> list[_Part]:
    matches = ((_PART.fullmatch(file.name), file) for file in directory.iterdir())
    return sorted(_Part(int(match[1]), int(match[2]), file) for match, file in matches if match)


def _drop_from(directory: Path, columns: Columns, step: int) -> int | None:
    """Removes all rows from ``step`` on; returns the last step that is left."""
    parts = _parts(directory)
    # Backwards, so that what a crash leaves has no gap.
    while parts and parts[-1].first >= step:
        parts.pop().path.unlink()
    if parts and parts[-1].last >= step:
        parts.append(_cut(parts.pop(), columns, step))
    sync_directory(directory)
    return parts[-1].last if parts else None


def _cut(part: _Part, columns: Columns, step: int) -> _Part:
    """Removes the rows of a part from ``step`` on."""
    table = _read_file(part.path, columns, columns.names, [pc.field("step") < step]).cast(columns.disk)
    first, last = _step_range(table)
    # Under the old name first: two files that hold the same steps are at no moment visible.
    _write(table, columns, part)
    shorter = _Part.at(part.path.parent, first, last)
    part.path.rename(shorter.path)
    return shorter


def _write(table: pa.Table, columns: Columns, part: _Part) -> None:
    with replacing(part.path) as file:
        pq.write_table(table, file, **columns.format)


def _step_range(table: pa.Table) -> tuple[int, int]:
    bounds = pc.min_max(table["step"])
    return bounds["min"].as_py(), bounds["max"].as_py()


@dataclass(frozen=True)
class _Files:
    """The files that together are a table."""

    path: Path
    columns: Columns
    files: list[Path]

    @classmethod
    def of(cls, path: Path, columns: Columns, steps: list[int] | None) -> _Files:
        """Finds the files that may hold one of the steps (all files for None)."""
        if path.is_file():
            return cls(path, columns, [path])
        if not path.is_dir():
            raise HistoryError(f"there is no history {path}")
        parts = _parts(path)
        if not parts:
            raise HistoryError(f"{path} holds no parts of a history (steps-*.parquet)")
        for before, after in pairwise(parts):
            if after.first <= before.last:
                raise HistoryError(f"{after.path} holds steps that are in {before.path.name}, too")
        if steps is not None:
            low, high = min(steps, default=0), max(steps, default=-1)
            # One part is kept in any case: an empty frame has columns, too.
            parts = [part for part in parts if part.first <= high and part.last >= low] or parts[:1]
        return cls(path, columns, [part.path for part in parts])

    def read(self, wanted: Collection[str], conditions: list[pc.Expression]) -> pa.Table:
        return pa.concat_tables([_read_file(file, self.columns, wanted, conditions) for file in self.files])

    def layer_names(self) -> list[str]:
        names: set[str] = set()
        for file in self.files:
            names.update(_read_file(file, self.columns, ["layer"], [])["layer"].unique().to_pylist())
        return sorted(names)

    def match_layers(self, patterns: list[str]) -> list[str]:
        """The names that the patterns stand for. Names without wildcards are not looked up: that costs reading."""
        names = self.layer_names() if any(map(_is_glob, patterns)) else []
        exact = [pattern for pattern in patterns if not _is_glob(pattern)]
        return exact + [name for name in names if any(_matches(name, pattern) for pattern in patterns)]

    def check_layers(self, patterns: list[str], table: pa.Table) -> None:
        """Raises HistoryError for a pattern that matches no layer of the whole history.

        That the other filters leave no row of a layer is no error.
        """

        def without_match(names: list[str], patterns: list[str]) -> list[str]:
            return [pattern for pattern in patterns if not any(_matches(name, pattern) for name in names)]

        missing = without_match(table["layer"].unique().to_pylist(), patterns)
        if not missing:
            return
        names = _Files.of(self.path, self.columns, None).layer_names()
        for pattern in without_match(names, missing):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.5) or names[:5]
            raise HistoryError(
                f"no layer matches {pattern!r} in {self.path}; there are, for example, {', '.join(near)}"
            )


def _read_file(path: Path, columns: Columns, wanted: Collection[str], conditions: list[pc.Expression]) -> pa.Table:
    """Rows of one file that meet all conditions; row groups whose bounds exclude that are not read."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    try:
        fragment = file_format.make_fragment(str(path), LocalFileSystem())
        stored = fragment.physical_schema.names
        missing = [name for name in columns.names if name not in stored]
        if missing:
            raise HistoryError(f"{path} lacks the columns {', '.join(missing)}")
        table = fragment.to_table(columns=list(wanted), filter=reduce(and_, conditions) if conditions else None)
        return table.cast(pa.schema([columns.memory.field(name) for name in wanted]))
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
