"""A handful of numbers that say whether signals pass, and warnings when they do not."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
import pandas as pd

from sppbench.spp.names import GAIN_AND_FACTORS, OF_BATCH, shortened

log = logging.getLogger(__name__)

# A second moment below the first is no signal any more for float32 arithmetic; one above the second is about to
# overflow.
DEAD: Final = 1e-30
EXPLODED: Final = 1e15


def summarize(frame: pd.DataFrame) -> dict[str, float]:
    """Scalars of one step or of one epoch's means.

    Args:
        frame: One row per (layer, signal), as from ``SignalProbe.collect`` or ``epoch_mean``.

    Returns:
        For ``activation`` and ``gradient``, as far as they are there: ``<signal>_gain``, the factor from one layer to
        the next in the order of execution (10 to the power of the least-squares slope of log10 second moment over
        depth); ``<signal>_max``, ``<signal>_min``, the largest and the smallest second moment, and
        ``<signal>_max_depth``, ``<signal>_min_depth``, where. ``dead_layers`` and ``nonfinite_layers``: at how many
        layers some signal is dead (second moment below 1e-30) or not finite.
    """
    found: dict[str, float] = {}
    for signal in OF_BATCH:
        rows = frame[(frame["signal"] == signal) & np.isfinite(frame["second_moment"])]
        if rows.empty:
            continue
        moments, depths = rows["second_moment"].to_numpy(), rows["depth"].to_numpy()
        for name, at in (("max", moments.argmax()), ("min", moments.argmin())):
            found[f"{signal}_{name}"] = float(moments[at])
            found[f"{signal}_{name}_depth"] = float(depths[at])
        alive = moments > DEAD
        if np.unique(depths[alive]).size > 1:
            slope = np.polyfit(depths[alive], np.log10(moments[alive]), 1)[0]
            found[f"{signal}_gain"] = float(10**slope)
    signals = frame[frame["signal"].isin(OF_BATCH)]
    found["dead_layers"] = float(signals.loc[signals["second_moment"] < DEAD, "layer"].nunique())
    found["nonfinite_layers"] = float(signals.loc[_nonfinite(signals), "layer"].nunique())
    return found


def summarize_batchnorm(means: pd.DataFrame) -> dict[str, float]:
    """Scalars of the backward gains of one epoch.

    Args:
        means: As from ``batchnorm_epoch_mean``, of one epoch.

    Returns:
        ``gain``, ``gamma_squared``, ``inverse_variance``, ``projection``: geometric means over the layers, so that the
        factors multiply to the gain; ``gain_max``, ``gain_min``, the largest and the smallest gain, and
        ``gain_max_depth``, ``gain_min_depth``, where, counted over the batch normalizations. Empty if no layer has a
        finite gain.
    """
    means = means[np.isfinite(means["gain"])]
    if means.empty:
        return {}
    found = {name: float(np.exp(np.log(means[name]).mean())) for name in GAIN_AND_FACTORS}
    gains, depths = means["gain"].to_numpy(), means["depth"].to_numpy()
    for end, at in (("max", gains.argmax()), ("min", gains.argmin())):
        found[f"gain_{end}"], found[f"gain_{end}_depth"] = float(gains[at]), float(depths[at])
    return found


class Watch:
    """Warns, once for each layer and kind of trouble, when a signal dies, explodes or is no longer finite.

    A signal that is zero from the first step on, as long as a weight is, as where a branch begins at zero (the B of
    LoRA, SkipInit, a γ of 0), is not dead: that is logged as an information.
    """

    def __init__(self) -> None:
        self._warned: set[tuple[str, str, str]] = set()
        self._first: int | None = None
        # Weights that were zero in the first step, and the signals and layers that have been zero ever since.
        self._zero_weights: set[str] = set()
        self._zero: set[tuple[str, str]] = set()

    def look(self, frame: pd.DataFrame) -> None:
        """Takes the rows of some steps, in the order of the steps."""
        if frame.empty:
            return
        self._look_for_zero_weights(frame)
        dead = (frame["second_moment"] < DEAD) & frame["signal"].isin(OF_BATCH)
        if self._zero:
            dead &= ~self._is_zero_by_weights(frame)
        troubles = {
            # Weights may be zero, as those of a new branch often are.
            "is dead": dead,
            "has exploded": (frame["second_moment"] > EXPLODED) & np.isfinite(frame["second_moment"]),
            "is not finite": _nonfinite(frame),
        }
        for trouble, where in troubles.items():
            for (step, signal), rows in frame[where].groupby(["step", "signal"], sort=False):
                new = [row for row in rows.to_dict("records") if (trouble, signal, row["layer"]) not in self._warned]
                self._warned |= {(trouble, str(signal), row["layer"]) for row in new}
                if new:
                    log.warning(_message(str(signal), int(step), trouble, new))

    def _look_for_zero_weights(self, frame: pd.DataFrame) -> None:
        if self._first is not None:
            return
        self._first = int(frame["step"].iloc[0])
        rows = frame[(frame["step"] == self._first) & (frame["second_moment"] == 0)]
        weights = list(rows.loc[rows["signal"] == "parameter", "layer"].unique())
        rows = rows[rows["signal"].isin(OF_BATCH)]
        if weights and len(rows):
            self._zero_weights, self._zero = {*weights}, {*zip(rows["signal"], rows["layer"], strict=True)}
            layers = shortened(list(rows["layer"].unique()))
            log.info(f"zero from the first step on, by weights that are zero ({shortened(weights)}): {layers}")

    def _is_zero_by_weights(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows are of signals that were zero in each step so far, in a step in which such a weight is zero."""
        zero = frame["second_moment"] == 0
        weights = (frame["signal"] == "parameter") & frame["layer"].isin(self._zero_weights)
        keys = pd.Series([*zip(frame["signal"], frame["layer"], strict=True)], index=frame.index)
        rows = keys.isin(self._zero) & frame["step"].isin(frame.loc[weights & zero, "step"])
        alive = keys.isin(self._zero) & ~zero
        if not alive.any():
            return rows
        since = frame.loc[alive, "step"].groupby(keys[alive]).min()
        self._zero -= {*since.index}
        return rows & (frame["step"] < keys.map(since).fillna(np.inf))


def _message(signal: str, step: int, trouble: str, rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    others = f", and at {shortened([row['layer'] for row in rows[1:]])}" if rows[1:] else ""
    return (
        f"the {signal} at {first['layer']} (layer {first['depth']}, {first['kind']}) {trouble} in step {step}: "
        f"second moment {first['second_moment']:.3g}, {first['nonfinite']} elements not finite{others}"
    )


def _nonfinite(frame: pd.DataFrame) -> pd.Series:
    return (frame["nonfinite"] > 0) | ~np.isfinite(frame["second_moment"])
