"""Signals that are zero because a branch begins at zero, which is no fault."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sppbench.spp.names import OF_BATCH


class ZeroStart:
    """Knows the signals that are zero from the first step on as a weight is: the B of LoRA, SkipInit, a γ of 0.

    They are excused as long as such a weight is zero and they have been zero in each step.

    Attributes:
        weights: Weights that are zero in the first step; only those of nets with signals that are.
        layers: Layers with a signal that is zero in the first step, if there are such weights.
    """

    def __init__(self) -> None:
        self.weights: tuple[str, ...] = ()
        self.layers: tuple[str, ...] = ()
        self._has_begun = False
        self._zero: set[tuple[str, str]] = set()  # signals and layers that have been zero in each step so far

    def excused(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows are zero for that reason.

        Args:
            frame: The rows of some steps, in the order of the steps: those after the steps of the call before.
        """
        if not self._has_begun and len(frame):
            self._begin(frame)
        excused = pd.Series(False, index=frame.index)
        if not self._zero:
            return excused
        of_weights = frame[(frame["signal"] == "parameter") & frame["layer"].isin(self.weights)]
        rows = frame[frame["layer"].isin({layer for _, layer in self._zero})]
        keys = pd.Series([*zip(rows["signal"], rows["layer"], strict=True)], index=rows.index, dtype=object)
        known = keys.isin(self._zero)
        rows, keys = rows[known], keys[known]
        zero = rows["second_moment"] == 0
        since = rows.loc[~zero, "step"].groupby(keys[~zero]).min()  # when they are no longer
        self._zero -= {*since.index}
        still = rows["step"].isin(of_weights.loc[of_weights["second_moment"] == 0, "step"])
        excused[rows.index] = zero & still & (rows["step"] < keys.map(since).astype(float).fillna(np.inf))
        return excused

    def _begin(self, frame: pd.DataFrame) -> None:
        self._has_begun = True
        rows = frame[(frame["step"] == frame["step"].iloc[0]) & (frame["second_moment"] == 0)]
        weights = rows.loc[rows["signal"] == "parameter", "layer"].unique()
        rows = rows[rows["signal"].isin(OF_BATCH)]
        if len(weights) and len(rows):
            self.weights, self.layers = tuple(weights), tuple(rows["layer"].unique())
            self._zero = {*zip(rows["signal"], rows["layer"], strict=True)}
