"""How far a run's curves are from the published values, in decades; and where their highest peaks are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from scipy.signal import find_peaks

from sppbench.study.figures.published_figures import Anchor
from sppbench.study.figures.values import Values


@dataclass(frozen=True)
class Distance:
    """Our value at an anchor, and its distance from the published one in log10.

    Attributes:
        anchor: The published value.
        ours: None if the run has no such value; not finite if it is not.
        decades: None likewise; infinite where ours is 0.
    """

    anchor: Anchor
    ours: float | None
    decades: float | None

    @property
    def known(self) -> bool:
        return self.decades is not None


@dataclass(frozen=True)
class Fit:
    """All anchors of a figure, or of one of its rows."""

    distances: tuple[Distance, ...]

    @property
    def rmse(self) -> float | None:
        """Root mean square over the anchors that the run tells; None if there is none of them."""
        known = [distance.decades for distance in self.distances if distance.decades is not None]
        return float(np.sqrt(np.mean(np.square(known)))) if known else None

    @property
    def complete(self) -> bool:
        return all(distance.known for distance in self.distances)

    @property
    def farthest(self) -> Distance | None:
        return max((one for one in self.distances if one.known), key=lambda one: one.decades or 0.0, default=None)


def fit(values: Values, anchors: Sequence[Anchor]) -> Fit:
    """The distances of a run's curves from published values."""
    return Fit(tuple(_distance(values, anchor) for anchor in anchors))


def _distance(values: Values, anchor: Anchor) -> Distance:
    found = at(values, anchor.signal, anchor.statistic, anchor.layer, anchor.epoch)
    if found.empty or not np.isfinite(found).all():
        return Distance(anchor, None if found.empty else float("nan"), None)
    if anchor.largest:
        ours = float(found.max())
        return Distance(anchor, ours, decades(ours, anchor.low, anchor.high))
    farthest = max(found.tolist(), key=lambda value: decades(value, anchor.low, anchor.high))
    return Distance(anchor, farthest, decades(farthest, anchor.low, anchor.high))


def decades(value: float, low: float, high: float) -> float:
    """Distance in log10 of a value from a range, 0 inside; infinite for 0, if the range does not hold it."""
    with np.errstate(divide="ignore"):
        logarithm, bottom, top = np.log10([value, low, high])
    return float(max(bottom - logarithm if low > 0 else 0.0, logarithm - top, 0.0))


def at(values: Values, signal: str, statistic: str, layer: str, epoch: int | None) -> pd.Series:
    """The values at the layers of this name or pattern; those that the layers do not have are left out.

    Args:
        values: Of a run.
        signal: Which row of panels.
        statistic: Which column of panels, "acsm" or "acv".
        layer: Name or pattern.
        epoch: None is the largest of the drawn epochs; nothing if the run lacks one of them.
    """
    panel = values.panel(signal, statistic)
    panel = panel.loc[[layer]] if layer in panel.index else panel[[fnmatchcase(name, layer) for name in panel.index]]
    if epoch is None:
        return panel.max(axis=1, skipna=False) if values.has_all_epochs else pd.Series(dtype=float)
    return panel[epoch] if epoch in panel else pd.Series(dtype=float)


def highest_peaks(values: Values, signal: str, statistic: str, count: int) -> list[str]:
    """The layers of the highest peaks (higher than both neighbours), the highest first.

    The curve is the largest over the drawn epochs. Values that are not finite are left out, and so are Swish outputs:
    there the study recorded another tensor, the inner sigmoid.
    """
    panel = values.panel(signal, statistic)
    panel = panel[[not values.is_swish(name) for name in panel.index]]
    curve = panel.where(np.isfinite(panel)).max(axis=1).dropna()
    heights = curve.to_numpy()
    # The ends are peaks if they are higher than their one neighbour.
    peaks, _ = find_peaks(np.concatenate([[-np.inf], heights, [-np.inf]]))
    order = sorted(peaks - 1, key=lambda place: -heights[place])
    return [str(curve.index[place]) for place in order[:count]]
