"""The files of a history: a directory, by custom ``spp.parquet``, of Parquet files that each hold some of its steps.

A single Parquet file cannot grow and stay readable, because its footer comes last. pandas, pyarrow and DuckDB read the
directory as one table by its name, also while it grows; polars reads ``spp.parquet/*.parquet``. Whoever reads it, at
any moment and after any crash, sees each step once: the only changes are a file that is added, one that takes another's
place in one move, and, when a run is resumed at an earlier step, one at the end that is removed.

A part is named by its first step, ``steps-000000050.parquet``. In its footer (the key ``sppbench`` of the Parquet
metadata, JSON) it says which steps it covers: from ``start`` until before ``end``, recorded or not. Parts abut: one
ends where the next one starts, and the first starts at 0. Whatever breaks this chain is a gap. There also stand
``every_n_steps`` (null where a function of the user's said which), ``record_from`` and ``record_until``, between which
steps are recorded, if they are known the ``run_id`` and the ``config_hash`` of the run and the names of the net's
repeated ``blocks``, and in ``spp.parquet`` whether there are rows in its ``batchnorm.parquet`` (``batchnorm``).

Parts of earlier versions, ``steps-<first>-<last>.parquet``, say nothing in their footer. Of these a gap is known where
the distance from the last step of one to the first step of the next exceeds the smallest such distance.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sppbench.files import replacing
from sppbench.spp.history.schema import Columns, HistoryError
from sppbench.spp.schedule import Schedule

_PART = re.compile(r"steps-(\d+)(?:-(\d+))?\.parquet")
_TEMPORARY = re.compile(r"\.steps-\d+(?:-\d+)?\.parquet\.tmp")
_KEY = b"sppbench"
# Smaller row groups would let readers skip more, but compress worse and lengthen the footer.
_ROW_GROUP = 4096


@dataclass(frozen=True)
class Origin:
    """The run that a part is of, and how it records.

    Attributes:
        every_n_steps: Each n-th; None if it is not known which, as a function said it: then each step must be covered
            by a part.
        run_id, config_hash: Name the run and its configuration.
        batchnorm: Whether it has recorded gains of batch normalizations beside its signals; None where it is not said.
        record_from, record_until: The first step that may be recorded, and that after the last one.
        blocks: The names of the net's repeated blocks, and their numbers.
    """

    every_n_steps: int | None = 1
    run_id: str | None = None
    config_hash: str | None = None
    batchnorm: bool | None = None
    record_from: int = 0
    record_until: int | None = None
    blocks: dict[str, int] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """The steps that must be covered by a part."""
        return Schedule(self.every_n_steps or 1, self.record_from, self.record_until)

    def is_same_run(self, other: Origin) -> bool:
        """Whether both are of one run, as far as they say it."""
        pairs = ((self.run_id, other.run_id), (self.config_hash, other.config_hash))
        return all(one is None or two is None or one == two for one, two in pairs)


@dataclass(frozen=True, order=True)
class Part:
    """A part file, as its name says it. ``last`` only of those of earlier versions."""

    start: int
    path: Path
    last: int | None = None

    @classmethod
    def at(cls, directory: Path, start: int) -> Part:
        return cls(start, directory / f"steps-{start:09d}.parquet")


@dataclass(frozen=True)
class Footer:
    """What the footer of a part says.

    Attributes:
        start, end: The steps that it covers, from ``start`` until before ``end``.
        first, last: The first and the last step that has rows.
        epochs: Those of the first and of the last row.
        origin: None in a part of an earlier version.
    """

    start: int
    end: int
    first: int
    last: int
    epochs: tuple[int, int]
    origin: Origin | None


@dataclass(frozen=True)
class Gap:
    """Steps from ``start`` until before ``end`` that should be there, and the epochs, both included, they may be of."""

    start: int
    end: int
    epochs: tuple[int, int]

    def concerns(self, steps: Collection[int] | None, epochs: Collection[int] | None) -> bool:
        """Whether some of these steps (epochs) are, or may be, missing; None stands for all."""
        if steps is not None and not any(self.start <= step < self.end for step in steps):
            return False
        return epochs is None or any(self.epochs[0] <= epoch <= self.epochs[1] for epoch in epochs)


def list_parts(directory: Path) -> list[Part]:
    """The parts in a directory, in the order of their steps."""
    matches = ((_PART.fullmatch(file.name), file) for file in directory.iterdir())
    return sorted(Part(int(match[1]), file, int(match[2]) if match[2] else None) for match, file in matches if match)


def remove_temporary(directory: Path) -> None:
    """Removes what a writer that was killed left half written."""
    for file in list(directory.iterdir()):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink()


def write_part(part: Part, table: pa.Table, columns: Columns, end: int, origin: Origin) -> None:
    """Writes a part, or puts it in another's place, in one move."""
    content = {"start": part.start, "end": end, **asdict(origin)}
    table = table.sort_by([(name, "ascending") for name in columns.order])
    with replacing(part.path) as file, pq.ParquetWriter(file, columns.disk, **columns.format) as writer:
        writer.write_table(table, _ROW_GROUP)
        writer.add_key_value_metadata({_KEY.decode(): json.dumps(content)})


def read_footer(part: Part) -> Footer:
    """Reads a part's footer and compares it with the part's name.

    Raises:
        HistoryError: It is damaged, or the part does not hold the steps that its name says.
    """
    try:
        return footer_of(part, pq.read_metadata(part.path))
    except (OSError, pa.ArrowException) as error:
        raise damaged(part.path, error) from error


def footer_of(part: Part, metadata: pq.FileMetaData) -> Footer:
    """As `read_footer`, of metadata that were read."""
    steps, epochs = _bounds(metadata, "step"), _bounds(metadata, "epoch")
    stored = (metadata.metadata or {}).get(_KEY)
    if steps is None or epochs is None:
        raise HistoryError(f"cannot read {part.path}: it holds no steps; {_WAY_OUT}")
    if stored is None:
        start, end, origin = steps[0], steps[1] + 1, None
        fits = part.start == steps[0] and (part.last is None or steps[1] <= part.last)
    else:
        start, end, origin = _parse(stored, part.path)
        fits = part.start == start <= steps[0] and steps[1] < end
    if not fits:
        raise HistoryError(
            f"{part.path} holds steps {steps[0]} to {steps[1]}, which is not what its name says: "
            "rename it to match, or restore the file that had this name"
        )
    return Footer(start, end, *steps, epochs, origin)


_WAY_OUT = "restore the file from a copy, or record the run again"


def damaged(path: Path, error: BaseException) -> HistoryError:
    """The error for a file that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return HistoryError(f"cannot read {path}: {reason.rstrip('.')}; {_WAY_OUT}")


def _parse(stored: bytes, path: Path) -> tuple[int, int, Origin]:
    try:
        content: dict[str, Any] = json.loads(stored)
        blocks = {str(name): int(number) for name, number in (content.get("blocks") or {}).items()}
        every, until = content["every_n_steps"], content.get("record_until")
        origin = Origin(
            None if every is None else int(every),
            content["run_id"],
            content["config_hash"],
            batchnorm=content.get("batchnorm"),
            record_from=int(content.get("record_from", 0)),
            record_until=None if until is None else int(until),
            blocks=blocks,
        )
        return int(content["start"]), int(content["end"]), origin
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def blocks_of(path: Path, metadata: pq.FileMetaData) -> dict[str, int]:
    """The names of the net's blocks, and their numbers, in the metadata of a part or of a copy of one; empty without.

    Raises:
        HistoryError: They are damaged.
    """
    stored = (metadata.metadata or {}).get(_KEY)
    return _parse(stored, path)[2].blocks if stored is not None else {}


def _bounds(metadata: pq.FileMetaData, column: str) -> tuple[int, int] | None:
    """The smallest and the largest value of a column; None if there are no rows, or if they are no integers."""
    names = [metadata.schema.column(i).name for i in range(metadata.num_columns)]
    if column not in names or not metadata.num_rows:
        return None
    index = names.index(column)
    found = [metadata.row_group(i).column(index).statistics for i in range(metadata.num_row_groups)]
    if not all(one is not None and isinstance(one.min, int) and isinstance(one.max, int) for one in found):
        return None
    return min(one.min for one in found), max(one.max for one in found)


def find_gaps(parts: Sequence[Part], footers: dict[Part, Footer], directory: Path) -> Iterator[Gap]:
    """The gaps before, between and after those of the parts whose footers are given.

    Raises:
        HistoryError: Two of them hold the same steps, or are of different runs.
    """
    # Where the epoch of a step is not known, the step bounds it: an epoch has at least one step.
    if parts and parts[0].start > 0:
        epoch = footers[parts[0]].epochs[0] if parts[0] in footers else parts[0].start
        yield Gap(0, parts[0].start, (0, epoch))
    stride = _stride(parts)
    for before, after in pairwise(parts):
        if before not in footers:
            continue
        footer, next_footer = footers[before], footers.get(after)
        if footer.end > after.start:
            raise HistoryError(f"{after.path} holds steps that {before.path.name} also holds: remove the wrong one")
        # Of a part of an earlier version the end is that of its last recorded step.
        allowed = stride if footer.origin is None else 1
        if after.start - (footer.end - 1) > allowed:
            last_epoch = next_footer.epochs[0] if next_footer is not None else after.start
            yield Gap(footer.end, after.start, (footer.epochs[1], last_epoch))
    origins = {part: footer.origin for part, footer in footers.items() if footer.origin is not None}
    for (one, first), (two, second) in pairwise(sorted(origins.items())):
        if not first.is_same_run(second):
            raise HistoryError(
                f"{directory} holds the parts of two runs, {one.path.name} and {two.path.name}: remove those of one"
            )


def _stride(parts: Sequence[Part]) -> int:
    """The distance between recorded steps in parts of earlier versions."""
    apart = [after.start - before.last for before, after in pairwise(parts) if before.last is not None]
    if max(apart, default=1) == 1:
        return 1
    found = (distance_of_steps(part) for part in parts if part.last is not None)
    return next((distance for distance in found if distance is not None), min(apart))


def distance_of_steps(part: Part) -> int | None:
    """The smallest distance between the steps that a part holds; None if it holds one only.

    Raises:
        HistoryError: It is damaged.
    """
    try:
        steps = pq.read_table(part.path, columns=["step"])["step"].unique().to_numpy()
    except (OSError, pa.ArrowException) as error:
        raise damaged(part.path, error) from error
    return int(np.diff(np.sort(steps)).min()) if len(steps) > 1 else None


def gap_error(directory: Path, gap: Gap) -> HistoryError:
    return HistoryError(
        f"{directory} lacks the steps {gap.start} to {gap.end - 1}: "
        "restore the missing files, record the run again, or read other steps only (steps=)"
    )


def origin_of(path: str | os.PathLike[str]) -> Origin | None:
    """The run that a history is of, as its first part that can be read says; None if no part says it."""
    for part in list_parts(Path(path)) if Path(path).is_dir() else ():
        try:
            footer = read_footer(part)
        except HistoryError:
            continue
        if footer.origin is not None:
            return footer.origin
    return None


def is_free(path: str | os.PathLike[str]) -> bool:
    """Whether a new history may stand there: there is nothing, or a directory without parts."""
    path = Path(path)
    return not (path.exists() or path.is_symlink()) or (path.is_dir() and not list_parts(path))
