"""The sweep in two figures: validation accuracy per epoch, and test accuracy over the learning rate.

A net has the same color and marker in both, in the order of the table's columns. Figures are unknown to pyplot.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from sppbench.evidence.runs import Run
from sppbench.spp.plots.axes import FONT, GRID_COLOR, MARK_COLOR, fixed_settings, new_figure
from sppbench.spp.plots.lines import Style
from sppbench.study.common.intervals import Summary
from sppbench.study.table.cells import Cell, Table

PANELS_IN_A_ROW = 3
MARKS = 7  # on a curve, at most
DODGE = 0.07  # decades from one net to the next at the same learning rate, where there is room
CROSS: dict[str, Any] = {"marker": "X", "linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.7}
HOLLOW: dict[str, Any] = {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.0, "markersize": 4.5}

Curve = dict[int, float]  # validation accuracy (percent) by epoch


def draw_figures(table: Table) -> dict[str, Figure]:
    """All figures by name."""
    return {"curves": plot_curves(table), "accuracy_over_lr": plot_accuracy(table)}


@fixed_settings()
def plot_curves(table: Table) -> Figure:
    """Validation accuracy per epoch: a panel per learning rate, a line per net, a band from the lowest to the highest.

    Only runs that the table counts are drawn. A run that diverged ends at a cross, and goes into the mean with its last
    accuracy from there on: a dead net stays dead.
    """
    columns = min(len(table.lrs), PANELS_IN_A_ROW)
    rows = math.ceil(len(table.lrs) / columns)
    figure = new_figure(1.2 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    curves = {(cell.model, cell.lr): _read_curves(cell) for cell in table.cells}
    looks = {model: _curve_look(number, len(table.titles)) for number, model in enumerate(table.titles)}
    everything = [curve for of_cell in curves.values() for _, curve in of_cell]
    last = max((epoch for curve in everything for epoch in curve), default=0)
    for number, (ax, lr) in enumerate(zip(panels, table.lrs, strict=False)):
        for model, look in looks.items():
            _draw_curve(ax, model, curves.get((model, lr), []), last, look)
        if not any(curves.get((model, lr)) for model in looks):
            ax.text(0.5, 0.5, "no runs yet", transform=ax.transAxes, ha="center", fontsize=FONT, color=MARK_COLOR)
        _finish(ax, table.chance)
        ax.set_title(f"learning rate {lr:g}", fontsize=FONT)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        if number % columns == 0:
            ax.set_ylabel("validation accuracy (%)", fontsize=FONT)
        if number + columns >= len(table.lrs):
            ax.set_xlabel("epoch, counted from 0", fontsize=FONT)
            ax.tick_params("x", labelbottom=True)
    for ax in panels[len(table.lrs) :]:
        ax.set_visible(False)
    panels[0].set_xlim(-0.5, last + 0.5)  # of all panels
    panels[0].set_ylim(bottom=0)  # likewise, and when everything is drawn
    several = any(cell.n > 1 for cell in table.cells)
    unread = sum(not curve for curve in everything)
    title = f"{table.name}: {'mean over seeds; band: lowest to highest' if several else 'one seed'}"
    title += f"; {unread} runs without a readable metrics.csv" if unread else ""
    cross = Line2D([], [], **CROSS, color=MARK_COLOR, markersize=7, label="diverged; held from there on")
    _add_legend(figure, table, looks, title, [cross] if any(cell.count("diverged") for cell in table.cells) else [])
    return figure


def _draw_curve(ax: Axes, model: str, curves: Sequence[tuple[Run, Curve]], last: int, look: dict[str, Any]) -> None:
    values: dict[int, list[float]] = defaultdict(list)
    ends = []
    for run, curve in curves:
        held: Curve = {}
        if run.state == "diverged" and curve:
            end, accuracy = max(curve.items())
            ends.append((end, accuracy))
            held = dict.fromkeys(range(end + 1, last + 1), accuracy)
        for epoch, accuracy in (curve | held).items():
            values[epoch].append(accuracy)
    epochs = sorted(values)
    means = [statistics.mean(values[epoch]) for epoch in epochs]
    low, high = ([choose(values[epoch]) for epoch in epochs] for choose in (min, max))
    ax.fill_between(epochs, low, high, color=look["color"], alpha=0.2, linewidth=0, gid=f"band {model}")
    if len(epochs) == 1:  # where a band has no width
        ax.vlines(epochs, low, high, color=look["color"], alpha=0.4, linewidth=2, gid=f"range {model}")
    ax.plot(epochs, means, **look, markevery=max(1, math.ceil(len(epochs) / MARKS)), gid=model)
    if ends:
        marks = {**CROSS, "color": look["color"], "markersize": look["markersize"] + 3, "zorder": 3}
        ax.plot(*zip(*ends, strict=True), **marks, gid=f"diverged {model}")


def _curve_look(number: int, count: int) -> dict[str, Any]:
    """Curves lie over each other where nets are dead: each is thinner than the one below, and has its own dashes."""
    share = number / max(count - 1, 1)
    return Style(number, count, dense=False).arguments() | {
        "linewidth": 3.2 - 1.8 * share,
        "markersize": 6.5 - 2.5 * share,
    }


def _read_curves(cell: Cell) -> list[tuple[Run, Curve]]:
    """Of the runs that count."""
    counted = [run for run in cell.runs if run.accuracy is not None]
    return [(run, _read_curve(run.path / "metrics.csv")) for run in counted]


def _read_curve(file: Path) -> Curve:
    """Empty if the file is missing or damaged."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("val/accuracy")]
            return {int(row["epoch"]): float(row["val/accuracy"]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return {}


@fixed_settings()
def plot_accuracy(table: Table) -> Figure:
    """Test accuracy over the learning rate: mean ± standard deviation, and the published values as hollow markers.

    Nets at the same learning rate are drawn beside each other, on a grey band around it.
    """
    figure = new_figure(4.2)
    ax = figure.subplots()
    lrs = [lr for lr in table.lrs if lr > 0]  # there is no place for others on a logarithmic axis
    step = min([DODGE, *(0.7 * math.log10(high / low) / len(table.titles) for high, low in pairwise(lrs))])
    looks = {model: _value_look(number, len(table.titles)) for number, model in enumerate(table.titles)}
    for number, (model, look) in enumerate(looks.items()):
        shift = step * (number - len(table.titles) / 2)
        cells = [cell for lr in lrs if (cell := table.cell(model, lr)) is not None]
        ours = [(cell.lr * 10 ** (shift + step / (4 if table.published else 2)), cell.ours) for cell in cells]
        published = [(cell.lr * 10 ** (shift + 3 * step / 4), cell.published) for cell in cells]
        bars = {"capsize": 2, "capthick": 1.0, "elinewidth": 1.0}
        _draw_values(ax, ours, gid=model, **look, **bars)
        _draw_values(ax, published, gid=f"published {model}", **look | HOLLOW, **bars)
    _finish(ax, table.chance)
    reach = 10 ** (step * len(table.titles) / 2)
    for lr in lrs:
        ax.axvspan(lr / reach, lr * reach, color=GRID_COLOR, alpha=0.5, linewidth=0, zorder=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(lrs))
    ax.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(min(lrs, default=1.0) / 2, max(lrs, default=1.0) * 2)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("learning rate", fontsize=FONT)
    ax.set_ylabel("test accuracy (%)", fontsize=FONT)
    several = any(cell.n > 1 for cell in table.cells)
    title = f"{table.name}: {'mean ± sample standard deviation over seeds' if several else 'one seed'}"
    hollow = Line2D([], [], **HOLLOW, marker="o", color=MARK_COLOR, label="published")
    _add_legend(figure, table, looks, title, [hollow] if table.published is not None else [])
    return figure


def _draw_values(ax: Axes, values: Sequence[tuple[float, Summary | None]], **arguments: Any) -> None:
    known = [(x, summary) for x, summary in values if summary is not None]
    if known:
        places, summaries = zip(*known, strict=True)
        means, spreads = [summary.mean for summary in summaries], [summary.std or 0.0 for summary in summaries]
        ax.errorbar(places, means, spreads, **arguments)


def _value_look(number: int, count: int) -> dict[str, Any]:
    """Values lie beside each other: no need for dashes."""
    look = {"linestyle": "-", "linewidth": 1.2, "markersize": 5.5, "markeredgewidth": 1.0}
    return Style(number, count, dense=False).arguments() | look


def _finish(ax: Axes, chance: float) -> None:
    ax.axhline(chance, color=MARK_COLOR, linewidth=0.8, linestyle=":", zorder=1, gid="chance")
    ax.tick_params(labelsize=FONT - 1)
    ax.grid(True, axis="y", color=GRID_COLOR, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _add_legend(
    figure: Figure, table: Table, looks: dict[str, dict[str, Any]], title: str, extra: Sequence[Line2D]
) -> None:
    nets = [Line2D([], [], **look, label=table.titles[model]) for model, look in looks.items()]
    chance = Line2D([], [], color=MARK_COLOR, linewidth=0.8, linestyle=":", label="chance")
    figure.legend(
        handles=[*nets, *extra, chance],
        loc="outside upper center",
        ncols=3,
        fontsize=FONT,
        frameon=False,
        handlelength=3.5,
        title=title,
        title_fontproperties={"size": FONT},
    )
