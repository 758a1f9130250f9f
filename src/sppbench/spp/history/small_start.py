"""Signals that are zero because a branch begins at zero or near it, which is no fault."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from sppbench.spp.names import OF_BATCH

#: A second moment below this is no signal any more for float32 arithmetic.
DEAD: Final = 1e-30

# A scale (LayerScale, a γ) below this mean square is meant to grow.
_SMALL: Final = 1e-2


def is_small(moment: Any, ndim: Any) -> Any:
    """Which weights are zero, or scales near it: those of no more than one dimension.

    Args:
        moment: Second moments of weights, an array or a series.
        ndim: Of how many dimensions each is.
    """
    return (moment == 0) | ((ndim <= 1) & (moment < _SMALL))


class SmallStart:
    """Knows the signals that are dead from the first step on as a weight is small (see `is_small`).

    So are those of the B of LoRA, SkipInit, a γ of 0, and the gradients behind LayerScale. They are excused as long as
    such a weight is small and they have been dead in each step.

    Attributes:
        weights: Weights that are small in the first step; only those of nets with signals that are dead.
        layers: Layers with a signal that is dead in the first step, if there are such weights.
    """

    def __init__(self) -> None:
        self.weights: tuple[str, ...] = ()
        self.layers: tuple[str, ...] = ()
        self._has_begun = False
        self._dead: set[tuple[str, str]] = set()  # signals and layers that have been dead in each step so far

    def excused(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows are dead for that reason.

        Args:
            frame: The rows of some steps, in the order of the steps: those after the steps of the call before.
        """
        if not self._has_begun and len(frame):
            self._begin(frame)
        excused = pd.Series(False, index=frame.index)
        if not self._dead:
            return excused
        weights = frame[(frame["signal"] == "parameter") & frame["layer"].isin(self.weights)]
        rows = frame[frame["layer"].isin({layer for _, layer in self._dead}) & frame["signal"].isin(OF_BATCH)]
        keys = pd.Series([*zip(rows["signal"], rows["layer"], strict=True)], index=rows.index, dtype=object)
        known = keys.isin(self._dead)
        rows, keys = rows[known], keys[known]
        dead = rows["second_moment"] < DEAD
        since = rows.loc[~dead, "step"].groupby(keys[~dead]).min()  # when they are no longer
        self._dead -= {*since.index}
        still = rows["step"].isin(weights.loc[_small_among(weights), "step"])
        excused[rows.index] = dead & still & (rows["step"] < keys.map(since).astype(float).fillna(np.inf))
        return excused

    def _begin(self, frame: pd.DataFrame) -> None:
        self._has_begun = True
        first = frame[frame["step"] == frame["step"].iloc[0]]
        weights = first[first["signal"] == "parameter"]
        weights = weights.loc[_small_among(weights), "layer"].unique()
        rows = first[(first["second_moment"] < DEAD) & first["signal"].isin(OF_BATCH)]
        if len(weights) and len(rows):
            self.weights, self.layers = tuple(weights), tuple(rows["layer"].unique())
            self._dead = {*zip(rows["signal"], rows["layer"], strict=True)}


def _small_among(weights: pd.DataFrame) -> Any:
    return is_small(weights["second_moment"], weights.get("ndim", 2))
