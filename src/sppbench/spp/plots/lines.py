"""How a curve is drawn: colors, line styles and markers, marks where values are missing, and the legend."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sppbench.spp.plots.axes import FONT, MARK_HEIGHT, SMALL_FONT, YScale, end_ticks_at

LineStyle = str | tuple[float, tuple[float, ...]]

# From the palette of Okabe & Ito (2008), without its yellow (too light on white) and its vermilion (too near to orange
# for a deuteranope). The first three differ most and darken with the epoch, so that grey prints keep their order.
COLORS = ("#E69F00", "#0072B2", "#000000", "#009E73", "#56B4E9", "#CC79A7")
# 5 styles and 6 colors have no common factor: 30 curves differ.
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (5, 1)), (0, (12, 1)), (0, (1, 0.8)), (0, (6, 1, 1, 1)))
CROSS, TRIANGLE = "\N{MULTIPLICATION SIGN}", "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"  # marks of values not drawn
MARKERS = ("o", "s", "D", "^", "v")
EXPECTED_COLOR = "#606060"
EXPECTED_STYLES: tuple[LineStyle, ...] = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Style:
    """How the curve number `index` of `count` is drawn; `dense` if there is no room for a marker at each layer.

    Curves lie over each other where training changes nothing. So each is thinner than the one below it and has its own
    color, line style and marker: a curve that is covered shows on both sides of those that cover it. Where layers are
    dense, dashes would look like values, so that styles only distinguish curves of the same color.
    """

    index: int
    count: int
    dense: bool

    @property
    def color(self) -> str:
        return COLORS[self.index % len(COLORS)]

    def arguments(self) -> dict[str, Any]:
        """Arguments for a `Line2D`."""
        styles_used = self.index // len(COLORS) if self.dense else self.index
        line = {"color": self.color, "linestyle": LINE_STYLES[styles_used % len(LINE_STYLES)], "markeredgewidth": 0}
        if self.dense:
            # The dots show values whose neighbours are both missing, which no line reaches.
            return {**line, "linewidth": self.from_to(1.7, 0.6), "marker": "o", "markersize": self.from_to(2.2, 1.4)}
        marker = MARKERS[self.index % len(MARKERS)]
        return {**line, "linewidth": self.from_to(2.6, 1.0), "marker": marker, "markersize": self.from_to(5.5, 2.6)}

    def from_to(self, first: float, last: float) -> float:
        """A size that goes from that of the first curve to that of the last one."""
        return first + (last - first) * self.index / max(self.count - 1, 1)


@dataclass(frozen=True)
class Undrawn:
    """How many values a curve lacks: not finite, or zero on a logarithmic axis, exactly or up to rounding."""

    nonfinite: int = 0
    zero: int = 0
    rounding: int = 0

    def __add__(self, other: Undrawn) -> Undrawn:
        sums = self.nonfinite + other.nonfinite, self.zero + other.zero, self.rounding + other.rounding
        return Undrawn(*sums)

    def note(self) -> str:
        """One line for below the figure, empty if nothing is missing."""
        parts = []
        if self.nonfinite:
            parts.append(f"{CROSS} not finite: {_values(self.nonfinite)}")
        if self.zero:
            parts.append(f"{TRIANGLE} zero, below a logarithmic axis: {_values(self.zero)}")
        if self.rounding:
            parts.append(f"{TRIANGLE} zero up to rounding, below (4ε)² mean(x²): {_values(self.rounding)}")
        return "    ".join(parts)


def _values(count: int) -> str:
    return f"{count} value{'s' if count > 1 else ''}"


def draw_curve(
    ax: Axes,
    x: NDArray[np.int64],
    y: NDArray[np.float64],
    style: Style,
    yscale: YScale,
    label: str,
    floor: NDArray[np.float64] | float = 0.0,
    breaks: bool = False,
    **look: Any,
) -> Undrawn:
    """Draws one curve; where a value cannot be drawn it has a gap, and a mark at the bottom edge of the axes.

    Args:
        ax: axes with layers on x.
        x: layers, shape (n,).
        y: values, shape (n,).
        style: of this curve.
        yscale: of the axes; on "log" values of zero cannot be drawn.
        label: for the legend.
        floor: rounding floor, a number or of shape (n,); on "log" values up to it are drawn as zero.
        breaks: whether the line breaks where layers between two of these have no value.
        look: arguments for the `Line2D` other than those of the style.
    """
    nonfinite = ~np.isfinite(y)
    zero = ~nonfinite & (y <= floor) & (yscale == "log")
    drawn = np.where(nonfinite | zero, np.nan, y)
    zorder = 2 + 0.1 * style.index
    gaps = np.flatnonzero(np.diff(x) > 1) + 1 if breaks else np.zeros(0, dtype=np.int64)
    line = np.insert(x.astype(np.float64), gaps, np.nan), np.insert(drawn, gaps, np.nan)
    ax.plot(*line, label=label, zorder=zorder, **(style.arguments() | look))
    # Each curve has its own height at the edge: the marks of epochs that died at the same layer stay apart.
    height = MARK_HEIGHT * (style.index + 0.5)
    for missing, mark, width in ((nonfinite, "x", 1.0), (zero, "v", 0.0)):
        if missing.any():
            ax.plot(
                x[missing],
                np.full(int(missing.sum()), height),
                transform=ax.get_xaxis_transform(),
                linestyle="none",
                marker=mark,
                markersize=3.0,
                markeredgewidth=width,
                color=style.color,
                zorder=zorder,
                gid="not finite" if mark == "x" else "zero",
            )
    exact = int((zero & (y <= 0)).sum())
    return Undrawn(int(nonfinite.sum()), exact, int(zero.sum()) - exact)


def draw_floor(ax: Axes, floor: float, rows_of_marks: int, words: bool = True) -> None:
    """A thin line between the values and the marks of those that are zero up to rounding, and what the floor is.

    Below it the axis has no ticks: the floors, which differ from layer to layer, may lie decades lower.

    Args:
        ax: axes whose y axis is logarithmic and has its limits.
        floor: the largest of the panel's rounding floors: what is drawn above the line is above its own.
        rows_of_marks: how many curves may have marks below it.
        words: whether to write what it is.
    """
    height = MARK_HEIGHT * rows_of_marks + 0.01
    end_ticks_at(ax, height)
    ax.plot([0, 1], [height] * 2, transform=ax.transAxes, color=EXPECTED_COLOR, linewidth=0.5, gid="rounding floor")
    if not words:
        return
    mantissa, _, power = f"{floor:.0e}".partition("e")
    ax.annotate(
        f"rounding floor, up to {mantissa}e{int(power)}",
        (1, height),
        xycoords="axes fraction",
        xytext=(0, 1),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL_FONT - 1.5,
        color=EXPECTED_COLOR,
    )


def add_key(ax: Axes, markers: Mapping[str, str]) -> None:
    """Says above the axes what markers mean, from text to marker."""
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=EXPECTED_COLOR, markersize=4.0, label=text)
        for text, marker in markers.items()
    ]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(len(handles), 5),
        fontsize=SMALL_FONT,
        frameon=False,
        borderpad=0.1,
        borderaxespad=0.2,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def expected_style(index: int, dense: bool) -> dict[str, Any]:
    """Arguments for the `Line2D` of the expected curve number `index`: thin, neutral, and above the recorded ones.

    The marks show values whose neighbours are both missing, which no line reaches.
    """
    style = EXPECTED_STYLES[index % len(EXPECTED_STYLES)]
    line = {"color": EXPECTED_COLOR, "linestyle": style, "linewidth": 1.0, "marker": "_"}
    return {**line, "markersize": 2.0 if dense else 5.0, "markeredgewidth": 1.0}


def draw_expected(
    ax: Axes, x: NDArray[np.int64], y: NDArray[np.float64], index: int, dense: bool, yscale: YScale, label: str
) -> None:
    """Draws expected values, shape (n,), over layers, shape (n,); those that cannot be drawn are gaps."""
    drawable = np.isfinite(y) & ((y > 0) | (yscale == "linear"))
    ax.plot(x, np.where(drawable, y, np.nan), label=label, zorder=3 + index, **expected_style(index, dense))


def add_legend(
    figure: Figure, labels: Sequence[str], dense: bool, title: str, expected: Mapping[int, str] | None = None
) -> None:
    """The figure's title and the curves' legend, outside the axes: on the spikes of 240 layers no corner is free.

    Args:
        figure: gets the legend.
        labels: of the curves, in the order of drawing.
        dense: as in the curves' `Style`.
        title: of the figure, one or more lines.
        expected: labels of the expected curves that are drawn, as long as they may be, by their number.
    """
    styles = [Style(index, len(labels), dense) for index in range(len(labels))]
    handles = [Line2D([], [], label=label, **style.arguments()) for style, label in zip(styles, labels, strict=True)]
    for index, label in (expected or {}).items():
        wrapped = textwrap.fill(label, max(92 - 15 * len(labels), 47))
        handles.append(Line2D([], [], label=wrapped, **expected_style(index, dense)))
    columns = 2 if expected and len(expected) > 1 else 4 if expected else 6
    # One artist, because the layout would put a title and a legend outside the axes at the same place.
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        fontsize=FONT,
        frameon=False,
        handlelength=3.5,
        title=title,
        title_fontproperties={"size": FONT},
    )
    legend.get_title().set_multialignment("center")
