"""Our runs beside a published figure: distance at its values, order of its curves, where its spikes are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from scipy.signal import find_peaks

from sppbench.spp.plots.curves import SIGNAL_NAMES
from sppbench.study.figures.drawing import Match
from sppbench.study.figures.drawn_runs import Values
from sppbench.study.figures.published_figures import Anchor, Curve, Merging, Order, PublishedFigure, Ratio, Spikes

MERGED = 0.1  # decades between curves that meet
RATIO = 0.1  # decades of a ratio
STUDY_SWISH = "Swish outputs, for which the study recorded the inner sigmoid"

# By seed, the drawn one first.
OfSeeds = dict[int, Values]
Judged = tuple[str, bool | None]


def match_figure(figure: PublishedFigure, of_seeds: OfSeeds) -> tuple[Match, ...]:
    """Every comparison with a published figure, judged by the drawn seed; the other seeds are given beside it.

    Args:
        figure: The published one.
        of_seeds: What the runs' figures draw by the study's convention, the drawn seed's first.
    """
    signals = list(dict.fromkeys(anchor.signal for anchor in figure.anchors))
    matches = [_match_anchors("", figure.anchors, figure.criterion, of_seeds)]
    if len(signals) > 1:
        for signal in signals:
            own = [anchor for anchor in figure.anchors if anchor.signal == signal]
            matches.append(_match_anchors(f", {SIGNAL_NAMES[signal]}", own, figure.criterion, of_seeds))
    matches += [_match_order(order, of_seeds) for order in figure.orders]
    matches += [_match_spikes(spikes, of_seeds) for spikes in figure.spikes]
    matches += [_match_ratio(ratio, of_seeds) for ratio in figure.ratios]
    matches += [_match_merging(merging, of_seeds) for merging in figure.merging]
    return tuple(matches)


def _match_anchors(what: str, anchors: Sequence[Anchor], criterion: float, of_seeds: OfSeeds) -> Match:
    fits = {seed: fit(values, anchors) for seed, values in of_seeds.items()}
    drawn = next(iter(fits.values()))
    text = "no value"
    if drawn.rmse is not None:
        text = f"{drawn.rmse:.3f}{say_seeds(fits)}"
        if (far := drawn.farthest) is not None and far.decades:
            where = f"{_name(far.anchor)}, {_epoch(far.anchor.epoch)}"
            text += f"; farthest: {where}: {number(far.ours)} for {_published(far.anchor)}"
    if not drawn.complete:
        lacking = [one.anchor for one in drawn.distances if not one.known]
        text += f"; {len(lacking)} of {len(anchors)} values are missing or not finite, first {_name(lacking[0])}"
    agrees = drawn.rmse <= criterion if drawn.rmse is not None and drawn.complete else None
    values = f"{len(anchors)} value{'s' if len(anchors) > 1 else ''}"
    return Match(f"RMSE of log10 at the peaks{what}", text, values, f"≤ {criterion:g}", agrees)


def say_seeds(fits: dict[int, Fit]) -> str:
    """The range over all seeds, if there are several whose values are all known."""
    found = [one.rmse for one in fits.values() if one.rmse is not None and one.complete]
    return f" ({len(found)} seeds: {min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""


def _match_order(order: Order, of_seeds: OfSeeds) -> Match:
    def judge(values: Values) -> Judged:
        found = {point: at(values, order.signal, order.statistic, *point).max() for point in order.points}
        if not np.isfinite(list(found.values())).all():
            return "values are missing or not finite", None
        by_size = sorted(order.points, key=lambda point: -found[point])
        text = " > ".join(f"{_point(order, point)} ({number(found[point])})" for point in by_size)
        return text, all(found[a] > found[b] for a, b in zip(order.points, order.points[1:], strict=False))

    published = " > ".join(_point(order, point) for point in order.points)
    return _judged(f"order, {_panel(order)}: {order.role}", judge, of_seeds, published, "the same order")


def _point(order: Order, point: tuple[str, int]) -> str:
    layer, epoch = point
    return layer if len({epoch for _, epoch in order.points}) == 1 else f"epoch {epoch}"


def _match_spikes(spikes: Spikes, of_seeds: OfSeeds) -> Match:
    def judge(values: Values) -> Judged:
        names = values.layers.names
        swish, others = split_numbers(spikes, names, values)
        peaks = highest_peaks(values, spikes.signal, spikes.statistic, spikes.top - len(swish))
        if len(peaks) < spikes.top - len(swish):
            return "fewer peaks" if peaks else "values are missing or not finite", None
        text = ", ".join(f"{place} {name}" for place, name in enumerate(names) if name in peaks)
        text += f"; not compared: {', '.join(map(str, swish))}, {STUDY_SWISH}" if swish else ""
        return text, all(is_named(name, others, names) for name in peaks)

    published = ", ".join(map(str, spikes.layers))
    which = "our highest peak is there" if spikes.top == 1 else f"our {spikes.top} highest peaks are there"
    return _judged(f"spikes, {_panel(spikes)}", judge, of_seeds, f"layers {published}", which)


def split_numbers(spikes: Spikes, numbered: Sequence[str], values: Values) -> tuple[list[int], list[str | int]]:
    """The published positions that are numbers of Swish outputs, and the others; `numbered` are the layers counted."""
    swish = [
        layer
        for layer in spikes.layers
        if isinstance(layer, int) and layer < len(numbered) and values.is_swish(numbered[layer])
    ]
    return swish, [layer for layer in spikes.layers if layer not in swish]


def is_named(name: str, layers: Sequence[str | int], numbered: Sequence[str]) -> bool:
    """Whether a layer is among names, patterns and numbers of layers."""
    for layer in layers:
        if isinstance(layer, int):
            if layer < len(numbered) and numbered[layer] == name:
                return True
        elif name == layer or fnmatchcase(name, layer):
            return True
    return False


def _match_ratio(ratio: Ratio, of_seeds: OfSeeds) -> Match:
    def judge(values: Values) -> Judged:
        panel = values.panel(ratio.signal, ratio.statistic)
        layers = {layer for pair in ratio.pairs for layer in pair}
        if not layers <= set(panel.index) or not values.has_all_epochs:
            return "values are missing", None
        panel = panel[list(ratio.epochs or panel.columns)]
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.log([panel.loc[above] / panel.loc[below] for above, below in ratio.pairs])
        mean = float(np.exp(logarithms.mean()))
        if not np.isfinite(mean):
            return "values are not finite, or 0", None
        low, high = np.exp(logarithms.min()), np.exp(logarithms.max())
        text = f"{mean:.3g}" + (f" ({low:.3g} to {high:.3g})" if logarithms.size > 1 else "")
        return text, decades(mean, ratio.low, ratio.high) <= RATIO

    published = f"{ratio.low:g}" if ratio.low == ratio.high else f"{ratio.low:g} to {ratio.high:g}"
    criterion = f"within {RATIO:g} in log10"
    when = f", epoch {', '.join(map(str, ratio.epochs))}" if ratio.epochs else ""
    return _judged(f"ratio, {_panel(ratio)}: {ratio.role}{when}", judge, of_seeds, published, criterion)


def _match_merging(merging: Merging, of_seeds: OfSeeds) -> Match:
    def judge(values: Values) -> Judged:
        found = at(values, merging.signal, merging.statistic, merging.layer, None)
        panel = values.panel(merging.signal, merging.statistic)
        if found.empty or not np.isfinite(panel.loc[merging.layer]).all():
            return "values are missing or not finite", None
        curve = panel.loc[merging.layer]
        apart = decades(float(curve.max()), float(curve.min()), float(curve.min()))
        return f"{apart:.3f} in log10", apart <= MERGED

    quantity = f"distance of the epochs, {_panel(merging)}: {merging.role}"
    return _judged(quantity, judge, of_seeds, "curves meet", f"≤ {MERGED:g} in log10")


def _judged(
    quantity: str, judge: Callable[[Values], Judged], of_seeds: OfSeeds, published: str, criterion: str
) -> Match:
    judged = [judge(values) for values in of_seeds.values()]
    text, agrees = judged[0]
    if len(judged) > 1:
        text += f" (agrees in {sum(one is True for _, one in judged)} of {len(judged)} seeds)"
    return Match(quantity, text, published, criterion, agrees)


def _panel(curve: Curve) -> str:
    return f"{SIGNAL_NAMES[curve.signal]}' {curve.statistic.upper()}"


def _name(anchor: Anchor) -> str:
    return f"{SIGNAL_NAMES[anchor.signal]} at {anchor.role or anchor.layer}"


def _epoch(epoch: int | None) -> str:
    return "largest of the epochs" if epoch is None else f"epoch {epoch}"


def _published(anchor: Anchor) -> str:
    return number(anchor.low) if anchor.low == anchor.high else f"{number(anchor.low)} to {number(anchor.high)}"


def number(value: float | None) -> str:
    """Three digits: 2.13e-7, 0.004."""
    mantissa, exponent, power = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(power)}" if exponent else mantissa


# -- Distances, and peaks ----------------------------------------------------------------------------------------------


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
        """Root mean square over the anchors at which the run has a value; None if it has none."""
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
    """The layers of the highest peaks (higher than both neighbors), the highest first.

    The curve is the largest over the drawn epochs. Values that are not finite are left out, and so are Swish outputs:
    there the study recorded another tensor, the inner sigmoid.
    """
    panel = values.panel(signal, statistic)
    panel = panel[[not values.is_swish(name) for name in panel.index]]
    curve = panel.where(np.isfinite(panel)).max(axis=1).dropna()
    heights = curve.to_numpy()
    # The ends are peaks if they are higher than their one neighbor.
    peaks, _ = find_peaks(np.concatenate([[-np.inf], heights, [-np.inf]]))
    order = sorted(peaks - 1, key=lambda place: -heights[place])
    return [str(curve.index[place]) for place in order[:count]]
