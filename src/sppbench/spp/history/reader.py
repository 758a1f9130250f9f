"""Reads a history, or a part of it, from disk.

A gap raises a :class:`HistoryError`, wherever the steps or epochs that are asked for may be concerned: no mean is
formed over an epoch of which steps are missing. Whether the last steps are missing the history alone cannot say;
`check_end` compares it with the number of steps of the run.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from sppbench.spp.history.parts import (
    Footer,
    Origin,
    Part,
    blocks_of,
    damaged,
    distance_of_steps,
    find_gaps,
    footer_of,
    gap_error,
    list_parts,
    read_footer,
)
from sppbench.spp.history.schema import (
    BATCHNORM,
    HISTORY,
    Columns,
    HistoryError,
    check_known,
)
from sppbench.spp.names import BATCHNORM_COLUMNS, COLUMNS, PLACES, SIGNALS
from sppbench.spp.places import with_places
from sppbench.spp.schedule import Schedule


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
        columns: Some of :data:`COLUMNS` and of ``block`` and ``role``; by default all; from a history of an earlier
            version, all that it has.

    Returns:
        One row per (step, layer, signal), sorted by step, depth and the order of :data:`SIGNALS`; columns as asked for.
        Empty if no row passes the filters.

    Raises:
        HistoryError: The history is missing, empty, damaged or lacks columns; steps of it are missing that may be among
            those asked for; or a layer, signal or column is unknown.

    Example:
        >>> history = read_history("run/spp.parquet", layers=["0", "1"], signals="gradient", epochs=range(10))
        >>> sorted(history["layer"].unique())
        ['0', '1']
    """
    wanted = list((*COLUMNS, *PLACES) if columns is None else columns)
    check_known("column", wanted, (*COLUMNS, *PLACES))
    needed = {"step", "depth", "layer", "signal", *wanted} | ({"acsm", "acv"} if "second_moment" in wanted else set())
    conditions = []
    if signals is not None:
        conditions.append(_is_in("signal", check_known("signal", _listed(signals), SIGNALS)))
    table, blocks = _read(path, HISTORY, needed, layers, epochs, steps, conditions)
    frame = _to_frame(table)
    frame = with_places(frame, blocks) if set(PLACES) & set(wanted) else frame
    if absent := [name for name in wanted if name not in frame]:
        if columns is not None:
            raise HistoryError(f"{path} lacks the columns {', '.join(absent)}")
        wanted = [name for name in wanted if name not in absent]
    return frame[wanted]


def read_batchnorm(
    path: str | os.PathLike[str],
    *,
    layers: str | Iterable[str] | None = None,
    epochs: int | Collection[int] | None = None,
    steps: int | Collection[int] | None = None,
) -> pd.DataFrame:
    """Reads the backward gains of the batch normalizations, or only a part of them, without reading the rest.

    Args:
        path: A directory ``batchnorm.parquet``, or a single Parquet file with the same columns.
        layers, epochs, steps: As in :func:`read_history`.

    Returns:
        One row per (step, layer), sorted by step and depth, with the columns :data:`BATCHNORM_COLUMNS`. Empty if no row
        passes the filters.

    Raises:
        HistoryError: As in :func:`read_history`.

    Example:
        >>> gains = read_batchnorm("run/batchnorm.parquet", steps=0)
        >>> gains["layer"].tolist()
        ['1']
    """
    table, _ = _read(path, BATCHNORM, tuple(BATCHNORM_COLUMNS), layers, epochs, steps, [])
    return table.sort_by([("step", "ascending"), ("depth", "ascending")]).to_pandas()


def check_end(path: str | os.PathLike[str], steps: int) -> Origin | None:
    """Checks that a history is whole, by its footers alone; returns the run that it is of, None if it does not say.

    Of the run's parts, one may say that gains of batch normalizations were recorded: then what is returned says it.

    Args:
        path: A history directory.
        steps: Optimizer steps that the run took.

    Raises:
        HistoryError: The history has a gap, ends before the last of these steps that should be recorded, or cannot be
            read.

    Example:
        >>> check_end("run/spp.parquet", steps=1580)
    """
    directory = Path(path)
    parts = _listed_parts(directory)
    footers = {part: read_footer(part) for part in parts}
    for gap in find_gaps(parts, footers, directory):
        raise gap_error(directory, gap)
    part = parts[-1]
    footer = footers[part]
    schedule = footer.origin.schedule if footer.origin is not None else Schedule(distance_of_steps(part) or 1)
    if (missing := schedule.first(footer.end, steps)) is not None:
        raise HistoryError(
            f"{directory} lacks the steps {missing} to {steps - 1}, the last ones of its run: "
            "restore the missing files, or record the run again"
        )
    if any(one.origin is not None and one.origin.batchnorm for one in footers.values()):
        return replace(footer.origin or Origin(), batchnorm=True)
    return footer.origin


def _listed_parts(directory: Path) -> list[Part]:
    if not directory.is_dir():
        raise HistoryError(f"there is no history at {directory}")
    parts = list_parts(directory)
    if not parts:
        raise HistoryError(f"{directory} holds no parts of a history (steps-*.parquet)")
    return parts


def _read(
    path: str | os.PathLike[str],
    columns: Columns,
    wanted: Collection[str],
    layers: str | Iterable[str] | None,
    epochs: int | Collection[int] | None,
    steps: int | Collection[int] | None,
    conditions: list[pc.Expression],
) -> tuple[pa.Table, dict[str, int]]:
    """The rows that pass all filters, in no particular order, with the wanted columns in the order of ``columns``; and
    the net's blocks.

    Of columns that may be missing, only those that some file has."""
    chosen_epochs = None if epochs is None else _listed(epochs)
    chosen_steps = None if steps is None else _listed(steps)
    if chosen_epochs is not None:
        conditions.append(_is_in("epoch", chosen_epochs))
    if chosen_steps is not None:
        conditions.append(_is_in("step", chosen_steps))
    files = _Files.of(Path(path), columns, chosen_steps)
    patterns = None if layers is None else _listed(layers)
    if patterns is not None:
        conditions.append(_is_in("layer", files.match_layers(patterns)))
    columns_read = [name for name in columns.names if name in wanted]
    table, blocks = files.read(columns_read, conditions, chosen_steps, chosen_epochs)
    if patterns is not None:
        files.check_layers(patterns, table)
    return table, blocks


def _is_in(column: str, values: list[Any]) -> pc.Expression:
    """The condition that a column's value is one of those given."""
    if not values:
        return pc.scalar(False)
    # The bounds say nothing new, but with them every pyarrow can skip row groups.
    field = pc.field(column)
    return (field >= min(values)) & (field <= max(values)) & field.isin(values)


def _listed(values: Any) -> list[Any]:
    """One value or several, as a list."""
    return [values] if isinstance(values, str | int | np.integer) else list(values)


@dataclass(frozen=True)
class _Files:
    """The files that together are a table: the parts in a directory, or one file of another origin."""

    path: Path
    columns: Columns
    parts: list[Part]  # all of them
    chosen: list[Part]  # those that may hold steps that are asked for

    @classmethod
    def of(cls, path: Path, columns: Columns, steps: list[int] | None) -> _Files:
        """Finds the files that may hold one of the steps (all files for None)."""
        if path.is_file():
            return cls(path, columns, [], [Part(0, path)])
        parts = _listed_parts(path)
        if steps is None:
            return cls(path, columns, parts, parts)
        low, high = min(steps, default=0), max(steps, default=-1)
        ends = [part.start for part in parts[1:]] + [high + 1]
        # One part is kept in any case: an empty frame has columns, too.
        chosen = [part for part, end in zip(parts, ends, strict=True) if part.start <= high and end > low]
        return cls(path, columns, parts, chosen or parts[:1])

    def read(
        self,
        wanted: Collection[str],
        conditions: list[pc.Expression],
        steps: list[int] | None,
        epochs: list[int] | None,
    ) -> tuple[pa.Table, dict[str, int]]:
        tables, footers, stored = [], {}, set[str]()
        blocks: dict[str, int] = {}
        for part in self.chosen:
            table, metadata = _read_file(part.path, self.columns, wanted, conditions)
            tables.append(table)
            stored |= set(metadata.schema.names)
            blocks |= blocks_of(part.path, metadata)
            if self.parts:
                footers[part] = footer_of(part, metadata)
        self._check(footers, steps, epochs)
        return pa.concat_tables(tables).select([name for name in wanted if name in stored]), blocks

    def _check(self, footers: dict[Part, Footer], steps: list[int] | None, epochs: list[int] | None) -> None:
        for gap in find_gaps(self.parts, footers, self.path):
            if gap.concerns(steps, epochs):
                raise gap_error(self.path, gap)

    def layer_names(self) -> list[str]:
        names: set[str] = set()
        for part in self.chosen:
            names.update(_read_file(part.path, self.columns, ["layer"], [])[0]["layer"].unique().to_pylist())
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


def read_part(part: Part, columns: Columns) -> pa.Table:
    """All rows of one part, as they are in memory.

    Raises:
        HistoryError: It is damaged or lacks columns.
    """
    return _read_file(part.path, columns, columns.names, [])[0]


def _read_file(
    path: Path, columns: Columns, wanted: Collection[str], conditions: list[pc.Expression]
) -> tuple[pa.Table, pq.FileMetaData]:
    """Rows of one file that meet all conditions; row groups whose bounds exclude that are not read.

    A column that may be missing, and is, is NaN."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    try:
        # Opened once: by its name another file may be found the second time, as the last part grows.
        with pa.OSFile(str(path)) as file:
            fragment = file_format.make_fragment(file)
            stored = fragment.physical_schema.names
            missing = [name for name in columns.needed if name not in stored]
            if missing:
                raise HistoryError(f"{path} lacks the columns {', '.join(missing)}")
            # Of what a file lacks Arrow would make nulls.
            sources = {name: pc.field(name) if name in stored else pc.scalar(math.nan) for name in wanted}
            table = fragment.to_table(columns=sources, filter=reduce(and_, conditions) if conditions else None)
            return table.cast(pa.schema([columns.memory.field(name) for name in wanted])), fragment.metadata
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """The table in the order of a history, with the second moment where it can be computed."""
    rank = pc.index_in(table["signal"], pa.array(SIGNALS)).fill_null(len(SIGNALS))
    # A stable sort: layers of the same depth stay in the order in which they are stored, by name.
    order = np.lexsort((rank, table["depth"], table["step"]))
    frame = table.take(pa.array(order)).to_pandas()
    if "acsm" in frame and "acv" in frame:
        frame["second_moment"] = frame["acsm"] + frame["acv"]
    return frame
