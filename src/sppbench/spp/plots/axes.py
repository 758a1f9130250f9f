"""How the figures of signal propagation look: sizes, colours, ticks of the depth axis, curves, marks and notes.

All of it works on axes that it is given; nothing here knows of histories, and nothing touches pyplot or its settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

YScale = Literal["linear", "log"]
LineStyle = str | tuple[float, tuple[float, ...]]

# 7 inches is the text width of an A4 page, and at this resolution 910 pixels, the width of a panel in W&B.
WIDTH, DPI = 7.0, 130
POINTS_PER_INCH = 72
FONT, SMALL_FONT = 8.0, 6.5
DEPTH_LABEL = "model depth (layers)"
MARK_COLOR, BLOCK_COLOR, GRID_COLOR = "#333333", "#c4c4c4", "#e6e6e6"

# From the palette of Okabe & Ito (2008), without its yellow (too light on white) and its vermilion (too near to orange
# for a deuteranope). The first three differ most and darken with the epoch, so that grey prints keep their order.
COLORS = ("#E69F00", "#0072B2", "#000000", "#009E73", "#56B4E9", "#CC79A7")
# 5 styles and 6 colours have no common factor: 30 curves differ.
LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (5, 1)), (0, (12, 1)), (0, (1, 0.8)), (0, (6, 1, 1, 1)))
CROSS, TRIANGLE = "\N{MULTIPLICATION SIGN}", "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"  # marks of values not drawn
MARKERS = ("o", "s", "D", "^", "v")
EXPECTED_COLOR = "#606060"
EXPECTED_STYLES: tuple[LineStyle, ...] = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))

MARK_HEIGHT = 0.035  # of the axes, for the marks of one curve
LABEL_DISTANCE = 8.0  # points between the middles of two labels, at least
BLOCK_SHARE = 0.4  # a block that holds more than this share of all layers is divided
LONGEST_LABEL = 16  # characters of a block's label


@dataclass(frozen=True)
class Block:
    """A run of neighbouring layers whose names begin alike: layers `start` to `stop - 1`, counted from 0."""

    label: str
    start: int
    stop: int

    @property
    def center(self) -> float:
        return (self.start + self.stop - 1) / 2


def name_blocks(names: Sequence[str]) -> list[Block]:
    """Divides layers into blocks by the first components of their names, in order and without gaps.

    One component is enough where it divides well (`layer1` … `layer4`); a block with more than 40 % of the layers is
    divided by the next one (`features.0` … `features.8`, beside `classifier`).

    Args:
        names: dotted module names of all layers, in order of execution.
    """
    return _split(names, 0, len(names), level=1)


def _split(names: Sequence[str], start: int, stop: int, level: int) -> list[Block]:
    prefixes = [".".join(name.split(".")[:level]) for name in names[start:stop]]
    starts = [i for i in range(len(prefixes)) if i == 0 or prefixes[i] != prefixes[i - 1]]
    blocks = []
    for first, after in zip(starts, [*starts[1:], len(prefixes)], strict=True):
        block = Block(prefixes[first], start + first, start + after)
        deeper = any(name.count(".") >= level for name in names[block.start : block.stop])
        if deeper and after - first > BLOCK_SHARE * len(names):
            blocks += _split(names, block.start, block.stop, level + 1)
        else:
            blocks.append(block)
    return blocks


def _short_label(label: str) -> str:
    if len(label) <= LONGEST_LABEL:
        return label
    return "…" + label.rpartition(".")[2][1 - LONGEST_LABEL :]


def _blocks_to_label(blocks: Sequence[Block], points_per_layer: float) -> list[Block]:
    """The blocks whose labels, written across the depth axis, do not touch; larger blocks have the first choice."""
    chosen: list[Block] = []
    for block in sorted(blocks, key=lambda block: block.start - block.stop):
        if all(abs(block.center - other.center) * points_per_layer >= LABEL_DISTANCE for other in chosen):
            chosen.append(block)
    return sorted(chosen, key=lambda block: block.start)


def fits_names(layers: int, length: float) -> bool:
    """Whether an axis of `length` inches has room for a name at each of so many layers."""
    return length * POINTS_PER_INCH >= SMALL_FONT * layers


def entry_formatter(numbers: Sequence[int]) -> FuncFormatter:
    """Writes at i the number that belongs to entry i, and nothing outside."""

    def entry(place: float, _position: int | None = None) -> str:
        return str(numbers[round(place)]) if 0 <= round(place) < len(numbers) else ""

    return FuncFormatter(entry)


def depth_ticks(
    ax: Axes,
    names: Sequence[str],
    kinds: Sequence[str],
    length: float,
    orientation: Literal["x", "y"] = "x",
    block_labels: bool = True,
    numbers: Sequence[int] | None = None,
) -> None:
    """Sets the ticks of a depth axis, on which entry i of `names` lies at i.

    Where the kinds of all layers fit beside each other they are written at the ticks; otherwise ticks are numbers, with
    light lines between blocks of layers and the blocks' names on the opposite side (those for which there is room).

    Args:
        ax: axes whose x or y axis is depth.
        names: dotted module name of each layer.
        kinds: class name of each layer.
        length: length of the depth axis in inches, as far as it is known before the layout.
        orientation: which axis of `ax` is depth.
        block_labels: whether to write the blocks' names.
        numbers: number of each layer, where it is not its place.
    """
    vertical = orientation == "x"
    axis = ax.xaxis if vertical else ax.yaxis
    rotation = 90 if vertical else 0
    if fits_names(len(names), length):
        axis.set_ticks(range(len(names)), labels=list(kinds))
        ax.tick_params(orientation, rotation=rotation, labelsize=SMALL_FONT, length=2, pad=1.5)
        if vertical:
            axis.grid(True, color=GRID_COLOR, linewidth=0.6)
        return
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
    if numbers is not None:
        axis.set_major_formatter(entry_formatter(numbers))
    ax.tick_params(orientation, labelsize=FONT - 1, length=3)
    blocks = name_blocks(names)
    draw_line = ax.axvline if vertical else ax.axhline
    for block in blocks[1:]:
        draw_line(block.start - 0.5, color=BLOCK_COLOR, linewidth=0.5, zorder=0.5, gid="block boundary")
    if block_labels:
        opposite = ax.secondary_xaxis("top") if vertical else ax.secondary_yaxis("right")
        labelled = _blocks_to_label(blocks, length * POINTS_PER_INCH / len(names))
        opposite_axis = opposite.xaxis if vertical else opposite.yaxis
        opposite_axis.set_ticks([block.center for block in labelled], labels=[_short_label(b.label) for b in labelled])
        opposite.tick_params(orientation, rotation=rotation, labelsize=SMALL_FONT, length=0, pad=2)
        opposite.spines[:].set_visible(False)


def short_number(value: float, _position: int | None = None) -> str:
    """A tick label that needs no offset text: 2e-7 and not 2e-07; 0.25; 58."""
    mantissa, exponent, power = f"{value:g}".partition("e")
    return f"{mantissa}e{int(power)}" if exponent else mantissa


@dataclass(frozen=True)
class Style:
    """How the curve number `index` of `count` is drawn; `dense` if there is no room for a marker at each layer.

    Curves lie over each other where training changes nothing. So each is thinner than the one below it and has its own
    colour, line style and marker: a curve that is covered shows on both sides of those that cover it. Where layers are
    dense, dashes would look like values, so that styles serve only to tell curves of the same colour apart.
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
            return {**line, "linewidth": self._from_to(1.7, 0.6), "marker": "o", "markersize": self._from_to(2.2, 1.4)}
        marker = MARKERS[self.index % len(MARKERS)]
        return {**line, "linewidth": self._from_to(2.6, 1.0), "marker": marker, "markersize": self._from_to(5.5, 2.6)}

    def _from_to(self, first: float, last: float) -> float:
        return first + (last - first) * self.index / max(self.count - 1, 1)


@dataclass(frozen=True)
class Undrawn:
    """How many values a curve lacks: not finite, or zero (or below) on a logarithmic axis."""

    nonfinite: int = 0
    zero: int = 0

    def __add__(self, other: Undrawn) -> Undrawn:
        return Undrawn(self.nonfinite + other.nonfinite, self.zero + other.zero)

    def note(self) -> str:
        """One line for below the figure, empty if nothing is missing."""
        parts = []
        if self.nonfinite:
            parts.append(f"{CROSS} not finite: {_values(self.nonfinite)}")
        if self.zero:
            parts.append(f"{TRIANGLE} zero, below a logarithmic axis: {_values(self.zero)}")
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
) -> Undrawn:
    """Draws one curve; where a value cannot be drawn it has a gap, and a mark at the bottom edge of the axes.

    Args:
        ax: axes with layers on x.
        x: layers, shape (n,).
        y: values, shape (n,).
        style: of this curve.
        yscale: of the axes; on "log" values of zero cannot be drawn.
        label: for the legend.
    """
    nonfinite = ~np.isfinite(y)
    zero = ~nonfinite & (y <= 0) & (yscale == "log")
    drawn = np.where(nonfinite | zero, np.nan, y)
    zorder = 2 + 0.1 * style.index
    ax.plot(x, drawn, label=label, zorder=zorder, **style.arguments())
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
    return Undrawn(int(nonfinite.sum()), int(zero.sum()))


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


def scale_values(ax: Axes, yscale: YScale, rows_of_marks: int) -> None:
    """Sets the limits and ticks of the y axis for the curves drawn so far, which are not negative.

    Args:
        ax: axes with curves.
        yscale: "linear", which begins a little below zero so that a curve at zero does not hide in the frame, or "log".
        rows_of_marks: how many curves may have marks at the bottom edge; the values are kept above these.
    """
    lines = [line for line in ax.get_lines() if line.get_transform() == ax.transData]
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    below, above = 0.045 + MARK_HEIGHT * rows_of_marks, 0.05  # shares of the axes without values
    if yscale == "log":
        ax.set_yscale("log")
        low, high = (np.log10(values.min()), np.log10(values.max())) if values.size else (-0.5, 0.5)
        # A decade at least, for ticks that can be read.
        low, high = min(low, (low + high - 1) / 2), max(high, (low + high + 1) / 2)
        room = (high - low) / (1 - below - above)
        ax.set_ylim(10 ** (low - below * room), 10 ** (high + above * room))
    else:
        high = float(values.max()) if values.size and values.max() > 0 else 1.0
        room = high / (1 - below - above)
        ax.set_ylim(-below * room, high + above * room)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(FuncFormatter(short_number))
    ax.tick_params("y", which="both", labelsize=FONT - 1)
    ax.grid(True, axis="y", color=GRID_COLOR, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def say_empty(ax: Axes, text: str) -> None:
    """Writes why there is nothing in these axes."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=FONT, color=MARK_COLOR)
    ax.set_yticks([])


def new_figure(height: float) -> Figure:
    """A figure of a page's width and `height` inches; unknown to pyplot, so that it is freed like any object."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def add_legend(figure: Figure, labels: Sequence[str], dense: bool, title: str, expected: Sequence[str] = ()) -> None:
    """The figure's title and the curves' legend, outside of the axes: on the spikes of 240 layers no corner is free.

    Args:
        figure: gets the legend.
        labels: of the curves, in the order of drawing.
        dense: as of the curves' `Style`.
        title: of the figure, one or more lines.
        expected: labels of the expected curves, as long as they may be.
    """
    styles = [Style(index, len(labels), dense) for index in range(len(labels))]
    handles = [Line2D([], [], label=label, **style.arguments()) for style, label in zip(styles, labels, strict=True)]
    for index, label in enumerate(expected):
        wrapped = textwrap.fill(label, max(92 - 15 * len(labels), 47))
        handles.append(Line2D([], [], label=wrapped, **expected_style(index, dense)))
    columns = 2 if len(expected) > 1 else 4 if expected else 6
    # One artist, because the layout would put a title and a legend outside of the axes at the same place.
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


def add_note(figure: Figure, text: str) -> None:
    """A line below the axes, if there is something to say."""
    if text:
        figure.supxlabel(text, fontsize=FONT, color=MARK_COLOR)
