"""The depth axis of the study's figures: the kinds of the layers where they fit, else their numbers and blocks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sppbench.spp.plots.axes import (
    BLOCK_COLOR,
    FONT,
    GRID_COLOR,
    POINTS_PER_INCH,
    SMALL_FONT,
    blocks_to_label,
    fits_names,
    name_blocks,
)

LONGEST_LABEL = 16  # characters of a block's label


def depth_ticks(ax: Axes, names: Sequence[str], kinds: Sequence[str], length: float, block_labels: bool = True) -> None:
    """Sets the ticks of an x axis, on which layer i of `names` lies at i.

    Args:
        ax: axes whose x axis is depth.
        names: dotted module name of each layer.
        kinds: class name of each layer.
        length: length of the depth axis in inches, as far as it is known before the layout.
        block_labels: whether to write the blocks' names above, if there is no room for the kinds.
    """
    if fits_names(len(names), length):
        ax.set_xticks(range(len(names)), labels=list(kinds))
        ax.tick_params("x", rotation=90, labelsize=SMALL_FONT, length=2, pad=1.5)
        ax.xaxis.grid(True, color=GRID_COLOR, linewidth=0.6)
        return
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))
    ax.tick_params("x", labelsize=FONT - 1, length=3)
    blocks = name_blocks(names)
    for block in blocks[1:]:
        ax.axvline(block.start - 0.5, color=BLOCK_COLOR, linewidth=0.5, zorder=0.5, gid="block boundary")
    if block_labels:
        above = ax.secondary_xaxis("top")
        labelled = blocks_to_label(blocks, length * POINTS_PER_INCH / len(names))
        above.set_xticks([block.center for block in labelled], labels=[_short_label(b.label) for b in labelled])
        above.tick_params("x", rotation=90, labelsize=SMALL_FONT, length=0, pad=2)
        above.spines[:].set_visible(False)


def _short_label(label: str) -> str:
    if len(label) <= LONGEST_LABEL:
        return label
    return "…" + label.rpartition(".")[2][1 - LONGEST_LABEL :]
