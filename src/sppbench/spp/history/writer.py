"""Appends the readings of a run to its history on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sppbench.files import sync_directory
from sppbench.spp.history import parts
from sppbench.spp.history.parts import Gap, Origin, Part
from sppbench.spp.history.reader import read_part
from sppbench.spp.history.schema import BATCHNORM, HISTORY, Columns, HistoryError, check_known
from sppbench.spp.names import PLACES, SIGNALS
from sppbench.spp.places import blocks_in
from sppbench.spp.schedule import EveryNSteps, Schedule

log = logging.getLogger(__name__)

# The last part takes in new rows until it has so many. To write it anew takes a few milliseconds; to open a part, as
# each reader must, takes one.
_FULL = 8192


class PartsWriter:
    """Appends to a directory of parts (see ``sppbench.spp.history.parts``). A run that is killed loses what was not
    appended. Only one writer at a time.

    A history that is incomplete stays recognizable as such: where steps of the run are missing when it is resumed, the
    writer warns once, and readers raise a HistoryError.

    Args:
        path: The directory; made, with its parents, if there is none.
        columns: What the rows hold.
        resume_at: The step that comes next, from 0, as after loading a checkpoint: rows of this step and later are
            dropped, earlier ones kept. None starts anew. Files that are not parts are never touched.
        every_n_steps, start, stop: Which steps are recorded, as in ``SignalProbe``; kept in the history, except for a
            function: call :meth:`cover` then, as no reader knows which steps it says.
        run_id, config_hash: Name the run and its configuration; kept in the history.

    Raises:
        ValueError: ``resume_at`` is negative, or ``every_n_steps``, ``start`` or ``stop`` is impossible.
        HistoryError: The directory holds the history of another run, as its run id or configuration hash says. It is
            left as it is.
        OSError: The directory cannot be made or written, or ``path`` is a file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns,
        *,
        resume_at: int | None = None,
        every_n_steps: EveryNSteps = 1,
        run_id: str | None = None,
        config_hash: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        if resume_at is not None and resume_at < 0:
            raise ValueError(f"resume_at must not be negative, got {resume_at}")
        self.path, self._columns = Path(path), columns
        self._schedule = Schedule(every_n_steps, start, stop)
        every = None if callable(every_n_steps) else int(every_n_steps)
        self._origin = Origin(every, run_id, config_hash, record_from=start, record_until=stop)
        self.path.mkdir(parents=True, exist_ok=True)
        self._refuse_other_run()
        parts.remove_temporary(self.path)
        self._tail: Part | None = None  # the part that ends where the next rows begin
        self._table: pa.Table | None = None  # its rows, if it may take in more
        self._end = 0  # of the steps that the parts cover
        self._last_step: int | None = None
        damage = self._drop_from(resume_at or 0)
        if resume_at:
            self._continue(resume_at, damage)

    @property
    def last_step(self) -> int | None:
        """The last step on disk, None if there is none."""
        return self._last_step

    def append(self, frame: pd.DataFrame, *, end: int | None = None) -> None:
        """Writes the rows and waits until they are on disk. An empty frame writes nothing.

        Args:
            frame: The table's columns, rows and columns in any order; other columns are left out. All steps come after
                those on disk. Statistics beyond the range of float32 (about 1e-45 to 3e38) become 0 or infinite.
            end: The step up to which the run has come, exclusive: what is not in the frame, and not yet on disk, was
                not recorded. That after the frame's last step by default.

        Raises:
            ValueError: Columns are missing, values have the wrong type, a step is not after those on disk or not before
                ``end``. Nothing is written.
            OSError: They could not be written. What was on disk is as before, and the same frame may be appended again.
        """
        if frame.empty:
            return
        table = self._columns.to_table(frame)
        bounds = pc.min_max(table["step"])
        first, last = bounds["min"].as_py(), bounds["max"].as_py()
        if first < self._end:
            raise ValueError(f"steps {first} to {last} do not follow step {self._end - 1}, the last in {self.path}")
        end = last + 1 if end is None else end
        if last >= end:
            raise ValueError(f"step {last} is not before the end, step {end}")
        self._write(table, end)
        self._last_step = last

    def cover(self, end: int) -> None:
        """Says that of the steps before ``end`` none will be appended anymore, so that they do not count as missing.

        Only needed where the numbers of the recorded steps are not all multiples of ``every_n_steps``, or where that is
        a function.
        """
        if self._tail is None or self._origin.schedule.first(self._end, end) is None:
            return
        table = self._table if self._table is not None else self._read(self._tail)
        parts.write_part(self._tail, table, self._columns, end, self._origin)
        self._end = end

    def _write(self, table: pa.Table, end: int) -> None:
        if self._tail is not None and self._table is not None:
            tail, table = self._tail, pa.concat_tables([self._table, table])
        else:
            tail = Part.at(self.path, self._end)
        parts.write_part(tail, table, self._columns, end, self._origin)
        self._end = end
        self._keep(tail, table)

    def _keep(self, tail: Part, table: pa.Table) -> None:
        self._tail, self._table = tail, table if table.num_rows < _FULL else None

    def _read(self, part: Part) -> pa.Table:
        return read_part(part, self._columns).cast(self._columns.disk)

    def _refuse_other_run(self) -> None:
        found = parts.origin_of(self.path)
        if found is None:
            return
        for name, theirs, ours in (
            ("run", found.run_id, self._origin.run_id),
            ("configuration", found.config_hash, self._origin.config_hash),
        ):
            if theirs is not None and theirs != ours:
                raise HistoryError(
                    f"{self.path} holds the history of another {name}, {theirs}: choose another directory"
                )

    # -- what is on disk when a run begins or is resumed --------------------------------------------------------------

    def _drop_from(self, step: int) -> HistoryError | None:
        """Removes all rows from ``step`` on; returns the error if the last part that is left is damaged."""
        found = parts.list_parts(self.path)
        # Backwards, so that what a crash leaves has no gap.
        while found and found[-1].start >= step:
            found.pop().path.unlink()
        sync_directory(self.path)
        if not found:
            return None
        part = found[-1]
        try:
            footer, table = parts.read_footer(part), self._read(part)
        except HistoryError as error:  # where it ends is not known
            self._end, self._last_step = step, step - 1
            return error
        if footer.first >= step:
            part.path.unlink()
            return self._drop_from(step)
        self._end, self._last_step = footer.end, footer.last
        if footer.origin is not None:
            self._origin = replace(self._origin, batchnorm=footer.origin.batchnorm, blocks=footer.origin.blocks)
        if footer.end > step:
            table = self._cut(part, table, step)
            self._end, self._last_step = step, pc.max(table["step"]).as_py()
        part.path.rename(Part.at(self.path, part.start).path)  # the name of an earlier version says how far it goes
        self._keep(Part.at(self.path, part.start), table)
        return None

    def _cut(self, part: Part, table: pa.Table, step: int) -> pa.Table:
        """Removes the rows of a part from ``step`` on; returns those that are left."""
        table = table.filter(pc.field("step") < step)
        parts.write_part(part, table, self._columns, step, self._origin)
        return table

    def _continue(self, step: int, damage: HistoryError | None) -> None:
        """Compares what is on disk with the step at which the run goes on, and warns if something is missing."""
        if missing := self._what_is_missing(step, damage):
            log.warning(
                f"{missing}. The run goes on at step {step}, and its history stays incomplete: reading it across the "
                "missing steps is an error"
            )
        if self._lacks(step):
            # What follows does not continue the last part: so the gap stays visible.
            self._end, self._tail, self._table = step, None, None

    def _what_is_missing(self, step: int, damage: HistoryError | None) -> str | None:
        if damage is not None:
            return str(damage)
        try:
            found = parts.list_parts(self.path)
            gaps = list(parts.find_gaps(found, {part: parts.read_footer(part) for part in found}, self.path))
        except HistoryError as error:
            return str(error)
        if self._lacks(step):
            gaps.append(Gap(self._end, step, (0, 0)))
        listed = ", ".join(f"{gap.start} to {gap.end - 1}" for gap in gaps)
        return f"{self.path} lacks the steps {listed}" if gaps else None

    def _lacks(self, end: int) -> bool:
        """Whether a step that should be recorded lies between what is on disk and ``end``."""
        return self._schedule.first(self._end, end) is not None


class HistoryWriter(PartsWriter):
    """Appends to a history directory. Whoever reads it, at any moment and after any crash, sees each step once.

    Args, attributes and errors are those of :class:`PartsWriter`.

    Example:
        >>> writer = HistoryWriter("new/spp.parquet")
        >>> with SignalProbe(model) as probe:
        ...     for x, y in batches:
        ...         criterion(model(x), y).backward()
        ...         writer.append(probe.collect())
        >>> writer.last_step
        1
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume_at: int | None = None,
        every_n_steps: EveryNSteps = 1,
        run_id: str | None = None,
        config_hash: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(
            path,
            HISTORY,
            resume_at=resume_at,
            every_n_steps=every_n_steps,
            run_id=run_id,
            config_hash=config_hash,
            start=start,
            stop=stop,
        )

    def append(self, frame: pd.DataFrame, *, end: int | None = None) -> None:
        """Writes the rows; ``second_moment`` is not needed. See :meth:`PartsWriter.append`.

        Of the columns ``block`` and ``role``, if they are there, the names of the blocks are kept.

        Raises:
            ValueError: As there, and for an unknown signal.
        """
        if "signal" in frame:
            check_known("signal", frame["signal"].dropna().unique(), SIGNALS)
        if {"layer", *PLACES} <= set(frame):
            self.note_blocks(blocks_in(frame))
        super().append(frame, end=end)

    def note_blocks(self, blocks: Mapping[str, int]) -> None:
        """Notes, from the next part written on, which blocks of the net are repeated: name → number."""
        self._origin = replace(self._origin, blocks=self._origin.blocks | dict(blocks))

    @property
    def batchnorm(self) -> bool | None:
        """What `note_batchnorm` noted last, also before the run was resumed; None if nothing."""
        return self._origin.batchnorm

    def note_batchnorm(self, recorded: bool) -> None:
        """Notes, from the next part written on, whether gains of batch normalizations are recorded beside it.

        So readers can tell a lost ``batchnorm.parquet`` from one that never existed. Once noted as recorded, they stay
        so.
        """
        self._origin = replace(self._origin, batchnorm=recorded or bool(self.batchnorm))


class BatchNormWriter(PartsWriter):
    """Appends the readings of a ``BatchNormProbe`` to a directory, as :class:`HistoryWriter` does with a history.

    Example:
        >>> writer = BatchNormWriter("run/batchnorm.parquet")
        >>> writer.append(probe.collect())
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume_at: int | None = None,
        every_n_steps: EveryNSteps = 1,
        run_id: str | None = None,
        config_hash: str | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(
            path,
            BATCHNORM,
            resume_at=resume_at,
            every_n_steps=every_n_steps,
            run_id=run_id,
            config_hash=config_hash,
            start=start,
            stop=stop,
        )
