"""Signals that are zero because a branch begins at zero or near it, which is no fault."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from sppbench.spp.names import OF_BATCH

#: A second moment below this is no signal any more for float32 arithmetic.
DEAD: Final = 1e-30

# A scale (LayerScale, a γ) below this mean square is meant to grow.
_SMALL: Final = 1e-2


def is_small(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of weights that are zero, or of scales near it: those of no more than one dimension."""
    scale = frame["ndim"] <= 1 if "ndim" in frame else pd.Series(False, index=frame.index)
    moment = frame["second_moment"]
    return (frame["signal"] == "parameter") & ((moment == 0) | (scale & (moment < _SMALL)))


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
        still = rows["step"].isin(weights.loc[is_small(weights), "step"])
        excused[rows.index] = dead & still & (rows["step"] < keys.map(since).astype(float).fillna(np.inf))
        return excused

    def _begin(self, frame: pd.DataFrame) -> None:
        self._has_begun = True
        first = frame[frame["step"] == frame["step"].iloc[0]]
        weights = first.loc[is_small(first), "layer"].unique()
        rows = first[(first["second_moment"] < DEAD) & first["signal"].isin(OF_BATCH)]
        if len(weights) and len(rows):
            self.weights, self.layers = tuple(weights), tuple(rows["layer"].unique())
            self._dead = {*zip(rows["signal"], rows["layer"], strict=True)}
