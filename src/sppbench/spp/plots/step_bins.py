"""Neighboring steps put together, where a heatmap has more of them than columns; layers are never put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Bins = Literal["mean", "max"]

NOT_RECORDED = -1.0  # which no statistic is
MOST_COLUMNS = 600  # the image of a heatmap is some 1,200 pixels wide


@dataclass(frozen=True)
class StepBins:
    """Columns of `size` recorded steps each, in order; the last may have fewer."""

    steps: int
    size: int

    @classmethod
    def of(cls, steps: int) -> StepBins:
        """The fewest steps to a column that so many steps allow."""
        return cls(steps, max(1, -(-steps // MOST_COLUMNS)))

    @property
    def count(self) -> int:
        return -(-self.steps // self.size)

    def describe(self, bins: Bins) -> str:
        """What a column is, in words; nothing if it is a step."""
        return "" if self.size == 1 else f"each column is the {bins} of {self.size} recorded steps"

    def values(self, values: NDArray[np.float64], bins: Bins) -> NDArray[np.float64]:
        """From the values of steps, shape (layers, steps), to those of columns, shape (layers, columns).

        Steps without a row count for nothing; a value that is not finite makes its column not finite.
        """
        if self.size == 1:
            return values
        cells = self._columns(values, NOT_RECORDED)
        if bins == "max":
            return np.asarray(cells.max(axis=-1))
        recorded = cells != NOT_RECORDED
        counts = recorded.sum(axis=-1)
        sums = np.where(recorded, cells, 0.0).sum(axis=-1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), NOT_RECORDED)

    def any(self, steps: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which columns hold one of the marked steps; from shape (steps,) to shape (columns,)."""
        return np.asarray(self._columns(steps, False).any(axis=-1))

    def _columns(self, values: NDArray[np.generic], filler: float) -> NDArray[np.generic]:
        width = [(0, 0)] * (values.ndim - 1) + [(0, self.count * self.size - self.steps)]
        return np.pad(values, width, constant_values=filler).reshape(*values.shape[:-1], self.count, self.size)
