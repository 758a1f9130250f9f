"""Two runs side by side: their ratio at every layer and step as color, and both over the depth where they depart."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from sppbench.spp.comparison.departures import compare
from sppbench.spp.comparison.outcome import Comparison
from sppbench.spp.comparison.pairing import Pairing
from sppbench.spp.comparison.wording import headline, log_ratios
from sppbench.spp.comparison.yardsticks import second_moments
from sppbench.spp.names import OF_BATCH, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.curves import FORMULAS, SIGNAL_NAMES
from sppbench.spp.plots.heatmap import draw_image
from sppbench.spp.plots.lines import Style, Undrawn
from sppbench.spp.plots.row_labels import height_of_rows, label_rows
from sppbench.spp.plots.step_bins import StepBins

CURVES, MARGINS = 2.0, 2.1  # inches of the curves, and of all that is around and between them and the heatmaps
WIDTHS = {1: 5.6, 2: 2.7, 3: 1.7}  # of the depth axis of the curves, by the number of columns
LEAST_LIMIT = 1e-6  # of log10: what is smaller are the digits of float32
NO_RATIO_COLOR = "#BBBBBB"


def plot_compare(a: pd.DataFrame, b: pd.DataFrame, *, labels: tuple[str, str] = ("a", "b"), **options: Any) -> Figure:
    """Two runs side by side: above, b/a of the second moments by layer and step; below, both over the depth.

    White is where both agree, red where b is larger, blue where a is. The scale of each signal ends at the 98th
    percentile of its ratios: it shows small differences, too, and its numbers say how small. Gray has no ratio: a value
    is zero, not finite or missing. A ring marks the first value that departs (see :func:`compare`); the curves show its
    step, or the last step if none departs. Activations and gradients are drawn, and the signal that departs.

    Args:
        a, b: Histories, or single steps, as in :func:`compare`.
        labels: Names of the two for the legend.
        options: ``seeds``, ``rename``, ``precision``, ``tolerance`` and ``k`` of :func:`compare`.

    Returns:
        a figure. Its first axes, one a signal, have an image of log10 of b/a, shape (layers, steps); the next ones the
        curves.

    Raises:
        HistoryError, ValueError: as in :func:`compare`.

    Example:
        >>> before, after = read_history("run/spp.parquet"), read_history("run/spp.parquet")
        >>> figure = plot_compare(before, after, labels=("before", "after"))
        >>> figure.savefig("compare.png")
    """
    return plot_comparison(compare(a, b, **options), labels)


@axes.fixed_settings()
def plot_comparison(found: Comparison, labels: tuple[str, str]) -> Figure:
    """What `plot_compare` draws, of a comparison that is there already."""
    pairing = found.pairing
    signals = _signals(found)
    height = height_of_rows(_layers(pairing)[0])
    figure = axes.new_figure(height + CURVES + MARGINS)
    panels = figure.subplots(2, len(signals), squeeze=False, height_ratios=[height, CURVES])
    logs = log_ratios(found) / np.log(10)
    undrawn = Undrawn()
    for column, signal in enumerate(signals):
        above, below = panels[:, column]
        image = _draw_ratios(above, _by_layer(logs, pairing, signal), pairing, height, first=column == 0)
        _draw_scale(figure, above, image, f"{SIGNAL_NAMES[signal]}: log₁₀(b/a)")
        undrawn += _draw_curves(below, found, signal, labels, WIDTHS[len(signals)])
        below.set_title(f"step {pairing.steps[found.place]}", fontsize=axes.FONT)
        if column == 0:
            below.set_ylabel(FORMULAS["second_moment"], fontsize=axes.FONT - 0.5)
    _mark(panels, signals, found)
    dense = not axes.fits_names(pairing.layers, WIDTHS[len(signals)])
    lines.add_legend(figure, _legend(labels), dense, textwrap.fill(headline(found), 110))
    step_bins = StepBins.of(len(pairing.steps)).size
    binned = f"each column shows the largest difference in {step_bins} steps" if step_bins > 1 else ""
    axes.add_note(figure, "    ".join(filter(None, (binned, undrawn.note()))))
    return figure


def _signals(found: Comparison) -> list[Signal]:
    """Those of the batch, and that of the first departure; of others only if there is nothing else."""
    first = {found.departures[0].cell.signal} if found.departures else set()
    there = found.pairing.signals
    return [signal for signal in there if signal in {*OF_BATCH} | first] or list(there[:3])


def _legend(labels: tuple[str, str]) -> list[str]:
    return [name if name == label else f"{name}: {label}" for name, label in zip("ab", labels, strict=True)]


def _limit(logs: NDArray[np.float64]) -> float:
    sizes = np.abs(logs[np.isfinite(logs)])
    return max(float(np.percentile(sizes, 98)), LEAST_LIMIT) if len(sizes) else 1.0


def _by_layer(values: NDArray[np.float64], pairing: Pairing, signal: Signal) -> NDArray[np.float64]:
    """The values (S, C) of a signal as (layers, S), NaN for layers without it."""
    table = np.full((pairing.layers, len(values)), np.nan)
    columns = pairing.columns(signal)
    table[[pairing.cells[number].place for number in columns]] = values[:, columns].T
    return table


def _layers(pairing: Pairing) -> tuple[list[str], list[str]]:
    """Names and kinds of the layers, in the order of execution."""
    cells = {cell.place: cell for cell in pairing.cells}
    return [cells[place].layer for place in sorted(cells)], [cells[place].kind for place in sorted(cells)]


def _draw_ratios(ax: Axes, logs: NDArray[np.float64], pairing: Pairing, height: float, first: bool) -> AxesImage:
    columns = StepBins.of(len(pairing.steps))
    colors = colormaps["RdBu_r"].with_extremes(bad=NO_RATIO_COLOR)
    limit = _limit(logs)
    image = draw_image(ax, np.ma.masked_invalid(_strongest(logs, columns)), columns, colors, -limit, limit)
    if first:
        label_rows(ax, *_layers(pairing), range(pairing.layers), height)
    else:
        ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(axes.entry_formatter(pairing.steps.tolist()))
    ax.set_xlabel("step", fontsize=axes.FONT)
    ax.tick_params("x", labelsize=axes.FONT - 1, length=3)
    return image


def _strongest(logs: NDArray[np.float64], columns: StepBins) -> NDArray[np.float64]:
    """Of the steps of each column that with the largest difference; from (layers, steps) to (layers, columns)."""
    padding = columns.count * columns.size - logs.shape[1]
    cells = np.pad(logs, [(0, 0), (0, padding)], constant_values=np.nan).reshape(len(logs), columns.count, columns.size)
    places = np.nan_to_num(np.abs(cells), nan=-1.0).argmax(axis=-1)
    return np.take_along_axis(cells, places[..., None], axis=-1)[..., 0]


def _draw_scale(figure: Figure, ax: Axes, image: AxesImage, label: str) -> None:
    sizes = np.abs(np.ma.masked_invalid(np.ma.asarray(image.get_array())).compressed())
    extend = "both" if (sizes > image.get_clim()[1]).any() else "neither"
    bar = figure.colorbar(image, ax=ax, location="top", pad=0.02, aspect=30, extend=extend)
    bar.set_label(label, fontsize=axes.FONT)
    bar.ax.tick_params(labelsize=axes.FONT - 1)
    bar.ax.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(axes.short_number))


def _draw_curves(ax: Axes, found: Comparison, signal: Signal, labels: tuple[str, str], width: float) -> Undrawn:
    pairing, undrawn = found.pairing, Undrawn()
    names, kinds = _layers(pairing)
    there = np.isfinite(_by_layer(np.ones((1, len(pairing.cells))), pairing, signal)[:, 0])
    x = np.flatnonzero(there)
    for index, (values, label) in enumerate(zip((pairing.a, pairing.b), _legend(labels), strict=True)):
        y = _by_layer(second_moments(values)[[found.place]], pairing, signal)[:, 0]
        style = Style(index, 2, dense=not axes.fits_names(len(names), width))
        undrawn += lines.draw_curve(ax, x, y[there], style, "log", label)
    axes.scale_values(ax, "log", rows_of_marks=2 if undrawn.note() else 0)
    axes.depth_ticks(ax, names, kinds, width, block_labels=False)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xlabel(axes.DEPTH_LABEL, fontsize=axes.FONT)
    return undrawn


def _mark(panels: NDArray[Any], signals: list[Signal], found: Comparison) -> None:
    """A ring at the first departure, and a line at its layer below."""
    for departure in found.departures[:1]:
        above, below = panels[:, signals.index(departure.cell.signal)]
        place = departure.cell.place
        for size, color in ((10, "white"), (7.5, "black")):
            ring = {"marker": "o", "markersize": size, "fillstyle": "none", "color": color, "clip_on": False}
            above.plot([found.place], [place], gid="departure", **ring)
        below.axvline(place, color=axes.MARK_COLOR, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1, gid="departure")
