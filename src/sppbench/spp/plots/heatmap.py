"""The whole training at a glance: a statistic of every layer at every step, as color."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
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
from sppbench.spp.plots.floor import rounded_to_zero
from sppbench.spp.plots.per_sample import gradients_per_sample
from sppbench.spp.plots.row_labels import height_of_rows, label_rows
from sppbench.spp.plots.step_bins import NOT_RECORDED, Bins, StepBins

MARGINS, BAR_WIDTH = 1.5, 0.11  # inches: above and below the rows, and of the color bar

# Cells of a heatmap without a logarithm. Neither color is near to any of viridis, also for a deuteranope.
NOT_FINITE_COLOR, ZERO_COLOR, ABSENT_COLOR = "#FF00FF", "#000000", "#FFFFFF"
SMALL_BATCH_COLOR = "#D55E00"


@axes.fixed_settings()
def plot_heatmap(
    frame: pd.DataFrame,
    signal: Signal = "activation",
    statistic: Statistic = "second_moment",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    limits: tuple[float, float] | None = None,
    bins: Bins = "mean",
    per_sample: bool = False,
) -> Figure:
    """The whole training at a glance: depth down, steps to the right, color the log10 of a statistic.

    Every layer has a row of its own: the figure grows with their number. Every recorded step has a column, as wide as
    the others, also where steps between were not recorded; of more than 600, neighbors share one, which the title says.
    Cells that have no logarithm have colors of their own, explained below the figure. Zero is also what is only
    rounding: an ACSM or ACV below 2.3e-13 of the second moment, see `sppbench.spp.plots.floor`.

    Gradients of a mean loss over b samples are 1/b of each sample's own, so those of a smaller last batch are larger,
    the second moment (B/b)² times. Such columns have a mark below them. With `per_sample` the gradients are multiplied
    by b, and there is nothing to mark; see `sppbench.spp.plots.per_sample`.

    Args:
        frame: a history, or its `epoch_mean`, which gives a column per epoch. Needs the columns step, epoch, depth,
            layer, kind, signal, second_moment and that of the statistic.
        signal: "activation", "gradient", "parameter", "parameter_gradient" or "update".
        statistic: "acsm", "acv" or "second_moment", by definition, see the module's docstring.
        layers: names of layers, or patterns such as "features.1.*"; None is all. Layers that never have this signal
            have no row.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers.
        limits: log10 of the ends of the color scale, to compare figures. None takes the 2nd and the 98th percentile of
            the unmarked columns, if those are the majority: a few extreme values should not cost all others their
            contrast.
        bins: "mean" or "max", of the steps that share a column.
        per_sample: multiply gradients by the number of samples of their batch. Other signals stay as they are.

    Returns:
        a figure with the axes of the heatmap first. Its first image holds the logarithms, shape (layers, columns),
        masked where there is none.

    Raises:
        ValueError: an unknown `signal`, `statistic` or `bins`; a frame without rows, without rows of the signal, or
            without a column that is needed; `layers` that match none; `limits` that are not finite and in order;
            `per_sample` of a frame without the column samples.

    Example:
        >>> history = read_history("run/spp.parquet", signals="gradient")
        >>> figure = plot_heatmap(history, "gradient", bins="max", per_sample=True)
        >>> figure.savefig("heatmap.png")
    """
    check_choice("signal", signal, SIGNALS)
    check_choice("statistic", statistic, get_args(Statistic))
    check_choice("bins", bins, get_args(Bins))
    check_frame(frame, ("step", "epoch", "depth", "layer", "kind", "signal", "second_moment", statistic))
    if limits is not None and not -np.inf < limits[0] < limits[1] < np.inf:
        raise ValueError(f"limits must be two finite numbers in order, got {limits}")
    frame, drawn = select_layers(frame, layers, merges)
    rows = frame[frame["signal"] == signal]
    if rows.empty:
        raise ValueError(f"the frame has no rows of signal {signal!r} for these layers")
    if per_sample:
        rows = gradients_per_sample(rows)

    places = np.unique(drawn.depths(rows)).tolist()
    drawn = drawn.take(places)
    table = _pivot(rows, drawn, statistic, marked=signal == "gradient" and not per_sample)
    columns = StepBins.of(len(table.steps))
    height = height_of_rows(drawn.names)
    figure = axes.new_figure(height + MARGINS)
    ax = figure.subplots()
    bar = _draw_logarithms(figure, ax, table, columns, bins, limits, height / BAR_WIDTH)
    bar.set_label(f"log₁₀ of {FORMULAS[statistic]}", fontsize=axes.FONT)
    key = [*_draw_others(ax, table, columns, bins), *_mark_small_batches(figure, ax, table, columns)]
    depths = rows.drop_duplicates("layer").set_index("layer")["depth"].reindex(drawn.names)
    label_rows(ax, drawn.names, drawn.kinds, depths.tolist(), height)
    _step_ticks(ax, table.steps, table.epochs)
    of_samples = ", times the size of the batch" if per_sample and signal == "gradient" else ""
    title = f"{SIGNAL_NAMES[signal].capitalize()} during training{of_samples}"
    figure.suptitle("\n".join(filter(None, (title, columns.describe(bins)))), fontsize=axes.FONT)
    _add_key(figure, key)
    return figure


@dataclass(frozen=True)
class _Table:
    """A statistic by layer and recorded step.

    `values` and `rounding` have the shape (layers, steps), the others (steps,). `rounding` says where a value that is
    not zero was taken for zero, `samples` is the size of each batch, 0 where sizes are unknown or do not matter.
    """

    values: NDArray[np.float64]
    rounding: NDArray[np.bool_]
    steps: NDArray[np.int64]
    epochs: NDArray[np.int64]
    samples: NDArray[np.int64]

    @property
    def small(self) -> NDArray[np.bool_]:
        """Which steps have a smaller batch than others."""
        return np.asarray(self.samples < self.samples.max(), dtype=np.bool_)


def _pivot(rows: pd.DataFrame, layers: Layers, statistic: Statistic, marked: bool) -> _Table:
    """Of the rows of one signal; `marked` if the size of batches matters. Cells without a row are `NOT_RECORDED`."""
    columns, steps = pd.factorize(rows["step"], sort=True)
    place = layers.depths(rows), columns
    recorded, drawn = rows[statistic].to_numpy(np.float64), rounded_to_zero(rows, statistic).to_numpy(np.float64)
    values = np.full((len(layers.names), len(steps)), NOT_RECORDED)
    values[place] = drawn
    rounding = np.zeros(values.shape, dtype=np.bool_)
    rounding[place] = (drawn == 0) & (recorded != 0)
    epochs, samples = np.zeros((2, len(steps)), dtype=np.int64)
    epochs[columns] = rows["epoch"].to_numpy(np.int64)
    if marked and "samples" in rows:
        samples[columns] = rows["samples"].to_numpy(np.int64)
    return _Table(values, rounding, np.asarray(steps, dtype=np.int64), epochs, samples)


def _draw_logarithms(
    figure: Figure,
    ax: Axes,
    table: _Table,
    columns: StepBins,
    bins: Bins,
    limits: tuple[float, float] | None,
    bar_aspect: float,
) -> Colorbar:
    """The image of the cells that have a logarithm, and its color bar."""
    values = columns.values(table.values, bins)
    drawable = np.isfinite(values) & (values > 0)
    logarithms = np.ma.masked_array(np.log10(values, where=drawable, out=np.zeros_like(values)), ~drawable)
    unmarked = logarithms[:, ~columns.any(table.small)].compressed()
    finite = logarithms.compressed()
    low, high = limits or _percentiles(unmarked if 2 * unmarked.size > finite.size else finite)
    image = draw_image(ax, logarithms, columns, colormaps["viridis"], low, high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    beyond = extend[bool((finite < low).any()), bool((finite > high).any())]
    bar = figure.colorbar(image, ax=ax, extend=beyond, pad=0.01, aspect=bar_aspect)
    bar.ax.tick_params(labelsize=axes.FONT - 1)
    return bar


def draw_image(
    ax: Axes, cells: NDArray[np.generic], columns: StepBins, colors: Colormap, low: float, high: float
) -> AxesImage:
    """An image, not a mesh: as vectors, 400,000 cells would make a file of many megabytes.

    It has no color that no cell has: there are fewer columns and rows than pixels, and nothing is interpolated.
    """
    right = columns.count * columns.size - 0.5
    image = ax.imshow(
        cells,
        cmap=colors,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, right, len(cells) - 0.5, -0.5),
    )
    ax.set_xlim(-0.5, columns.steps - 0.5)  # the last column may have fewer steps
    return image


def _draw_others(ax: Axes, table: _Table, columns: StepBins, bins: Bins) -> list[Artist]:
    """Over it an image of the cells that have none; returns how many values those are, and since which step.

    The words are needed: an event of one step is thinner than a pixel if there are a thousand.
    """
    cells = columns.values(table.values, bins)
    shown = np.select([~np.isfinite(cells), cells == 0, cells < 0], [0, 1, 2], -1)
    colors = ListedColormap([NOT_FINITE_COLOR, ZERO_COLOR, ABSENT_COLOR])
    draw_image(ax, np.ma.masked_equal(shown, -1), columns, colors, 0, 2)
    zero = "zero, or only rounding" if table.rounding.any() else "zero"
    masks = {
        ("not finite", NOT_FINITE_COLOR): ~np.isfinite(table.values),
        (zero, ZERO_COLOR): table.values == 0,
        ("not recorded", ABSENT_COLOR): table.values < 0,
    }
    key: list[Artist] = []
    for (text, color), mask in masks.items():
        if mask.any():
            first = table.steps[np.flatnonzero(mask.any(axis=0))[0]]
            label = f"{text}: {mask.sum():,} of {mask.size:,}, first at step {first}"
            key.append(Patch(facecolor=color, edgecolor=axes.MARK_COLOR, label=label))
    return key


def _mark_small_batches(figure: Figure, ax: Axes, table: _Table, columns: StepBins) -> list[Artist]:
    """A triangle below each column with the gradients of a smaller batch; returns what it means."""
    places = np.flatnonzero(columns.any(table.small))
    if not places.size:
        return []
    starts = places * columns.size
    middles = (starts + np.minimum(starts + columns.size, columns.steps) - 1) / 2
    least, most = int(table.samples[table.small].min()), int(table.samples.max())
    times = f"{(most / least) ** 2:,.3g}"
    text = f"smaller batch, from {least} of {most} samples: second moments up to {times} times larger"
    style: dict[str, Any] = {"linestyle": "none", "marker": "^", "markersize": 3.0, "color": SMALL_BATCH_COLOR}
    # Just below the axes, where also a column of one pixel is seen.
    below = ScaledTranslation(0, -2.2 / axes.POINTS_PER_INCH, figure.dpi_scale_trans)
    transform = ax.get_xaxis_transform() + below
    heights = np.zeros(len(middles))
    ax.plot(middles, heights, transform=transform, clip_on=False, markeredgewidth=0, gid="smaller batch", **style)
    return [Line2D([], [], label=text, markeredgewidth=0, **style)]


def _percentiles(logarithms: NDArray[np.float64]) -> tuple[float, float]:
    if not logarithms.size:
        return 0.0, 1.0
    low, high = np.percentile(logarithms, [2, 98])
    return (low, high) if high - low > 0.1 else (low - 0.5, high + 0.5)


def _step_ticks(ax: Axes, steps: NDArray[np.int64], epochs: NDArray[np.int64]) -> None:
    """Sets the ticks of an x axis on which recorded step i lies at i: steps below, and epochs where they begin above.

    Args:
        ax: axes of a heatmap.
        steps: number of each recorded step, shape (n,), ascending.
        epochs: epoch of each of them, shape (n,).
    """
    if len(steps) < 10:
        ax.set_xticks(range(len(steps)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    ax.xaxis.set_major_formatter(axes.entry_formatter(steps.tolist()))
    ax.set_xlabel("step", fontsize=axes.FONT, labelpad=2)
    starts = np.flatnonzero(np.diff(epochs, prepend=epochs[0] - 1))
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="white", linewidth=0.4, alpha=0.6, gid="epoch boundary")
    above = ax.secondary_xaxis("top")
    # At most a dozen labels: there may be hundreds of epochs. An epoch of one column has its label above it.
    labelled = starts[:: -(-len(starts) // 12)]
    places = labelled if len(starts) == len(steps) else labelled - 0.5
    above.set_xticks(places, labels=[str(epochs[start]) for start in labelled])
    above.set_xlabel("epoch", fontsize=axes.FONT)
    for axis in (ax, above):
        axis.tick_params("x", labelsize=axes.FONT - 1, length=3)


def _add_key(figure: Figure, handles: Sequence[Artist]) -> None:
    """Says below the axes what colors and marks mean; nothing if there are none."""
    if handles:
        columns = 1 if len(handles) > 2 else len(handles)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=axes.FONT - 1, frameon=False)
