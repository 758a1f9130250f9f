"""A history as matrices: for each signal and column the values by step and layer, for judging all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.small_start import SmallStart, is_small

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """A layer, or a weight that is not called ``weight``.

    Attributes:
        place: Its column in the matrices, which are in the order of first execution.
        block, role: As in a history; -1 and its name if the frame does not say them.
    """

    place: int
    name: str
    kind: str
    block: int
    role: str

    @property
    def module(self) -> str:
        """Its name without the number of the call."""
        return self.name.partition("#")[0]


class StepTable:
    """A history, or epoch means of one, by step and layer.

    Args:
        frame: As from ``read_history``, ``SignalProbe.collect`` or ``epoch_mean``; of each epoch mean the last step
            stands for the epoch.

    Attributes:
        layers: In the order of first execution.
        steps: (steps,) their numbers, in order.
        counts: (steps,) how many recorded steps each stands for; 1 but in epoch means.

    Raises:
        HistoryError: The frame lacks columns.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        frame = _complete(frame)
        self._frame = frame
        codes, names = pd.factorize(frame["layer"])
        # A code is new where it is larger than all before.
        first = frame.iloc[np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))]
        order = np.argsort(first["depth"].to_numpy(), kind="stable")
        rank = np.empty(len(names), dtype=np.int64)
        rank[order] = np.arange(len(names))
        columns = [first[name].to_numpy()[order] for name in ("layer", "kind", "block", "role")]
        self.layers = [
            Layer(i, str(layer), str(kind), int(block), str(role))
            for i, (layer, kind, block, role) in enumerate(zip(*columns, strict=True))
        ]
        times = "epoch" if "steps" in frame else "step"
        self._lines, numbers = pd.factorize(frame[times], sort=True)
        self.steps = np.asarray(numbers, dtype=np.int64)
        self.counts = np.ones(len(numbers), dtype=np.int64)
        if "steps" in frame:
            np.maximum.at(self.steps, self._lines, frame["step"].to_numpy())
            np.maximum.at(self.counts, self._lines, frame["steps"].to_numpy(dtype=np.int64))
            self._frame = frame.assign(step=self.steps[self._lines])
        signals, kinds = pd.factorize(frame["signal"])
        self._rows = {str(kind): np.flatnonzero(signals == i) for i, kind in enumerate(kinds)}
        cells = self._lines * len(names) + rank[codes]
        self._cells = {signal: cells[rows] for signal, rows in self._rows.items()}
        self._small_start: Mask | None = None
        self._found: dict[tuple[str, str], Array] = {}

    def __contains__(self, signal: str) -> bool:
        return signal in self._rows

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of steps and layers."""
        return len(self.steps), len(self.layers)

    def of(self, signal: str, column: str = "second_moment") -> Array:
        """(steps, layers) values of a column; NaN where there is no row, or if the frame does not have the column."""
        if (signal, column) not in self._found:
            found = np.full(self.shape, np.nan)
            if signal in self and column in self._frame:
                found.flat[self._cells[signal]] = self._frame[column].to_numpy(np.float64)[self._rows[signal]]
            self._found[signal, column] = found
        return self._found[signal, column]

    def recorded(self, signal: str) -> Mask:
        """(steps, layers) where there is a row."""
        return self._scattered(signal, np.ones(len(self._frame), dtype=np.bool_))

    def of_small_weights(self, signal: str) -> Mask:
        """(steps, layers) where a signal is dead as a branch begins at zero or near it."""
        if self._small_start is None:
            frame = self._frame
            if (np.diff(self._lines) < 0).any():
                frame = frame.iloc[np.argsort(self._lines, kind="stable")]
            self._small_start = SmallStart().excused(frame).sort_index().to_numpy()
        return self._scattered(signal, self._small_start)

    @cached_property
    def growing(self) -> Mask:
        """(layers,) weights that begin at zero or near it, see `is_small`, and have grown since, if that is known."""
        moment = self.of("parameter")
        (first, last), (ndim, _) = ends(moment), ends(self.of("parameter", "ndim"))
        number = np.isfinite(moment).sum(axis=0)
        return np.asarray(is_small(first, ndim) & ((number == 1) | (last > first)))

    def _scattered(self, signal: str, values: Mask) -> Mask:
        found = np.zeros(self.shape, dtype=np.bool_)
        if signal in self:
            found.flat[self._cells[signal]] = values[self._rows[signal]]
        return found

    def first(self, where: Mask, recorded: Mask, at_least: int = 1) -> NDArray[np.int64]:
        """(layers,) the first line in which something is so, if it lasts, else -1.

        It lasts if from then on it is so in at least half of the steps in which the layer was recorded: what passes, as
        an outlier or a warm-up, is no finding.

        Args:
            where: (steps, layers) where it is so.
            recorded: (steps, layers) where it could be.
            at_least: In so many steps.
        """
        if not len(where):
            return np.full(where.shape[1], -1)
        first = where.argmax(axis=0)
        since = np.arange(len(where))[:, None] >= first
        times = self.counts @ (where & since)
        lasts = (times > 0) & (times >= at_least) & (2 * times >= self.counts @ (recorded & since))
        return np.where(lasts, first, -1)


def ends(values: Array) -> tuple[Array, Array]:
    """(layers,) the first and the last value of each column that is not NaN."""
    known = np.isfinite(values)
    places = known.argmax(axis=0), len(known) - 1 - known[::-1].argmax(axis=0)
    first, last = (np.take_along_axis(values, place[None], axis=0)[0] for place in places)
    return first, last


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns that frames of epoch means, or of earlier versions, may lack."""
    if missing := [name for name in ("depth", "layer", "signal") if name not in frame]:
        raise HistoryError(f"the frame lacks the columns {', '.join(missing)}")
    if "second_moment" not in frame:
        if missing := [name for name in ("acsm", "acv") if name not in frame]:
            raise HistoryError(f"the frame lacks the columns second_moment and {', '.join(missing)}")
        frame = frame.assign(second_moment=frame["acsm"] + frame["acv"])
    if "step" not in frame:
        frame = frame.assign(step=frame.get("epoch", 0))
    absent = {"kind": "", "block": -1, "role": frame["layer"]}
    frame = frame.assign(**{name: value for name, value in absent.items() if name not in frame})
    return frame.reset_index(drop=True)
