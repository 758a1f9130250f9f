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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from sppbench.spp.names import short_name

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
SHORTEST_NAME = 8  # characters of a layer's name that say something
LONGEST_LABEL = 24  # characters of the name of a layer or a block


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

    @property
    def has_bracket(self) -> bool:
        """Whether there is something to put together."""
        return self.stop - self.start > 1


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
            parts = _split(names, block.start, block.stop, level + 1)
            # Not into single layers, as those of one long Sequential.
            blocks += parts if any(part.has_bracket for part in parts) else [block]
        else:
            blocks.append(block)
    return blocks


def layer_labels(
    names: Sequence[str], kinds: Sequence[str], blocks: Sequence[Block] = (), longest: int = LONGEST_LABEL
) -> list[str]:
    """A short name for each layer, without that of its block where this is written beside it.

    Where the last component is only the number in a ``Sequential``, the class says what it is, if there is room for
    both: "3 BatchNorm2d".
    """
    labels = list(names)
    for block in blocks:
        if block.has_bracket:
            for i in range(block.start, block.stop):
                labels[i] = labels[i].removeprefix(f"{block.label}.")
    texts = []
    for label, kind in zip(labels, kinds, strict=True):
        is_number = label.partition("#")[0].rpartition(".")[2].isdigit()
        rest = longest - len(kind) - 1
        both = is_number and rest >= min(len(label), SHORTEST_NAME)
        texts.append(f"{short_name(label, rest)} {kind}" if both else short_name(label, longest))
    return texts


def blocks_to_label(blocks: Sequence[Block], points_per_layer: float) -> list[Block]:
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
    block_labels: bool = True,
    numbers: Sequence[int] | None = None,
) -> None:
    """Sets the ticks of an x axis on which layer i of `names` lies at i.

    Where there is room for them the layers' names are written at the ticks; otherwise ticks are numbers, with light
    lines between blocks of layers. Brackets above the axes have the blocks' names (if there is room).

    Args:
        ax: axes whose x axis is depth.
        names: dotted module name of each layer.
        kinds: class name of each layer.
        length: length of the axis in inches, as far as it is known before the layout.
        block_labels: whether to draw the brackets.
        numbers: number of each layer, where it is not its place.
    """
    blocks = name_blocks(names)
    if fits_names(len(names), length):
        labels = layer_labels(names, kinds, blocks)
        ax.set_xticks(range(len(names)), labels=labels)
        upright = max(map(text_width, labels)) > 0.9 * length * POINTS_PER_INCH / len(names)
        ax.tick_params("x", rotation=90 if upright else 0, labelsize=SMALL_FONT, length=2, pad=1.5)
        ax.xaxis.grid(True, color=GRID_COLOR, linewidth=0.6)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
        if numbers is not None:
            ax.xaxis.set_major_formatter(entry_formatter(numbers))
        ax.tick_params("x", labelsize=FONT - 1, length=3)
        for block in blocks[1:]:
            ax.axvline(block.start - 0.5, color=BLOCK_COLOR, linewidth=0.5, zorder=0.5, gid="block boundary")
    if block_labels:
        _draw_brackets(ax, [block for block in blocks if block.has_bracket], length * POINTS_PER_INCH / len(names))


def _draw_brackets(ax: Axes, blocks: Sequence[Block], points_per_layer: float) -> None:
    """A line above each block, and the names that do not touch: along the axis if there is room for all, or upright."""
    widths = [text_width(short_name(block.label, LONGEST_LABEL)) for block in blocks]
    rooms = [(block.stop - block.start) * points_per_layer for block in blocks]
    along = all(width <= room for width, room in zip(widths, rooms, strict=True))
    labelled = list(blocks) if along else blocks_to_label(blocks, points_per_layer)
    above = ax.secondary_xaxis("top")
    labels = [short_name(block.label, LONGEST_LABEL) for block in labelled]
    above.set_xticks([block.center for block in labelled], labels=labels)
    above.tick_params("x", rotation=0 if along else 90, labelsize=SMALL_FONT, length=0, pad=4)
    above.spines[:].set_visible(False)
    for block in blocks:
        ax.plot(
            [block.start - 0.3, block.stop - 0.7],
            [1.015, 1.015],
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            color=MARK_COLOR,
            linewidth=0.8,
            gid="bracket",
        )


def text_width(label: str) -> float:
    """Of a label at a tick, in points, about."""
    return 0.55 * SMALL_FONT * len(label)


def short_number(value: float, _position: int | None = None) -> str:
    """A tick label that needs no offset text: 2e-7 and not 2e-07; 0.25; 58."""
    mantissa, exponent, power = f"{value:g}".partition("e")
    return f"{mantissa}e{int(power)}" if exponent else mantissa


def scale_values(panels: Axes | Sequence[Axes], yscale: YScale, rows_of_marks: int) -> None:
    """Sets the limits and ticks of the y axis for the curves drawn so far, which are not negative.

    Args:
        panels: axes with curves, or several that share their y axis.
        yscale: "linear", which begins a little below zero so that a curve at zero does not hide in the frame, or "log".
        rows_of_marks: how many curves may have marks at the bottom edge; the values are kept above these.
    """
    panels = [panels] if isinstance(panels, Axes) else list(panels)
    lines = [line for ax in panels for line in ax.get_lines() if line.get_transform() == ax.transData]
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    below, above = 0.045 + MARK_HEIGHT * rows_of_marks, 0.05  # shares of the axes without values
    ax = panels[0]
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
    for ax in panels:
        ax.tick_params("y", which="both", labelsize=FONT - 1)
        ax.grid(True, axis="y", color=GRID_COLOR, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


def end_ticks_at(ax: Axes, share: float) -> None:
    """Leaves out the ticks of a logarithmic y axis below a share of its length, as what is there has no scale."""
    low, high = np.log10(ax.get_ylim())
    least = 10 ** (low + share * (high - low))
    ax.yaxis.set_major_locator(_LogTicksFrom(least))
    ax.yaxis.set_minor_locator(_LogTicksFrom(least, subs=range(2, 10)))


class _LogTicksFrom(LogLocator):
    def __init__(self, least: float, **options: Any) -> None:
        super().__init__(**options)
        self._least = least

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        return [tick for tick in super().tick_values(vmin, vmax) if tick >= self._least]


def say_empty(ax: Axes, text: str) -> None:
    """Writes why there is nothing in these axes."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=FONT, color=MARK_COLOR)
    ax.set_yticks([])


def add_note(figure: Figure, text: str) -> None:
    """A line below the axes, if there is something to say."""
    if text:
        figure.supxlabel(text, fontsize=FONT, color=MARK_COLOR)
