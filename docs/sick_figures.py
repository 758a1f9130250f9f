"""Draws what docs/sick_nets.py has recorded: two panels for each section, the sick net and the cured one in both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from sppbench.spp.theory.closed_forms import batch_norm_relu_growth

Array = NDArray[np.float64]
SICK, SICK_TOO, CURED, GREY = "#D55E00", "#E69F00", "#0072B2", "#606060"
SELU_FLOOR = -1.7580993408473766


class Recorded(Protocol):
    """What a figure needs of a case of docs/sick_nets.py."""

    @property
    def history(self) -> pd.DataFrame: ...
    @property
    def attention(self) -> pd.DataFrame: ...
    @property
    def losses(self) -> list[float]: ...


Values = Callable[[Recorded], Array]


@dataclass(frozen=True)
class Panel:
    """``values`` are drawn over 0, 1, 2, ...; ``marks`` are lines across, with a name each."""

    title: str
    x: str
    values: Values
    scale: str = "log"
    marks: Mapping[float, str] | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    """The labels of the cases, in order, and what is drawn of them."""

    title: str
    labels: Mapping[str, str]
    left: Panel
    right: Panel


# -- what is drawn: one number a layer, or one a step ------------------------------------------------------------------

Column = Callable[[pd.DataFrame], Any]


def second_moment(rows: pd.DataFrame) -> Any:
    return rows["second_moment"]


def by_layer(signal: str, kind: str, of: Column = second_moment) -> Values:
    """Of the layers of a kind in the last step, in the order of execution."""

    def values(case: Recorded) -> Array:
        rows = case.history[(case.history["signal"] == signal) & (case.history["kind"] == kind)]
        rows = rows[rows["step"] == rows["step"].max()].sort_values("depth", kind="stable")
        return np.asarray(of(rows), dtype=np.float64)

    return values


def by_step(signal: str, layer: str, of: Column = second_moment) -> Values:
    """Of one layer in each step."""

    def values(case: Recorded) -> Array:
        rows = case.history[(case.history["signal"] == signal) & (case.history["layer"] == layer)]
        return np.asarray(of(rows.sort_values("step")), dtype=np.float64)

    return values


def losses(case: Recorded) -> Array:
    return np.array(case.losses)


def entropies(case: Recorded) -> Array:
    return np.asarray(case.attention[case.attention["layer"] == "blocks.0"].sort_values("step")["entropy"])


def skip_shares(case: Recorded) -> Array:
    """Of each block the second moment of the skip over that of skip and branch."""
    rows = case.history[case.history["signal"] == "activation"].sort_values("depth")
    moments = rows.set_index("layer")["second_moment"]
    branches = moments[[name for name in moments.index if name.endswith(".down")]].to_numpy()
    sums = moments[[name for name in moments.index if name.endswith(".sum")]].to_numpy()
    skips = np.concatenate([[moments["embedding"]], sums[:-1]])
    return np.asarray(skips / (skips + branches))


def update_ratios(case: Recorded) -> Array:
    """Of each weight the median over the steps of the root mean square of its update over its own."""
    history = case.history.set_index(["depth", "step"]).sort_index()
    update, weight = (history[history["signal"] == signal]["second_moment"] for signal in ("update", "parameter"))
    return np.asarray(np.sqrt(update / weight).groupby("depth").median())


# -- the pictures ------------------------------------------------------------------------------------------------------

DEPTH = "layer, from input to output"
GRADIENTS = Panel("second moment of the gradient at each Linear", DEPTH, by_layer("gradient", "Linear"))
ACTIVATIONS = Panel("second moment of the activation at each Linear", DEPTH, by_layer("activation", "Linear"))
FIRST_GRADIENT = Panel("second moment of the gradient at the first Linear", "step", by_step("gradient", "0"))
PICTURES = {
    "initialization": Picture(
        "Over thirty layers gradients die or explode by the scale of the weights alone",
        {
            "vanishing": "PyTorch's default: a factor of 1/6",
            "exploding": "normal(0, 0.15): a factor of 2.9",
            "cured": "cured: He, a factor of 1",
        },
        ACTIVATIONS,
        GRADIENTS,
    ),
    "batchnorm_depth": Picture(
        "Batch normalization holds activations, while gradients explode towards the input",
        {"sick": "60 times Linear, BatchNorm1d, ReLU", "cured": "cured: the same layers with skips"},
        dataclasses.replace(ACTIVATIONS, limits=(1e-4, 1e4)),
        GRADIENTS,
    ),
    "drowned_skip": Picture(
        "A branch that is too large hides the input of the first block",
        {"sick": "last weights of each branch: He", "cured": "cured: 0.02/√(2 · blocks), as GPT-2"},
        Panel("share of the skip in its sum with the branch", "block", skip_shares, marks={0.01: "limit"}),
        Panel("second moment of the gradient at each sum", "block", by_layer("gradient", "Sum")),
    ),
    "saturated_tanh": Picture(
        "Weights from randn push each tanh to its bounds, and gradients explode",
        {"sick": "weights from randn", "cured": "cured: Glorot"},
        Panel(
            "mean slope of each tanh (1 at most)",
            DEPTH,
            by_layer("activation", "Tanh", of=lambda rows: 1 - rows["second_moment"]),
            marks={0.05: "limit"},
        ),
        GRADIENTS,
    ),
    "dead_relus": Picture(
        "After 26 steps at this learning rate the last ReLU gives nothing but zeros",
        {"sick": "Adam, learning rate 0.3", "cured": "cured: 0.001"},
        Panel(
            "share of zeros behind the last ReLU",
            "step",
            by_step("activation", "9", of=lambda rows: rows["zeros"]),
            scale="linear",
        ),
        FIRST_GRADIENT,
    ),
    "selu_floor": Picture(
        "The last SELU is pushed to its floor, where its slope is zero",
        {"sick": "Adam, learning rate 0.05", "cured": "cured: 0.001"},
        Panel(
            "mean of the last SELU over its floor, -1.758",
            "step",
            by_step("activation", "15", of=lambda rows: rows["mean"] / SELU_FLOOR),
            scale="linear",
            marks={0.9: "limit"},
            limits=(-1.2, 1.2),
        ),
        FIRST_GRADIENT,
    ),
    "collapsed_attention": Picture(
        "Within ten steps each query of the first block looks at one key only",
        {"sick": "no 1/√d, no norm", "cured": "cured: 1/√d, queries and keys normalized"},
        Panel(
            "entropy of the first block's attention, nats",
            "step",
            entropies,
            scale="linear",
            marks={math.log(8): "eight keys alike"},
            limits=(-0.1, 2.4),
        ),
        Panel("loss", "step", losses, "linear"),
    ),
    "updates": Picture(
        "Steps that are too large throw the loss up; those too small leave it where it was",
        {"large": "Adam, learning rate 0.03", "small": "1e-8", "cured": "cured: 0.001"},
        Panel("RMS of update over RMS of weight, median", "weight", update_ratios, marks={0.1: "limit", 1e-6: "limit"}),
        Panel("loss", "step", losses),
    ),
    "underflow": Picture(
        "In float16 second moments look right, while almost all gradients are zero or subnormal",
        {"sick": "float16", "cured": "cured: float16, loss times 65,536", "float32": "float32"},
        Panel(
            "share of the gradient's elements that are 0 or subnormal",
            DEPTH,
            by_layer("gradient", "Linear", of=lambda rows: rows["zeros"] + rows["subnormal"].fillna(0)),
            scale="linear",
        ),
        GRADIENTS,
    ),
}


def draw(name: str, cases: Mapping[str, Recorded]) -> Figure:
    """The picture of a section, 7 inches wide."""
    picture = PICTURES[name]
    look = {"font.size": 8, "axes.titlesize": 8, "axes.spines.right": False, "axes.spines.top": False}
    with mpl.rc_context({**mpl.rcParamsDefault, **look}):
        figure = Figure(figsize=(7, 2.75), dpi=150, layout="constrained")
        figure.suptitle(picture.title, fontsize=9.5, fontweight="bold")
        curves = []
        for ax, panel in zip(figure.subplots(1, 2), (picture.left, picture.right), strict=True):
            curves = [_draw_curve(ax, panel, cases[case], _style(case, picture)) for case in picture.labels]
            _finish(ax, panel)
        if name == "batchnorm_depth":
            _expect_growth(figure.axes[1], GRADIENTS.values(cases["sick"]))
        labels = [*picture.labels.values()]
        figure.legend(curves, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _style(case: str, picture: Picture) -> dict[str, Any]:
    if case == "float32":
        return {"color": GREY, "linewidth": 2.2, "linestyle": (0, (1, 2))}
    color = CURED if case == "cured" else SICK if case == next(iter(picture.labels)) else SICK_TOO
    return {"color": color, "linewidth": 1.5, "marker": "o", "markersize": 2.2}


def _draw_curve(ax: Axes, panel: Panel, case: Recorded, style: dict[str, Any]) -> Line2D:
    """A curve; zeros, which a logarithmic axis does not have, are crosses at its lower end."""
    values = panel.values(case)
    is_zero = (values == 0) & (panel.scale == "log")
    (curve,) = ax.plot(np.where(is_zero, np.nan, values), **style)
    if is_zero.any():
        places, below = np.flatnonzero(is_zero), ax.get_xaxis_transform()
        color = style["color"]
        ax.plot(places, np.full(len(places), 0.02), "x", color=color, markersize=4, transform=below, clip_on=False)
        ax.text(places.mean(), 0.05, "exactly 0", color=color, ha="center", transform=below)
    return curve


def _finish(ax: Axes, panel: Panel) -> None:
    ax.set_yscale(panel.scale)
    if panel.limits is not None:
        ax.set_ylim(panel.limits)
    elif ax.texts:  # room for zeros
        low, high = np.log10(ax.get_ylim())
        ax.set_ylim(bottom=10 ** (low - 0.15 * (high - low)))
    if panel.scale == "log":
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.set_title(panel.title, loc="left")
    ax.set_xlabel(panel.x)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    style: dict[str, Any] = {"color": GREY, "fontsize": 7}
    box = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
    for value, text in (panel.marks or {}).items():
        ax.axhline(value, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        ax.annotate(text, (0.5, value), xycoords=("axes fraction", "data"), va="center", bbox=box, **style)


def _expect_growth(ax: Axes, gradients: Array) -> None:
    """The slope that theory gives, through the last hidden layer."""
    last, growth = len(gradients) - 2, batch_norm_relu_growth()
    x = np.array([0, last])
    ax.plot(x, gradients[last] * growth ** (last - x), color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    text = f"theory: a factor of {growth:.3f} a layer"
    ax.text(7, gradients[last] * growth ** (last - 4), text, color=GREY, fontsize=7)
