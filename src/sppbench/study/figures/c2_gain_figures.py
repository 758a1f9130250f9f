"""What the backward gain of each batch normalization is made of, and which factor moved it during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sppbench.evidence.profiles import attribute_change, log_gains
from sppbench.evidence.runs import EvidenceError
from sppbench.evidence.selection import Evidence
from sppbench.spp.names import FACTOR_SYMBOLS
from sppbench.study.figures.bands import say_problems, say_runs
from sppbench.study.figures.drawing import COLUMNS, Drawing, Look, Panel, draw_each, draw_panels

# By what a net is called: the table of `log_gains`.
Gains = dict[str, pd.DataFrame]

MEASURED = "measured gain G"
LOOKS = {
    "γ²": Look("#E69F00"),
    "1/(v + ε)": Look("#56B4E9"),
    "p": Look("#009E73"),
    MEASURED: Look("#000000", width=1.4, over=True),
}
LOOKS_OF_CHANGES = LOOKS | {MEASURED: Look("#000000", style="", marker="D", marked="*", over=True)}
DEFINITION = (
    "Backward gain G = mean(g_in²) / mean(g_out²) of each batch normalization, where g_out and g_in are the gradients "
    "with respect to its output and its input, and its factors: γ², 1/(v + ε), and p ≤ 1, the share that its backward "
    "pass does not remove. Their log₂ add up: positive ones are stacked upward from 0, negative ones downward; p is so "
    "close to 1 that it hardly shows"
)


def draw_gains(evidence: Evidence, models: Mapping[str, str], lr: float) -> tuple[list[Drawing], list[str]]:
    """Three figures, or none if no run of these nets has recorded gains; and a note for each that cannot be drawn.

    `gain_changes`: of each layer the change of log2 G from the first epoch to the last, by factor; `gain_factors`:
    log2 of G and its factors over the epochs, of the first, the middle and the last layer; `gain_factors_all`: of all.

    Args:
        evidence: Runs, of any nets.
        models: Names of the nets, and what they are called in the figures.
        lr: Learning rate.
    """
    read = cache(lambda: _read_gains(evidence, models, lr))
    return draw_each(
        {
            "gain_changes": lambda: _changes(*read()),
            "gain_factors": lambda: _some_factors(*read()),
            "gain_factors_all": lambda: _all_factors(*read()),
        }
    )


def _read_gains(evidence: Evidence, models: Mapping[str, str], lr: float) -> tuple[Gains, str]:
    """The gains, by what their nets are called, and the sentences on the runs that end each caption."""
    found = {model: log_gains(evidence, model, lr) for model in models}
    gains = {models[model]: profiles.table for model, profiles in found.items() if len(profiles.table)}
    problems = [problem for profiles in found.values() for problem in profiles.problems]
    if not gains:
        if any(run.has_gains for model in models for run in evidence.select(model, lr)):
            raise EvidenceError(f"there is no usable run.{say_problems(problems)}")
        return {}, ""
    closure = max(float(table["closure"].max()) for table in gains.values())
    seeds = {model: profiles.table["seed"].unique().tolist() for model, profiles in found.items()}
    closing = (
        f"The product of the factors differs from the measured gain by at most {closure:.1e} of it in any step. "
        f"Mean over seeds. {say_runs(seeds, lr)}{say_problems(problems)}"
    )
    return gains, closing


def _changes(gains: Gains, closing: str) -> Drawing | None:
    if not gains:
        return None
    panels, frames, words = [], [], []
    for number, (title, table) in enumerate(gains.items()):
        changes = attribute_change(table)
        label = f"change of log₂, epoch {table['epoch'].min()} to {table['epoch'].max()}"
        panels.append(Panel(title, 0, number, "batch normalization", label, kind="stack"))
        names = {**FACTOR_SYMBOLS, "change": MEASURED}
        frames += [_rows(title, names[of], range(len(changes)), changes["layer"], changes[of]) for of in names]
        largest = changes.loc[changes["change"].abs().idxmax()]
        parts = ", ".join(f"{symbol} {largest[factor]:+.2f}" for factor, symbol in FACTOR_SYMBOLS.items())
        words.append(f"{title}, {largest['layer']}: {largest['change']:+.2f} = {parts}")
    caption = (
        f"Which factor moved the backward gain during training. {DEFINITION}. Here the change of each from the first "
        f"epoch to the last, of each batch normalization in order. Where log₂ G changed most: {'; '.join(words)}. "
        f"{closing}"
    )
    figures = "gain_changes", "Which factor moved the backward gain of batch normalization"
    return _drawing(*figures, caption, panels, frames, 2.3, LOOKS_OF_CHANGES)


def _some_factors(gains: Gains, closing: str) -> Drawing | None:
    layers = _layers(gains)
    some = list(dict.fromkeys(layers[place] for place in (0, len(layers) // 2, -1))) if layers else []
    return _factors("gain_factors", "first, middle and last layer", gains, some, closing, 1.5)


def _all_factors(gains: Gains, closing: str) -> Drawing | None:
    return _factors("gain_factors_all", "all layers", gains, _layers(gains), closing, 0.95)


def _layers(gains: Gains) -> list[str]:
    return list(dict.fromkeys(layer for table in gains.values() for layer in table["layer"]))


def _factors(name: str, which: str, gains: Gains, layers: list[str], closing: str, height: float) -> Drawing | None:
    if not layers:
        return None
    panels, frames = [], []
    names = {**FACTOR_SYMBOLS, "gain": MEASURED}
    for column, (title, table) in enumerate(gains.items()):
        means = table.groupby(["layer", "epoch"])[list(names)].mean()
        for row, layer in enumerate(layers):
            if layer in means.index:
                panel, epochs = f"{title}: {layer}", means.loc[layer]
                panels.append(Panel(panel, row, column, "epoch", f"{layer}\n(log₂)", kind="stack"))
                frames += [_rows(panel, names[of], epochs.index, layer, epochs[of].to_numpy()) for of in names]
    caption = f"{DEFINITION}. Here log₂ of each over the epochs, {which}. {closing}"
    title = f"The backward gain of batch normalization and its factors, {which}"
    return _drawing(name, title, caption, panels, frames, height, LOOKS)


def _rows(panel: str, curve: str, x: Iterable[int], name: object, value: object) -> pd.DataFrame:
    nan = float("nan")
    rows = {"panel": panel, "curve": curve, "x": x, "name": name, "value": value, "low": nan, "high": nan}
    return pd.DataFrame(rows)[list(COLUMNS)]


def _drawing(
    name: str,
    title: str,
    caption: str,
    panels: list[Panel],
    frames: list[pd.DataFrame],
    height: float,
    looks: dict[str, Look],
) -> Drawing:
    def finish(ax: Axes) -> None:
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    curves = pd.concat(frames, ignore_index=True)
    figure = draw_panels(panels, curves, looks, title, height, finish)
    return Drawing(name, title, caption, tuple(panels), curves, looks, figure)
