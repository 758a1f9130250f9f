"""What a panel draws: one or more groups of layers, each a curve per epoch; and which of its values are rounding."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sppbench.spp.names import OF_BATCH, OF_WEIGHTS, Signal
from sppbench.spp.plots import lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import Curves, Statistic
from sppbench.spp.plots.floor import rounding_floor
from sppbench.spp.plots.lines import MARKERS, Style, Undrawn

GAMMA: Final = "\N{GREEK SMALL LETTER GAMMA}"


class Size(Enum):
    """Of a panel: with room for a marker at each layer; without; a small one among many."""

    ROOMY = "roomy"
    DENSE = "dense"
    SMALL = "small"


@dataclass(frozen=True)
class Group:
    """Layers whose values are joined to one curve.

    Attributes:
        places: layer → place on the x axis.
        title: what they are, where a panel has several groups.
        marker: of their curves, where it is not the epoch's.
        joined: whether neighbours are joined by a line.
        breaks: whether it breaks where a place between two has no value.
    """

    places: Mapping[str, int]
    title: str = ""
    marker: str | None = None
    joined: bool = True
    breaks: bool = False

    def look(self, style: Style, size: Size) -> dict[str, Any]:
        """Arguments for the `Line2D` other than those of the epoch's style.

        Also where values coincide each epoch must be seen: lines and markers become smaller from epoch to epoch.
        """
        look: dict[str, Any] = {}
        if size == Size.SMALL:
            look = {"linewidth": style.from_to(2.6, 0.6), "markersize": style.from_to(3.4, 1.5)}
        if not self.joined:
            look |= {"linestyle": "none", "marker": "o", "markersize": style.from_to(5.5, 2.2)}
        if self.marker is not None:
            largest = 4.5 if size == Size.DENSE else 6.5
            look |= {"marker": self.marker, "markersize": style.from_to(largest, largest / 2)}
        return look


def groups_of(rows: pd.DataFrame, modules: Collection[str]) -> list[Group]:
    """The groups on the depth axis of the rows of one signal: one, but of weights one for each kind.

    A normalization's γ of 1 beside a convolution's 1e-3 would make a comb of a curve that joins them.

    Args:
        rows: of `Curves.table`.
        modules: names of layers that have activations or gradients; other weights go by names of their own.
    """
    net = rows.drop_duplicates("layer").sort_values(["x", "layer"], kind="stable")
    if rows.empty or rows["signal"].iloc[0] not in OF_WEIGHTS:
        return [Group(dict(zip(net["layer"], net["x"], strict=True)))]
    kinds = [
        _kind_of_weight(layer, kind, ndim, not modules or layer in modules)
        for layer, kind, ndim in zip(net["layer"], net["kind"], net["ndim"], strict=True)
    ]
    groups = []
    for index, kind in enumerate(dict.fromkeys(kinds)):
        of_kind = [one == kind for one in kinds]
        places = dict(zip(net["layer"][of_kind], net["x"][of_kind], strict=True))
        # Several weights of a layer, such as those of a GRU's directions, have no order that a line could show.
        joined = len(set(places.values())) == len(places)
        groups.append(Group(places, kind, MARKERS[index % len(MARKERS)], joined))
    return groups


def _kind_of_weight(layer: str, kind: str, ndim: int, is_module: bool) -> str:
    """The class, such as Conv2d; BatchNorm2d γ; of a weight with a name of its own GRU weight_ih."""
    if not is_module:
        own = re.sub(r"_l\d+(_reverse)?$", "", layer.rpartition(".")[2])
        return kind if own == kind else f"{kind} {own}"
    return f"{kind} {GAMMA}" if ndim == 1 and "norm" in kind.lower() else kind


def modules_of(table: pd.DataFrame) -> set[str]:
    """The names of layers that have activations or gradients."""
    return set(table["layer"][table["signal"].isin(OF_BATCH)])


def draw_groups(
    ax: Axes,
    curves: Curves,
    signal: Signal,
    statistic: Statistic,
    groups: Sequence[Group],
    yscale: YScale,
    size: Size,
) -> Undrawn:
    """Draws a curve for each epoch and group, and the expected ones above them; returns what could not be drawn."""
    rows = curves.table[curves.table["signal"] == signal]
    expected = curves.expected[curves.expected["signal"] == signal]
    undrawn = Undrawn()
    dense = size != Size.ROOMY
    for group in groups:
        for index, (epoch, label) in enumerate(curves.labels.items()):
            style = Style(index, len(curves.labels), dense)
            curve, x = _of_group(rows[rows["epoch"] == epoch], group)
            undrawn += lines.draw_curve(
                ax,
                x,
                curve[statistic].to_numpy(np.float64),
                style,
                yscale,
                f"{label}, {group.title}" if group.title else label,
                floor=floor_of(curve, statistic),
                breaks=group.breaks,
                **group.look(style, size),
            )
        for index, source in enumerate(curves.sources):
            values, x = _of_group(expected[expected["source"] == source], group)
            y = values[statistic].to_numpy(np.float64)
            lines.draw_expected(ax, x, y, index, dense, yscale, expected_label(source))
    return undrawn


def _of_group(rows: pd.DataFrame, group: Group) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The rows of a group's layers in order of their places, and these."""
    places = rows["layer"].map(group.places)
    order = places.dropna().sort_values(kind="stable")
    return rows.loc[order.index], order.to_numpy(np.int64)


def floor_of(rows: pd.DataFrame, statistic: Statistic) -> NDArray[np.float64]:
    """Below which value ACSM and ACV by definition are rounding, row by row; 0 for other statistics."""
    if statistic == "second_moment":
        return np.zeros(len(rows))
    floor = rounding_floor(rows).to_numpy(np.float64)
    return np.where(rows["departs"].to_numpy(bool) | ~np.isfinite(floor), 0.0, floor)


def expected_label(source: str) -> str:
    return f"expected at initialization ({source})"
