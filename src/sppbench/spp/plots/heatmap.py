"""The whole training at a glance: a statistic of every layer at every step, as color."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sppbench.checks import check_choice
from sppbench.spp.names import SIGNALS, Signal
from sppbench.spp.plots import axes
from sppbench.spp.plots.curves import (
    FORMULAS,
    SIGNAL_NAMES,
    Layers,
    Statistic,
    check_frame,
    select_layers,
)

HEATMAP_HEIGHT = 3.2  # inches of depth axis, as the layout leaves them
MOST_SHARP_CELLS = 300  # along one side; it has some 400 × 700 pixels

# Cells of a heatmap without a logarithm. Neither color is near to any of viridis, also for a deuteranope.
NOT_FINITE_COLOR, ZERO_COLOR, ABSENT_COLOR = "#FF00FF", "#000000", "#FFFFFF"


@axes.fixed_settings()
def plot_heatmap(
    frame: pd.DataFrame,
    signal: Signal = "activation",
    statistic: Statistic = "second_moment",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """The whole training at a glance: depth down, steps to the right, color the log10 of a statistic.

    Every recorded step has a column of its own, as wide as the others, also where steps between were not recorded.
    Cells that have no logarithm have colors of their own, explained below the figure.

    Args:
        frame: a history, or its `epoch_mean`, which gives a column an epoch. Needs the columns step, epoch, depth,
            layer, kind, signal and that of the statistic.
        signal: "activation", "gradient", "parameter", "parameter_gradient" or "update".
        statistic: "acsm", "acv" or "second_moment", by definition, see the module's docstring.
        layers: names of layers, or patterns such as "features.1.*"; None is all. Depth is counted over these, as in
            `plot_spp`; layers that never have this signal have a number, but no row in the image.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers.
        limits: log10 of the ends of the color scale, to compare figures. None takes the 2nd and the 98th percentile: a
            few extreme values (the gradients of the partial batches) shall not cost all others their contrast.

    Returns:
        a figure with the axes of the heatmap first. Its first image holds the logarithms, shape (layers, steps), masked
        where there is none.

    Raises:
        ValueError: an unknown `signal` or `statistic`; a frame without rows, without rows of the signal, or without a
            column that is needed; `layers` that match none; `limits` that are not finite and in order.

    Example:
        >>> history = read_history("run/spp.parquet", signals="gradient")
        >>> figure = plot_heatmap(history, "gradient", statistic="acsm")
        >>> figure.savefig("heatmap.png")
    """
    check_choice("signal", signal, SIGNALS)
    check_choice("statistic", statistic, get_args(Statistic))
    check_frame(frame, ("step", "epoch", "depth", "layer", "kind", "signal", statistic))
    if limits is not None and not -np.inf < limits[0] < limits[1] < np.inf:
        raise ValueError(f"limits must be two finite numbers in order, got {limits}")
    frame, drawn = select_layers(frame, layers, merges)
    rows = frame[frame["signal"] == signal]
    if rows.empty:
        raise ValueError(f"the frame has no rows of signal {signal!r} for these layers")

    depths = np.unique(drawn.depths(rows)).tolist()
    drawn = drawn.take(depths)
    values, steps, epochs = _pivot(rows, drawn, statistic)
    figure = axes.new_figure(4.6)
    figure.suptitle(f"{SIGNAL_NAMES[signal].capitalize()} during training", fontsize=axes.FONT)
    ax = figure.subplots()
    bar = _draw_logarithms(figure, ax, values, limits)
    bar.set_label(f"log₁₀ of {FORMULAS[statistic]}", fontsize=axes.FONT)
    _draw_others(figure, ax, values, steps)
    axes.depth_ticks(ax, drawn.names, drawn.kinds, HEATMAP_HEIGHT, orientation="y", numbers=depths)
    ax.set_ylabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    _step_ticks(ax, steps, epochs)
    return figure


def _pivot(
    rows: pd.DataFrame, layers: Layers, statistic: Statistic
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The statistic as an array (layers, steps), the steps, shape (steps,), and the epoch of each of them.

    Minus one, which no statistic is, stands where the frame has no row.
    """
    columns, steps = pd.factorize(rows["step"], sort=True)
    values = np.full((len(layers.names), len(steps)), -1.0)
    values[layers.depths(rows), columns] = rows[statistic].to_numpy(np.float64)
    epochs = np.empty(len(steps), dtype=np.int64)
    epochs[columns] = rows["epoch"].to_numpy(np.int64)
    return values, np.asarray(steps, dtype=np.int64), epochs


def _draw_logarithms(
    figure: Figure, ax: Axes, values: NDArray[np.float64], limits: tuple[float, float] | None
) -> Colorbar:
    """The image of the cells that have a logarithm, and its color bar."""
    drawable = np.isfinite(values) & (values > 0)
    logarithms = np.ma.masked_array(np.log10(values, where=drawable, out=np.zeros_like(values)), ~drawable)
    finite = logarithms.compressed()
    low, high = limits or _percentiles(finite)
    image = draw_image(ax, logarithms, colormaps["viridis"], low, high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    beyond = extend[bool((finite < low).any()), bool((finite > high).any())]
    bar = figure.colorbar(image, ax=ax, extend=beyond, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=axes.FONT - 1)
    return bar


def draw_image(ax: Axes, cells: NDArray[np.generic], colors: Colormap, low: float, high: float) -> AxesImage:
    """An image, not a mesh: as vectors, 400,000 cells would make a file of many megabytes."""
    rows, columns = cells.shape
    # Cells larger than pixels have sharp edges; of smaller ones, none shall be left out, which "nearest" would do.
    interpolation = "nearest" if rows <= MOST_SHARP_CELLS and columns <= MOST_SHARP_CELLS else "antialiased"
    return ax.imshow(
        cells, cmap=colors, vmin=low, vmax=high, aspect="auto", origin="upper", interpolation=interpolation
    )


def _draw_others(figure: Figure, ax: Axes, values: NDArray[np.float64], steps: NDArray[np.int64]) -> None:
    """Over it an image of the cells that have none, and below the axes how many there are, and since which step.

    The words are needed: an event of one step is thinner than a pixel if there are a thousand.
    """
    masks = {
        ("not finite", NOT_FINITE_COLOR): ~np.isfinite(values),
        ("zero", ZERO_COLOR): values == 0,
        ("not recorded", ABSENT_COLOR): values < 0,
    }
    kinds = np.ma.masked_equal(np.select(list(masks.values()), range(len(masks)), -1), -1)
    colors = ListedColormap([color for _, color in masks])
    draw_image(ax, kinds, colors, 0, len(masks) - 1)
    key = {}
    for (text, color), mask in masks.items():
        if mask.any():
            first = steps[np.flatnonzero(mask.any(axis=0))[0]]
            key[f"{text}: {mask.sum():,} of {mask.size:,}, first at step {first}"] = color
    _add_color_key(figure, key)


def _percentiles(logarithms: NDArray[np.float64]) -> tuple[float, float]:
    if not logarithms.size:
        return 0.0, 1.0
    low, high = np.percentile(logarithms, [2, 98])
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _step_ticks(ax: Axes, steps: NDArray[np.int64], epochs: NDArray[np.int64]) -> None:
    """Sets the ticks of an x axis of which column i is a recorded step: steps below, and epochs where they begin above.

    Args:
        ax: axes of a heatmap.
        steps: number of each recorded step, shape (n,), ascending.
        epochs: epoch of each of them, shape (n,).
    """
    ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.xaxis.set_major_formatter(axes.entry_formatter(steps.tolist()))
    ax.set_xlabel("step", fontsize=axes.FONT)
    starts = np.flatnonzero(np.diff(epochs, prepend=epochs[0] - 1))
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="white", linewidth=0.4, alpha=0.6, gid="epoch boundary")
    above = ax.secondary_xaxis("top")
    # At most a dozen labels: there may be hundreds of epochs.
    labelled = starts[:: -(-len(starts) // 12)]
    above.set_xticks(labelled - 0.5, labels=[str(epochs[start]) for start in labelled])
    above.set_xlabel("epoch", fontsize=axes.FONT)
    for axis in (ax, above):
        axis.tick_params("x", labelsize=axes.FONT - 1, length=3)


def _add_color_key(figure: Figure, colors: Mapping[str, str]) -> None:
    """Says below the axes what colors mean, from text to color; nothing if there are none."""
    if colors:
        handles = [Patch(facecolor=color, edgecolor=axes.MARK_COLOR, label=text) for text, color in colors.items()]
        columns = 1 if len(handles) > 2 else len(handles)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=axes.FONT - 1, frameon=False)
