"""The history of a training run: what a probe saw, one row per (step, layer, signal), kept in Parquet.

A history on disk is a directory, by custom ``spp.parquet``, of immutable part files: a single Parquet file cannot grow
and stay readable, because its footer comes last. pandas, pyarrow and duckdb read the directory as one table by its
name, also while it grows; polars reads ``spp.parquet/*.parquet``.

=============  =======  ================================================================================
column         type     meaning
=============  =======  ================================================================================
step           int64    index of the optimizer step, from 0
epoch          int64    from 0
samples        int64    samples in that step's batch
depth          int64    order of first execution, from 0
layer          str      name of the module
kind           str      class name of the module, such as "Linear"
signal         str      one of :data:`SIGNALS`
ndim           int64    number of dimensions of the tensor
acsm           float64  average channel squared mean
acv            float64  average channel variance
second_moment  float64  ``acsm + acv``; not stored, computed on reading
mean           float64  mean over the channels of the channel means
nonfinite      int64    elements that are NaN or infinite
=============  =======  ================================================================================

Statistics are stored as float32, the type in which a probe takes them, and come back as float64, so that neither
``acsm + acv`` nor means over steps are rounded to float32. NaN and infinities are kept. A layer has no row for a step
in which it did not run.
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

#: The signals, in the order in which the rows of a layer are sorted.
SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")

#: The columns of a history that was read, in order.
COLUMNS = (
    *("step", "epoch", "samples", "depth", "layer", "kind", "signal", "ndim"),
    *("acsm", "acv", "second_moment", "mean", "nonfinite"),
)

_TEXTS = ("layer", "kind", "signal")
_FLOATS = ("acsm", "acv", "mean")
_STORED = tuple(name for name in COLUMNS if name != "second_moment")


def _schema(statistics: pa.DataType, nullable: bool) -> pa.Schema:
    types = {**dict.fromkeys(_TEXTS, pa.string()), **dict.fromkeys(_FLOATS, statistics)}
    return pa.schema([pa.field(name, types.get(name, pa.int64()), nullable) for name in _STORED])


_DISK_SCHEMA = _schema(pa.float32(), nullable=False)
_READ_SCHEMA = _schema(pa.float64(), nullable=True)

# Rows are sorted by layer name, not by depth: so the smallest and largest name of each row group, which Parquet keeps,
# let any reader that filters by name skip the other groups. Smaller groups would skip more, but compress worse and
# lengthen the footer. Floats compress better with their bytes split by significance: noise then stays in the low ones.
_ORDER = [("layer", "ascending"), ("signal", "ascending"), ("step", "ascending")]
_FORMAT: dict[str, Any] = {
    "row_group_size": 4096,
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": [name for name in _STORED if name not in _FLOATS],
    "column_encoding": dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT"),
    "write_page_checksum": True,
    "store_schema": False,
}

_PART = re.compile(r"steps-(\d+)-(\d+)\.parquet")
_TEMPORARY = re.compile(r"\.steps-\d+-\d+\.parquet\.tmp")


class HistoryError(ValueError):
    """A history that cannot be read, or that does not hold what was asked for."""


class HistoryWriter:
    """Appends to a history directory. Whoever reads it, at any moment and after any crash, sees whole parts only.

    Every :meth:`append` makes one part; a run that is killed loses what was not appended. Only one writer at a time.

    Args:
        path: The directory; made, with its parents, if there is none.
        resume_at: The step that comes next, from 0, as after loading a checkpoint: rows of this step and later are
            dropped, earlier ones kept. None starts anew. Files that are not parts of a history are never touched.

    Raises:
        ValueError: ``resume_at`` is negative.
        HistoryError: A part that must be cut is damaged.
        OSError: The directory cannot be made or written, or ``path`` is a file.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        if resume_at is not None and resume_at < 0:
            raise ValueError(f"resume_at must not be negative, got {resume_at}")
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        for file in list(self.path.iterdir()):
            if _TEMPORARY.fullmatch(file.name):
                file.unlink()
        self._last_step = _drop_from(self.path, resume_at or 0)

    @property
    def last_step(self) -> int | None:
        """The last step on disk, None if there is none. Below ``resume_at - 1`` after a resume: steps were lost."""
        return self._last_step

    def append(self, frame: pd.DataFrame) -> None:
        """Writes the rows as one part and waits until they are on disk. An empty frame writes nothing.

        Args:
            frame: The columns of a history, rows and columns in any order; ``second_moment`` is not needed, other
                columns are left out. All steps come after those on disk. Statistics beyond the range of float32 (about
                1e-45 to 3e38) become 0 or infinite.

        Raises:
            ValueError: Columns are missing, values have the wrong type, a signal is unknown or a step is not after
                those on disk. Nothing is written.
            OSError: The part could not be written. Nothing is left of it, and the same frame may be appended again.
        """
        if frame.empty:
            return
        table = _to_table(frame)
        first, last = _step_range(table)
        if first < 0 or (self._last_step is not None and first <= self._last_step):
            raise ValueError(f"steps {first} to {last} do not follow step {self._last_step}, the last in {self.path}")
        _write_atomically(table.sort_by(_ORDER), _Part.at(self.path, first, last))
        self._last_step = last


def read_history(
    path: str | os.PathLike[str],
    *,
    layers: str | Iterable[str] | None = None,
    signals: str | Iterable[str] | None = None,
    epochs: int | Collection[int] | None = None,
    steps: int | Collection[int] | None = None,
    columns: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Reads a history, or only a part of it, without reading the rest.

    Args:
        path: A history directory, or a single Parquet file with the same columns.
        layers: Names or globs (``"features.1.*"``), or one of them; all by default.
        signals: Some of :data:`SIGNALS`, or one of them; all by default.
        epochs: Epochs from 0, for example ``range(10)`` or ``(0, 9, 19)``; all by default.
        steps: Steps from 0, likewise.
        columns: Some of :data:`COLUMNS`; all by default.

    Returns:
        One row per (step, layer, signal), sorted by step, depth and the order of :data:`SIGNALS`; columns as asked for.
        Without rows if no row passes the filters.

    Raises:
        HistoryError: The history is missing, empty, damaged or lacks columns, or a layer, signal or column is unknown.
    """
    path = Path(path)
    wanted = list(COLUMNS if columns is None else columns)
    _check_known("column", wanted, COLUMNS)
    needed = {"step", "depth", "layer", "signal", *wanted} | ({"acsm", "acv"} if "second_moment" in wanted else set())
    conditions = []
    if signals is not None:
        conditions.append(_is_in("signal", _check_known("signal", _listed(signals), SIGNALS)))
    if epochs is not None:
        conditions.append(_is_in("epoch", _listed(epochs)))
    if steps is not None:
        conditions.append(_is_in("step", _listed(steps)))
    files = _Files.of(path, None if steps is None else _listed(steps))
    patterns = None if layers is None else _listed(layers)
    if patterns is not None:
        conditions.append(_is_in("layer", files.match_layers(patterns)))
    table = files.read([name for name in _STORED if name in needed], conditions)
    if patterns is not None:
        files.check_layers(patterns, table)
    return _to_frame(table)[wanted]


def epoch_mean(history: pd.DataFrame, full_batches_only: bool = False) -> pd.DataFrame:
    """Plain mean of each statistic over the steps of each epoch: every step counts the same, however small its batch.

    The gradient of a mean loss grows as its batch shrinks, its second moment as 1/batch². So a smaller last batch
    weighs more: at 78 batches of 512 and one of 64 it raises the epoch's mean by (78 + 64)/79 = 1.80.

    Args:
        history: As :func:`read_history` returns it; ``second_moment`` is not needed.
        full_batches_only: Leave out the steps whose batch is smaller than the largest in ``history``.

    Returns:
        One row per (epoch, depth, layer, kind, signal, ndim), sorted by epoch, depth and signal. ``steps`` is the
        number of steps in which the layer ran, ``step`` the last of them (so the frame can be drawn as a history),
        ``nonfinite`` the sum over them. A step that is NaN makes the mean NaN.

    Raises:
        HistoryError: ``history`` lacks columns.
    """
    if missing := [name for name in _STORED if name not in history.columns]:
        raise HistoryError(f"the history lacks the columns {', '.join(missing)}")
    if full_batches_only:
        history = history[history["samples"] == history["samples"].max()]
    keys = ["epoch", "depth", "layer", "kind", "signal", "ndim"]
    groups = history.groupby(keys, sort=True, observed=True)
    result = groups.agg(steps=("step", "size"), step=("step", "max"), nonfinite=("nonfinite", "sum"))
    number = groups.ngroup().to_numpy()
    for name in _FLOATS:
        # Not groupby.mean: it skips NaN.
        values = history[name].to_numpy(np.float64)
        result[name] = np.bincount(number, weights=values, minlength=len(result)) / result["steps"]
    result = result.reset_index()
    result["second_moment"] = result["acsm"] + result["acv"]
    rank = result["signal"].map(SIGNALS.index)
    result = result.iloc[np.lexsort((rank, result["depth"], result["epoch"]))].reset_index(drop=True)
    return result[[*keys, "steps", "step", "acsm", "acv", "second_moment", "mean", "nonfinite"]]


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


def _drop_from(directory: Path, step: int) -> int | None:
    """Removes all rows from ``step`` on; returns the last step that is left."""
    parts = _parts(directory)
    # Backwards, so that what a crash leaves has no gap.
    while parts and parts[-1].first >= step:
        parts.pop().path.unlink()
    if parts and parts[-1].last >= step:
        parts.append(_cut(parts.pop(), step))
    _sync_directory(directory)
    return parts[-1].last if parts else None


def _cut(part: _Part, step: int) -> _Part:
    """Removes the rows of a part from ``step`` on."""
    table = _read_file(part.path, list(_STORED), [pc.field("step") < step]).cast(_DISK_SCHEMA)
    first, last = _step_range(table)
    # Under the old name first: two files that hold the same steps are at no moment visible.
    _write_atomically(table, part)
    shorter = _Part.at(part.path.parent, first, last)
    part.path.rename(shorter.path)
    return shorter


def _write_atomically(table: pa.Table, part: _Part) -> None:
    # Readers of the directory pass over names with a leading dot.
    temporary = part.path.with_name(f".{part.path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, **_FORMAT)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(part.path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(part.path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes renames and removals survive a power failure, where the system can open a directory (Windows cannot)."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _to_table(frame: pd.DataFrame) -> pa.Table:
    if missing := [name for name in _STORED if name not in frame.columns]:
        raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
    # Column by column, because Table.from_pandas would turn NaN into null.
    table = pa.table([_to_array(frame[field.name], field) for field in _DISK_SCHEMA], schema=_DISK_SCHEMA)
    _check_known("signal", table["signal"].unique().to_pylist(), SIGNALS)
    return table


def _to_array(values: pd.Series, field: pa.Field) -> pa.Array:
    try:
        with np.errstate(over="ignore"):
            array = pa.array(values.to_numpy(np.float32 if field.name in _FLOATS else None), field.type)
    except (TypeError, ValueError) as error:  # this is what Arrow's errors are, too
        raise ValueError(f"column {field.name} cannot be stored as {field.type}: {error}") from error
    if array.null_count:
        raise ValueError(f"column {field.name} has missing values")
    return array


def _step_range(table: pa.Table) -> tuple[int, int]:
    bounds = pc.min_max(table["step"])
    return bounds["min"].as_py(), bounds["max"].as_py()


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """The table in the order of a history, with the second moment where it can be computed."""
    rank = pc.index_in(table["signal"], pa.array(SIGNALS)).fill_null(len(SIGNALS))
    # A stable sort: layers of the same depth stay in the order in which they are stored, by name.
    order = np.lexsort((rank, table["depth"], table["step"]))
    frame = table.take(pa.array(order)).to_pandas()
    if "acsm" in frame and "acv" in frame:
        frame["second_moment"] = frame["acsm"] + frame["acv"]
    return frame


@dataclass(frozen=True)
class _Files:
    """The files that together are a history."""

    path: Path
    files: list[Path]

    @classmethod
    def of(cls, path: Path, steps: list[int] | None) -> _Files:
        """Finds the files that may hold one of the steps (all files for None)."""
        if path.is_file():
            return cls(path, [path])
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
        return cls(path, [part.path for part in parts])

    def read(self, columns: list[str], conditions: list[pc.Expression]) -> pa.Table:
        return pa.concat_tables([_read_file(file, columns, conditions) for file in self.files])

    def layer_names(self) -> list[str]:
        names: set[str] = set()
        for file in self.files:
            names.update(_read_file(file, ["layer"], [])["layer"].unique().to_pylist())
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
        names = _Files.of(self.path, None).layer_names()
        for pattern in without_match(names, missing):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.5) or names[:5]
            raise HistoryError(
                f"no layer matches {pattern!r} in {self.path}; there are, for example, {', '.join(near)}"
            )


def _read_file(path: Path, columns: list[str], conditions: list[pc.Expression]) -> pa.Table:
    """Rows of one file that meet all conditions; row groups whose bounds exclude that are not read."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    try:
        fragment = file_format.make_fragment(str(path), LocalFileSystem())
        stored = fragment.physical_schema.names
        missing = [name for name in _STORED if name not in stored]
        if missing:
            raise HistoryError(f"{path} lacks the columns {', '.join(missing)}")
        table = fragment.to_table(columns=columns, filter=reduce(and_, conditions) if conditions else None)
        return table.cast(pa.schema([_READ_SCHEMA.field(name) for name in columns]))
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _is_in(column: str, values: list[Any]) -> pc.Expression:
    if not values:
        return pc.scalar(False)
    # The bounds say nothing new, but with them every pyarrow can skip row groups.
    field = pc.field(column)
    return (field >= min(values)) & (field <= max(values)) & field.isin(values)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _listed(values: Any) -> list[Any]:
    """One value or several, as a list."""
    return [values] if isinstance(values, str | int | np.integer) else list(values)


def _check_known(what: str, values: list[str], known: Collection[str]) -> list[str]:
    for value in values:
        if value not in known:
            raise HistoryError(f"unknown {what} {value!r}; there are {', '.join(known)}")
    return values
