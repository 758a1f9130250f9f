"""The page of a figure and its axes: sizes and fonts, fixed settings of matplotlib, ticks of the depth and value axes.

Nothing here knows of histories, and nothing touches pyplot.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

YScale = Literal["linear", "log"]

# 7 inches is the text width of an A4 page, and at this resolution twice the 910 pixels of a panel in W&B.
WIDTH, DPI = 7.0, 260
POINTS_PER_INCH = 72
FONT, SMALL_FONT = 8.0, 6.5
DEPTH_LABEL = "model depth (layers)"
MARK_COLOR, BLOCK_COLOR, GRID_COLOR = "#333333", "#c4c4c4", "#e6e6e6"

MARK_HEIGHT = 0.035  # of the axes, for the marks of one curve that cannot be drawn
LABEL_DISTANCE = 8.0  # points between the middles of two labels, at least
BLOCK_SHARE = 0.4  # a block that holds more than this share of all layers is divided
LONGEST_LABEL = 16  # characters of a block's label


@contextmanager
def fixed_settings() -> Iterator[None]:
    """matplotlib's default settings, whatever a ``matplotlibrc`` or a style says, for a block or as a decorator.

    Some settings are read where an artist is made, others where it is drawn: both must be within. How a file embeds its
    fonts is left to the user.
    """
    with matplotlib.rc_context(_settings()):
        yield


@functools.cache
def _settings() -> Any:  # rc_context names the keys that it takes, which change from release to release
    kept = {"backend", "backend_fallback", "interactive", "pdf.fonttype", "ps.fonttype", "svg.fonttype", "svg.hashsalt"}
    return {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in kept}


class Page(Figure):
    """A figure that is drawn and saved under `fixed_settings`."""

    def draw(self, renderer: Any) -> None:
        with fixed_settings():
            super().draw(renderer)

    def savefig(self, *arguments: Any, **keywords: Any) -> None:
        with fixed_settings():
            super().savefig(*arguments, **keywords)


def new_figure(height: float) -> Figure:
    """A figure of a page's width and `height` inches; unknown to pyplot, so that it is freed like any object.

    It is drawn and saved under `fixed_settings`, whenever that is; what is added to it is to be made under them, too.
    """
    return Page(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


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


def add_note(figure: Figure, text: str) -> None:
    """A line below the axes, if there is something to say."""
    if text:
        figure.supxlabel(text, fontsize=FONT, color=MARK_COLOR)
