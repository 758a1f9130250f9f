"""From a history of signal propagation to figures: the panels of the study, its gradient figures, and heatmaps.

Input is a table with one row per (step, layer, signal), as a probe's `collect` and `read_history` return it, or the
output of `epoch_mean` with one row per (epoch, layer, signal). Output is a `matplotlib.figure.Figure` that pyplot does
not know of: nothing is shown, written or left open, and no backend is chosen. It is 7 inches or 910 pixels wide.

Statistics of a tensor x with channels c (Brock, De & Smith 2021): ACSM, mean_c(mean(x)²), and ACV, mean_c(var(x)), both
in units of x². With the convention "definition" they are drawn as they are. The convention "study" is for figures
beside those of the poster "Designing Normalizer-Free EfficientNets" (JKU Linz, 2025): for tensors of two or fewer
dimensions, and for all weights, its "ACSM" is the second moment mean(x²), and its "ACV" the overall variance var(x). In
one thing more it differs, which no convention can undo: for Swish it recorded the inner sigmoid; a history holds the
activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from sppbench.spp import axes as drawing
from sppbench.spp.axes import Style, Undrawn, YScale
from sppbench.spp.curves import (
    FORMULAS,
    Convention,
    Curves,
    Layers,
    Signal,
    Statistic,
    check_choice,
    check_frame,
    formula,
    select_curves,
    select_layers,
)

SIGNAL_NAMES: dict[Signal, str] = {
    "activation": "activations",
    "gradient": "gradients",
    "parameter": "weights",
    "parameter_gradient": "gradients of weights",
    "update": "updates of weights",
}
PANEL_ROWS: tuple[Signal, ...] = ("activation", "parameter", "gradient")
# Inches of depth axis, as the layout leaves them.
PANEL_WIDTH, FULL_WIDTH, HEATMAP_HEIGHT = 2.7, 6.0, 3.2
MOST_SHARP_CELLS = 300  # along one side of a heatmap; it has some 400 × 700 pixels
DEPTH_LABEL = "model depth (layers)"

# Cells of a heatmap without a logarithm. Neither colour is near to any of viridis, also for a deuteranope.
NOT_FINITE_COLOR, ZERO_COLOR, ABSENT_COLOR = "#FF00FF", "#000000", "#FFFFFF"


def plot_spp(
    frame: pd.DataFrame,
    epochs: Sequence[int] = (0, 9, 19),
    convention: Convention = "definition",
    yscale: YScale = "linear",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
) -> Figure:
    """The panels of the study: activations, weights and gradients in rows, ACSM and ACV in columns, a curve an epoch.

    A curve is the mean over all steps of its epoch (see `epoch_mean`). A value that cannot be drawn leaves a gap and a
    mark at the bottom edge, and is counted below the figure.

    Args:
        frame: a history, or one step of it, or its `epoch_mean`.
        epochs: epochs to draw, from 0; those not in the frame are left out. If none is there: first, middle and last.
        convention: "definition" or "study", see the module's docstring; the axes' labels say which statistic is drawn.
        yscale: "linear" or "log".
        layers: names of layers, or patterns such as "features.1.*"; None is all. Depth is counted over these.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers. Without them layers have the
            study's numbers: the first gate of SN-EfficientNet is layer 8.
        full_batches_only: leave steps with a smaller batch out of the mean. It needs a history.

    Returns:
        a figure with six axes, row by row. On x, depth counts the drawn layers from 0.

    Raises:
        ValueError: an unknown `convention` or `yscale`; a frame without rows or without a column that is needed;
            `layers` that match none; `full_batches_only` with a frame that is averaged already.
    """
    check_choice("yscale", yscale, get_args(YScale))
    curves = select_curves(frame, epochs, convention, layers, merges, full_batches_only)
    figure = drawing.new_figure(7.6)
    panels = figure.subplots(3, 2, sharex=True)
    undrawn = Undrawn()
    for row, signal in zip(panels, PANEL_ROWS, strict=True):
        undrawn += _draw_panel(row[0], curves, signal, "acsm", yscale, PANEL_WIDTH)
        undrawn += _draw_panel(row[1], curves, signal, "acv", yscale, PANEL_WIDTH)
    for (row_number, _), ax in np.ndenumerate(panels):
        _draw_depth(ax, curves.layers, PANEL_WIDTH, block_labels=row_number == 0)
    for ax in panels[-1]:
        ax.set_xlabel(DEPTH_LABEL, fontsize=drawing.FONT)
    _explain(figure, "Signal propagation", curves, convention, PANEL_WIDTH, undrawn)
    return figure


def plot_gradient(
    frame: pd.DataFrame,
    epochs: Sequence[int] = (0, 9, 19),
    convention: Convention = "study",
    yscale: YScale = "linear",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
) -> Figure:
    """The gradients' ACSM alone, large, as in Figures 1 and 2 of the study.

    The convention is the study's unless said otherwise, so that a feed-forward net shows second moments: batch
    normalization takes the mean out of gradients, and by its definition ACSM is zero at every Linear that feeds one.

    Arguments and errors are those of `plot_spp`.

    Returns:
        a figure with one axes. On x, depth counts the drawn layers from 0.
    """
    check_choice("yscale", yscale, get_args(YScale))
    curves = select_curves(frame, epochs, convention, layers, merges, full_batches_only)
    figure = drawing.new_figure(3.8)
    ax = figure.subplots()
    undrawn = _draw_panel(ax, curves, "gradient", "acsm", yscale, FULL_WIDTH)
    _draw_depth(ax, curves.layers, FULL_WIDTH)
    ax.set_xlabel(DEPTH_LABEL, fontsize=drawing.FONT)
    _explain(figure, "Gradient propagation", curves, convention, FULL_WIDTH, undrawn)
    return figure


def plot_heatmap(
    frame: pd.DataFrame,
    signal: Signal = "activation",
    statistic: Statistic = "second_moment",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """The whole training at a glance: depth down, steps to the right, colour the log10 of a statistic.

    Every recorded step has a column of its own, as wide as the others, also where steps between were not recorded.
    Cells that have no logarithm have colours of their own, explained below the figure.

    Args:
        frame: a history, or its `epoch_mean`, which gives a column an epoch. Needs the columns step, epoch, depth,
            layer, kind, signal and that of the statistic.
        signal: "activation", "gradient", "parameter", "parameter_gradient" or "update".
        statistic: "acsm", "acv" or "second_moment", by definition, see the module's docstring.
        layers: names of layers, or patterns such as "features.1.*"; None is all. Depth is counted over these, as in
            `plot_spp`; layers that never have this signal have a number, but no row in the image.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers.
        limits: log10 of the ends of the colour scale, to compare figures. None takes the 2nd and the 98th percentile: a
            few extreme values (the gradients of the partial batches) shall not cost all others their contrast.

    Returns:
        a figure with the axes of the heatmap first. Its first image holds the logarithms, shape (layers, steps), masked
        where there is none.

    Raises:
        ValueError: an unknown `signal` or `statistic`; a frame without rows, without rows of the signal, or without a
            column that is needed; `layers` that match none; `limits` that are not finite and in order.
    """
    check_choice("signal", signal, get_args(Signal))
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
    figure = drawing.new_figure(4.6)
    figure.suptitle(f"{SIGNAL_NAMES[signal].capitalize()} during training", fontsize=drawing.FONT)
    ax = figure.subplots()
    bar = _draw_logarithms(figure, ax, values, limits)
    bar.set_label(f"log₁₀ of {FORMULAS[statistic]}", fontsize=drawing.FONT)
    _draw_others(figure, ax, values, steps)
    drawing.depth_ticks(ax, drawn.names, drawn.kinds, HEATMAP_HEIGHT, orientation="y", numbers=depths)
    ax.set_ylabel(DEPTH_LABEL, fontsize=drawing.FONT)
    drawing.step_ticks(ax, steps, epochs)
    return figure


def _explain(figure: Figure, name: str, curves: Curves, convention: Convention, width: float, undrawn: Undrawn) -> None:
    """What is drawn, above the axes; what could not be, below."""
    title = name if convention == "definition" else f"{name}, statistics by the study's convention"
    drawing.add_legend(figure, list(curves.labels.values()), _dense(curves, width), f"{title}\n{curves.averaging}")
    drawing.add_note(figure, undrawn.note())


def _dense(curves: Curves, width: float) -> bool:
    return not drawing.fits_names(len(curves.layers.names), width)


def _draw_panel(
    ax: Axes, curves: Curves, signal: Signal, column: Literal["acsm", "acv"], yscale: YScale, width: float
) -> Undrawn:
    """One curve an epoch; returns what could not be drawn."""
    rows = curves.table[curves.table["signal"] == signal]
    ax.set_ylabel(f"{SIGNAL_NAMES[signal]}\n{formula(rows, column)}", fontsize=drawing.FONT - 0.5)
    undrawn = Undrawn()
    for index, (epoch, label) in enumerate(curves.labels.items()):
        curve = rows[rows["epoch"] == epoch].sort_values("x", kind="stable")
        x, y = curve["x"].to_numpy(np.int64), curve[column].to_numpy(np.float64)
        style = Style(index, len(curves.labels), _dense(curves, width))
        undrawn += drawing.draw_curve(ax, x, y, style, yscale, label)
    drawing.scale_values(ax, yscale, rows_of_marks=len(curves.labels) if undrawn.note() else 0)
    if rows.empty:
        drawing.say_empty(ax, f"no {SIGNAL_NAMES[signal]} in this frame")
    return undrawn


def _draw_depth(ax: Axes, layers: Layers, width: float, block_labels: bool = True) -> None:
    drawing.depth_ticks(ax, layers.names, layers.kinds, width, block_labels=block_labels)
    ax.set_xlim(-0.6, len(layers.names) - 0.4)


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
    """The image of the cells that have a logarithm, and its colour bar."""
    drawable = np.isfinite(values) & (values > 0)
    logarithms = np.ma.masked_array(np.log10(values, where=drawable, out=np.zeros_like(values)), ~drawable)
    finite = logarithms.compressed()
    low, high = limits or _percentiles(finite)
    image = _draw_image(ax, logarithms, colormaps["viridis"], low, high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    beyond = extend[bool((finite < low).any()), bool((finite > high).any())]
    bar = figure.colorbar(image, ax=ax, extend=beyond, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=drawing.FONT - 1)
    return bar


def _draw_image(ax: Axes, cells: NDArray[np.generic], colors: Colormap, low: float, high: float) -> AxesImage:
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
    _draw_image(ax, kinds, colors, 0, len(masks) - 1)
    key = {}
    for (text, color), mask in masks.items():
        if mask.any():
            first = steps[np.flatnonzero(mask.any(axis=0))[0]]
            key[f"{text}: {mask.sum():,} of {mask.size:,}, first at step {first}"] = color
    drawing.add_color_key(figure, key)


def _percentiles(logarithms: NDArray[np.float64]) -> tuple[float, float]:
    if not logarithms.size:
        return 0.0, 1.0
    low, high = np.percentile(logarithms, [2, 98])
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)
