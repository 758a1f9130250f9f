"""A handful of numbers that say whether signals pass, and warnings when they do not."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
import pandas as pd

from sppbench.spp.history.small_start import DEAD, SmallStart
from sppbench.spp.names import GAIN_AND_FACTORS, OF_BATCH, shortened

log = logging.getLogger(__name__)

#: A second moment above this is about to overflow.
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
    found["nonfinite_layers"] = float(signals.loc[not_finite(signals), "layer"].nunique())
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

    A signal that is dead from the first step on as a branch begins at zero or near it (see `SmallStart`) is not: that
    is logged as an information.
    """

    def __init__(self) -> None:
        self._warned: set[tuple[str, str, str]] = set()
        self._small_start: SmallStart | None = None

    def look(self, frame: pd.DataFrame) -> None:
        """Takes the rows of some steps, in the order of the steps."""
        if frame.empty:
            return
        of_small_weights = self._of_small_weights(frame)
        troubles = {
            # Weights may be zero, as those of a new branch often are.
            "is dead": (frame["second_moment"] < DEAD) & frame["signal"].isin(OF_BATCH) & ~of_small_weights,
            "has exploded": (frame["second_moment"] > EXPLODED) & np.isfinite(frame["second_moment"]),
            "is not finite": not_finite(frame),
        }
        for trouble, where in troubles.items():
            for (step, signal), rows in frame[where].groupby(["step", "signal"], sort=False):
                new = [row for row in rows.to_dict("records") if (trouble, signal, row["layer"]) not in self._warned]
                self._warned |= {(trouble, str(signal), row["layer"]) for row in new}
                if new:
                    log.warning(_message(str(signal), int(step), trouble, new))

    def _of_small_weights(self, frame: pd.DataFrame) -> pd.Series:
        is_first = self._small_start is None
        known = self._small_start = self._small_start or SmallStart()
        excused = known.excused(frame)
        if is_first and known.weights:
            weights, layers = shortened(known.weights), shortened(known.layers)
            log.info(f"no signal from the first step on, because weights start near zero ({weights}): {layers}")
        return excused


def _message(signal: str, step: int, trouble: str, rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    others = f", and at {shortened([row['layer'] for row in rows[1:]])}" if rows[1:] else ""
    return (
        f"the {signal} at {first['layer']} (layer {first['depth']}, {first['kind']}) {trouble} in step {step}: "
        f"second moment {first['second_moment']:.3g}, {first['nonfinite']} elements not finite{others}"
    )


def not_finite(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of a signal that is somewhere not finite."""
    return (frame["nonfinite"] > 0) | ~np.isfinite(frame["second_moment"])
