"""Both tables of one run while it trains: where they go, what is appended, and the means of its epochs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sppbench.spp.history.epoch_means import batchnorm_epoch_mean, epoch_mean
from sppbench.spp.history.parts import Origin
from sppbench.spp.history.placement import place_history
from sppbench.spp.history.reader import read_batchnorm, read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter
from sppbench.spp.schedule import Schedule

log = logging.getLogger(__name__)


class RunHistory:
    """The histories of a run in a directory, begun or continued.

    Means are formed of what is on disk, and only of the parts of their epoch. Where steps of an epoch are missing there
    is a warning, and no mean.

    Args:
        directory: Made if there is none.
        run: The run, which must have an id.
        resume_at: The step at which it goes on; None if it begins.
        earlier: See `place_history`.
        batchnorm: Whether there are gains of batch normalizations.
        schedule: Which steps are recorded.
        blocks: The repeated blocks of the net: name → number.

    Attributes:
        path: ``spp.parquet``, or what it is called in this directory.
        run: As given.
        resume_at: As given.
    """

    def __init__(
        self,
        directory: Path,
        run: Origin,
        *,
        resume_at: int | None,
        earlier: Path | None,
        batchnorm: bool,
        schedule: Schedule,
        blocks: Mapping[str, int],
    ) -> None:
        self.run, self.resume_at = run, resume_at
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self._gains_path = place_history(directory, run, resume=resume_at is not None, earlier=earlier)
        options: dict[str, Any] = {"resume_at": resume_at, "every_n_steps": schedule.every_n_steps}
        options |= {"start": schedule.start, "stop": schedule.stop}
        options |= {"run_id": run.run_id, "config_hash": run.config_hash}
        self._signals = HistoryWriter(self.path, **options)
        self._signals.note_blocks(blocks)
        # A frozen batch normalization has no gains: their table is made with the first ones. If there were some before
        # the run was resumed, it goes on, or is missed.
        begins = resume_at is None or self._signals.batchnorm is False
        self._gains_options = options | ({"resume_at": None} if begins else {})
        self._gains: BatchNormWriter | None = None
        if batchnorm and (not begins or self._gains_path.exists()):
            self._gains = BatchNormWriter(self._gains_path, **self._gains_options)

    def append_signals(self, rows: pd.DataFrame | None, end: int) -> None:
        """Writes what a ``SignalProbe`` recorded since the last call, until before step ``end``; None if nothing.

        Call it after :meth:`append_gains`: it also notes whether there are gains.
        """
        self._signals.note_batchnorm(self._gains is not None and self._gains.last_step is not None)
        _append(self._signals, rows, end)

    def append_gains(self, rows: pd.DataFrame | None, end: int) -> None:
        """The same of a ``BatchNormProbe``."""
        if self._gains is None and rows is not None and not rows.empty:
            self._gains = BatchNormWriter(self._gains_path, **self._gains_options)
        if self._gains is not None:
            _append(self._gains, rows, end)

    def means(self, epochs: Collection[int], steps: range | None = None) -> dict[int, pd.DataFrame]:
        """By epoch the means of the signals (see `epoch_mean`), of those epochs whose steps are all there.

        Args:
            epochs: From 0.
            steps: The steps of these epochs, if they are known; so the other parts need not be opened.
        """
        if self._signals.last_step is None or not epochs:
            return {}
        try:
            means = epoch_mean(read_history(self.path, epochs=epochs, steps=steps))
        except HistoryError as error:
            if len(epochs) == 1:
                _warn(epochs, error)
                return {}
            return {epoch: rows for one in epochs for epoch, rows in self.means([one], steps).items()}
        return {int(epoch): rows for epoch, rows in means.groupby("epoch")}

    def gains(self, epoch: int, steps: range | None = None) -> pd.DataFrame | None:
        """The means of the gains of an epoch (see `batchnorm_epoch_mean`); None if none were recorded."""
        if self._gains is None or self._gains.last_step is None:
            return None
        try:
            return batchnorm_epoch_mean(read_batchnorm(self._gains.path, epochs=epoch, steps=steps))
        except HistoryError as error:
            _warn([epoch], error)
            return None


def _append(writer: HistoryWriter | BatchNormWriter, rows: pd.DataFrame | None, end: int) -> None:
    if rows is not None:
        writer.append(rows, end=end)
    writer.cover(end)


def _warn(epochs: Collection[int], error: HistoryError) -> None:
    log.warning(f"no means of epoch {', '.join(map(str, epochs))}: {error}")
