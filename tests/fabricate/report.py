"""Drawings and claims that no run stands behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sppbench.spp.plots.axes import new_figure
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.figures.drawing import Drawing, Look, Match, Panel

EPOCHS = ("epoch 0", "epoch 9", "epoch 19")
# Of curves; all others have the same color.
COLORS = {"epoch 0": "#e69f00", "epoch 9": "#0072b2", "epoch 19": "#000000", "γ²": "#cc79a7", "p": "#009e73"}


def make_drawing(
    name: str,
    panels: Sequence[Panel],
    curves: pd.DataFrame,
    over: Sequence[str] = (),
    dashed: Sequence[str] = (),
    caption: str = "What is drawn.",
    matches: tuple[Match, ...] = (),
) -> Drawing:
    """A drawing whose figure on paper is empty."""
    looks = {
        curve: Look(COLORS.get(curve, "#56b4e9"), "--" if curve in dashed else "-", over=curve in over)
        for curve in dict.fromkeys(curves["curve"])
    }
    return Drawing(name, f"Title of {name}", caption, tuple(panels), curves, looks, new_figure(2.0), matches)


def make_curve(
    panel: str,
    curve: str,
    values: Sequence[float],
    half: float = np.nan,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Rows of `Drawing.curves`, with a band from ``value / (1 + half)`` to ``value · (1 + half)``."""
    value = np.asarray(values, dtype=np.float64)
    layers = names or [f"block{i}.linear" for i in range(len(value))]
    rows = {"panel": panel, "curve": curve, "x": np.arange(len(value)), "name": layers, "value": value}
    return pd.DataFrame({**rows, "low": value / (1 + half), "high": value * (1 + half)})


def profiles(name: str, layers: int) -> Drawing:
    """Three rows and two columns of panels, a curve per epoch: as Figures 3 to 5."""
    random = np.random.default_rng(layers)
    panels, frames = [], []
    for row, signal in enumerate(("activations", "weights", "gradients")):
        for column, statistic in enumerate(("ACSM", "ACV")):
            panels.append(
                Panel(f"{signal}, {statistic}", row, column, "layer", statistic, "log" if row == 2 else "linear")
            )
            for epoch in EPOCHS:
                values = np.exp(random.normal(-15 * (row == 2), 1, layers))
                frames.append(make_curve(panels[-1].name, epoch, values))
    matches = (
        Match("RMSE of log10 at the peaks", "0.05", "0", "≤ 0.1", True),
        Match("order of the epochs at the first ReLU", "19 > 0 > 9", "0 > 19 > 9", "equal", False),
        Match("spikes", "none recorded", "8, 10, 47", "equal", None),
    )
    return make_drawing(name, panels, pd.concat(frames, ignore_index=True), matches=matches)


def bands() -> Drawing:
    """One panel with a logarithmic axis and bands; a value that is NaN, one that is zero."""
    panel = Panel("gradient", 0, 0, "layer", "second moment", "log")
    first = make_curve("gradient", "epoch 0", [1e-7, 2e-7, np.nan, 3e-7, 4e-7, 0.0, 5e-7], 0.3)
    second = make_curve("gradient", "epoch 19", [3e-7, 1e-7, 2e-7, 3e-7, 1e-7, 2e-7, 1.0000001e-7])
    return make_drawing("bands", [panel], pd.concat([first, second], ignore_index=True))


def stack() -> Drawing:
    """Two panels of contributions of both signs that add up to a line over them."""
    panels = [Panel(f"block{i}.norm", 0, i, "epoch", "log2", kind="stack") for i in (0, 1)]
    frames = []
    for panel in panels:
        up, down = np.linspace(0, 1, 20), np.linspace(0.2, -1.5, 20)
        for curve, values in (("γ²", up), ("p", down), ("epoch 19", up + down)):
            frames.append(make_curve(panel.name, curve, values, names=[panel.name] * 20))
    return make_drawing("stack", panels, pd.concat(frames, ignore_index=True), over=("epoch 19",))


def claims() -> tuple[Claim, ...]:
    """One claim of each verdict."""
    holds = Part("ffnn_bn", "largest relative error", 3.2123456789e-6, None, 2, "< 1e-3", "holds")
    measured = Part("h = 512", "ratio on / off", 0.8123456789, (0.7, 0.91), 5, "≤ ½", "fails", details=("A detail.",))
    missing = Part("h = 100", "ratio on / off", None, None, 0, "≤ ½", "undecided", "needs ffnn_bn_h100, seed 67")
    context = Part("width", "ratio of widths", 2.5, (2.4, 2.6), 3, "", "undecided", decides=False)
    return (
        Claim("C1", "BN normalizes.", (holds,), "§7"),
        Claim("C2", "BN scales gradients.", (measured, missing, context), "§7"),
        Claim("C3", "The net trains.", (missing,), "§7"),
    )
