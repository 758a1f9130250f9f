"""The rows of a heatmap, a layer each: its names where they fit, or brackets with the names of blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.markers import TICKRIGHT
from matplotlib.transforms import ScaledTranslation

from sppbench.spp.names import short_name
from sppbench.spp.plots import axes
from sppbench.spp.plots.axes import Block, name_blocks

MOST_NAMED_ROWS = 64
LEAST_HEIGHT, USUAL_HEIGHT = 2.2, 3.2  # inches, of a few rows and of more
ROOMY_HEIGHT = 0.35  # inches of a row, at most, unless there are very few
NAME_HEIGHT = 0.095  # inches, of a row or bracket with its name beside it
ROW_HEIGHT = 1 / 130  # inches, at least: two pixels, and one where the figure is shown at half its size
LONGEST_NAME = 28
LEAST_BRACKET = 4.0  # points; shorter ones would be a blot
LINE_WIDTH = 0.3  # points, of the lines between blocks


def height_of_rows(names: Sequence[str]) -> float:
    """Inches of an axis with a row for each layer, so that its labels fit and no row is thinner than a pixel."""
    labels = len(names) if len(names) <= MOST_NAMED_ROWS else len(name_blocks(names))
    usual = min(max(ROOMY_HEIGHT * len(names), LEAST_HEIGHT), USUAL_HEIGHT)
    return max(usual, NAME_HEIGHT * min(labels, MOST_NAMED_ROWS), ROW_HEIGHT * len(names))


def label_rows(ax: Axes, names: Sequence[str], kinds: Sequence[str], depths: Sequence[int], height: float) -> None:
    """Sets the ticks of a y axis on which layer i lies at i: names on the left, depths on the right.

    Args:
        ax: axes of a heatmap.
        names: dotted name of each layer.
        kinds: class name of each layer, written where the name ends in a number.
        depths: depth of each layer, as in the table.
        height: length of the axis in inches, see `height_of_rows`.
    """
    if len(names) <= MOST_NAMED_ROWS:
        ax.set_yticks(range(len(names)), labels=axes.layer_labels(names, kinds, longest=LONGEST_NAME))
        ax.tick_params("y", labelsize=axes.SMALL_FONT, length=2, pad=2)
    else:
        _draw_brackets(ax, name_blocks(names), height / len(names))
    right = ax.secondary_yaxis("right")
    places = round_places(depths)
    right.set_yticks(places, labels=[str(depths[place]) for place in places])
    right.tick_params("y", labelsize=axes.SMALL_FONT, length=2, pad=1.5)
    right.set_ylabel("depth", fontsize=axes.SMALL_FONT, labelpad=2)


def round_places(depths: Sequence[int], most: int = 9) -> list[int]:
    """Where depths are multiples of 1, 2, 5, 10, ...: the smallest of which there are at most so many.

    Example:
        >>> round_places([1, 2, 4, 7, 8, 10, 11, 15], most=3)
        [5, 7]
    """
    units = (unit * 10**power for power in itertools.count() for unit in (1, 2, 5))
    places = ([place for place, depth in enumerate(depths) if depth % unit == 0] for unit in units)
    return next(found for found in places if len(found) <= most)


def _draw_brackets(ax: Axes, blocks: Sequence[Block], inches_per_row: float) -> None:
    """Brackets beside the rows of each block, with its name where there is room: larger ones have the first choice."""
    points_per_row = inches_per_row * axes.POINTS_PER_INCH
    place = ax.get_yaxis_transform() + ScaledTranslation(-6 / axes.POINTS_PER_INCH, 0, ax.figure.dpi_scale_trans)
    style: dict[str, Any] = {"color": axes.MARK_COLOR, "linewidth": 0.6, "markeredgewidth": 0.6, "markersize": 3}
    gap = 0.75 / points_per_row  # three quarters of a point at both ends
    for block in blocks:
        if (block.stop - block.start) * points_per_row >= LEAST_BRACKET:
            ends = [block.start - 0.5 + gap, block.stop - 0.5 - gap]
            ax.plot([0, 0], ends, marker=TICKRIGHT, transform=place, clip_on=False, gid="bracket", **style)
            for end in (block.start, block.stop):
                # On rows of two pixels a line would be taken for a value.
                if 0 < end < blocks[-1].stop and points_per_row >= 3 * LINE_WIDTH:
                    ax.axhline(end - 0.5, color=axes.BLOCK_COLOR, linewidth=LINE_WIDTH, gid="block boundary")
    named = axes.blocks_to_label(blocks, points_per_row)
    ax.set_yticks([one.center for one in named], labels=[short_name(one.label, LONGEST_NAME) for one in named])
    ax.tick_params("y", labelsize=axes.SMALL_FONT, length=0, pad=8)
