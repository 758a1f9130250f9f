"""From a history of signal propagation to figures: of activations, weights and gradients, or of gradients alone.

Input is a table with one row per (step, layer, signal), as a probe's `collect` and `read_history` return it, or the
output of `epoch_mean` with one row per (epoch, layer, signal). Output is a `matplotlib.figure.Figure` that pyplot does
not know of: nothing is shown, written or left open, and no backend is chosen. It is 7 inches or 1820 pixels wide.

Statistics of a tensor x with channels c: the second moment mean(x²), which is drawn by default, and its two parts
(Brock, De & Smith 2021), ACSM, mean_c(mean(x)²), and ACV, mean_c(var(x)), all in units of x². With the convention
"definition" these are drawn as they are. The convention "study" is for figures beside those of the poster "Designing
Normalizer-Free EfficientNets" (JKU Linz, 2025): for tensors of two or fewer dimensions, and for all weights, its "ACSM"
is the second moment, and its "ACV" the overall variance var(x). In one thing more it differs, which no convention can
undo: for Swish it recorded the inner sigmoid; a history holds the activation.

On a logarithmic scale ACSM and ACV up to (4 ε)² mean(x²), with ε = 2⁻²³ of float32, are drawn as zero: so much is left
of a mean that cancels when all values are rounded, as that of a gradient at a Linear that feeds a batch normalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sppbench.checks import check_choice
from sppbench.spp.names import PANEL_SIGNALS, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import Convention, Curves, Statistic, select_curves
from sppbench.spp.plots.depth_panels import draw_over_depth, is_dense
from sppbench.spp.plots.groups import expected_label
from sppbench.spp.plots.lines import Undrawn
from sppbench.spp.plots.role_panels import FEWEST_BLOCKS, draw_over_blocks, has_roles
from sppbench.spp.theory.chain import Init

DepthAxis = Literal["auto", "blocks", "depth"]


@axes.fixed_settings()
def plot_spp(
    frame: pd.DataFrame,
    epochs: Sequence[int] | None = None,
    convention: Convention | None = None,
    yscale: YScale = "log",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
    expected: pd.DataFrame | Init | None = None,
    statistics: Statistic | Sequence[Statistic] | None = None,
    axis: DepthAxis = "auto",
    per_sample: bool = False,
) -> Figure:
    """Second moments of activations, weights and gradients through the net, a curve per epoch.

    Where a net has at least four equal blocks, such as a transformer or a ResNet, each role that layers have in them
    (``mlp.fc1``) has a small panel with the blocks on x; layers that are in no block, or in one only, share the last
    panel. Otherwise x is depth, and weights of each kind are a curve. A curve is the mean over all steps of its epoch
    (see `epoch_mean`). A value that cannot be drawn leaves a gap and a mark at the bottom edge, and is counted below
    the figure.

    Args:
        frame: a history, or one step of it, or its `epoch_mean`.
        epochs: epochs to draw, from 0; those not in the frame are left out. If none is named or present: the first, the
            middle and the last one.
        convention: what is meant by ACSM and ACV, "definition" or "study", see the module's docstring; if it is given,
            these two are drawn instead of the second moment. The labels say what is drawn.
        yscale: "log" or "linear".
        layers: names of layers, or patterns such as "features.1.*"; None is all. They keep their depth.
        merges: whether sums and gates (Sum, MPSum, Scale, MPScale) count as layers. Without them layers have the
            study's numbers: the first gate of SN-EfficientNet is layer 8.
        full_batches_only: leave steps with a smaller batch out of the mean. It needs a history.
        expected: values at initialization to draw as dashed lines, with their source in the legend: the table that
            `expected_of_net` makes of a net, or one like it; or "he" or "lecun", the theory of a plain chain of
            Linear, BatchNorm1d and activations with such weights, see `expected_of_chain`.
        statistics: one or more of "second_moment", "acsm" and "acv"; by default the first, or with a convention the
            other two.
        axis: "blocks" or "depth"; "auto" takes the blocks where there are four.
        per_sample: multiply gradients by the number of samples of their batch, so that smaller batches do not weigh
            more, see `sppbench.spp.plots.per_sample`. It needs a history. A table that is `expected` must then be of
            `gradients_per_sample(frame)`, too.

    Returns:
        a figure. Over depth it has a row for each signal and a column for each statistic; over blocks these are one
        below the other.

    Raises:
        ValueError: an unknown `convention`, `yscale`, `axis` or statistic; a frame without rows or without a column
            that is needed; blocks that are not in the frame; `layers` that match none; `full_batches_only` with a frame
            that is already averaged; an `expected` that is not for this net, lacks columns or says nothing about what
            is drawn.

    Example:
        >>> history = read_history("run/spp.parquet")
        >>> figure = plot_spp(history, statistics=["acsm", "acv"])
        >>> figure.savefig("panels.png")
    """
    _check(convention, yscale, axis)
    chosen = _chosen(statistics, ("second_moment",) if convention is None else ("acsm", "acv"))
    curves = select_curves(
        frame, epochs, convention or "definition", layers, merges, full_batches_only, expected, chosen, per_sample
    )
    return _draw("Signal propagation", curves, PANEL_SIGNALS, chosen, convention, yscale, axis)


@axes.fixed_settings()
def plot_gradient(
    frame: pd.DataFrame,
    epochs: Sequence[int] | None = None,
    convention: Convention | None = None,
    yscale: YScale = "log",
    layers: str | Sequence[str] | None = None,
    merges: bool = True,
    full_batches_only: bool = False,
    expected: pd.DataFrame | Init | None = None,
    axis: DepthAxis = "auto",
    per_sample: bool = False,
) -> Figure:
    """The second moments of the gradients alone, large; with a convention their ACSM.

    As in Figures 1 and 2 of the study, whose convention shows second moments for a feed-forward net, too. Batch
    normalization takes the mean out of gradients: by its definition ACSM is zero at every Linear that feeds one.

    Arguments and errors are those of `plot_spp`.

    Returns:
        a figure.

    Example:
        >>> history = read_history("run/spp.parquet", signals="gradient")
        >>> figure = plot_gradient(history, full_batches_only=True)
        >>> figure.savefig("gradients.pdf")
    """
    _check(convention, yscale, axis)
    chosen = _chosen("second_moment" if convention is None else "acsm", ())
    curves = select_curves(
        frame, epochs, convention or "definition", layers, merges, full_batches_only, expected, chosen, per_sample
    )
    return _draw("Gradient propagation", curves, ["gradient"], chosen, convention, yscale, axis)


def _check(convention: Convention | None, yscale: YScale, axis: DepthAxis) -> None:
    if convention is not None:
        check_choice("convention", convention, get_args(Convention))
    check_choice("yscale", yscale, get_args(YScale))
    check_choice("axis", axis, get_args(DepthAxis))


def _chosen(statistics: Statistic | Sequence[Statistic] | None, default: Sequence[Statistic]) -> Sequence[Statistic]:
    if statistics is None:
        return default
    chosen: list[Statistic] = [statistics] if isinstance(statistics, str) else list(dict.fromkeys(statistics))
    if not chosen:
        raise ValueError("statistics must name at least one")
    for statistic in chosen:
        check_choice("statistics", statistic, get_args(Statistic))
    return chosen


def _draw(
    name: str,
    curves: Curves,
    signals: Sequence[Signal],
    statistics: Sequence[Statistic],
    convention: Convention | None,
    yscale: YScale,
    axis: DepthAxis,
) -> Figure:
    over_blocks = axis == "blocks" or (axis == "auto" and has_roles(curves.table))
    if over_blocks and not has_roles(curves.table):
        raise ValueError(
            f"the frame does not give the roles of layers in at least {FEWEST_BLOCKS} blocks: use axis='depth'"
        )
    alone = len(signals) == 1
    if over_blocks:
        figure, undrawn = draw_over_blocks(curves, signals, statistics, yscale, *([1.3] if alone else []))
    else:
        figure, undrawn = draw_over_depth(curves, signals, statistics, yscale, *([2.6] if alone else []))
    _explain(figure, name, curves, convention, over_blocks or is_dense(curves, len(statistics)), undrawn)
    return figure


def _explain(
    figure: Figure, name: str, curves: Curves, convention: Convention | None, dense: bool, undrawn: Undrawn
) -> None:
    """What is drawn, above the axes; what could not be, below."""
    title = f"{name}, statistics by the study's convention" if convention == "study" else name
    drawn = {
        str(line.get_label())
        for ax in figure.axes
        for line in ax.get_lines()
        if np.isfinite(np.asarray(line.get_ydata(), np.float64)).any()
    }
    expected = {index: expected_label(source) for index, source in enumerate(curves.sources)}
    expected = {index: label for index, label in expected.items() if label in drawn}
    lines.add_legend(figure, list(curves.labels.values()), dense, f"{title}\n{curves.averaging}", expected)
    axes.add_note(figure, undrawn.note())
