"""Curves with bands from the values of several seeds, and sentences on the runs behind them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.evidence.profiles import Profiles
from sppbench.evidence.runs import EvidenceError
from sppbench.evidence.selection import Evidence
from sppbench.study.common.intervals import student
from sppbench.study.figures.drawing import COLUMNS

CONFIDENCE = 0.95
FEWEST = 3  # seeds, for an interval
BAND_WORDS = (
    f"Curves are geometric means over seeds. With {FEWEST} or more seeds a band is the {100 * CONFIDENCE:g} % "
    "t-interval of the mean logarithm, with two it reaches from one to the other, and with one there is none"
)


def mean_and_band(
    logarithms: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over seeds and the ends of its band, see `BAND_WORDS`.

    Args:
        logarithms: Shape (seeds, n).

    Returns:
        Mean, low and high, each of shape (n,) and still logarithms; low and high are NaN for one seed.
    """
    seeds = len(logarithms)
    mean = logarithms.mean(axis=0)
    if seeds >= FEWEST:
        return mean, *student(mean, logarithms.std(axis=0, ddof=1), seeds, CONFIDENCE)
    if seeds == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    return mean, logarithms.min(axis=0), logarithms.max(axis=0)


def curve_over_seeds(
    profiles: Profiles, column: str, panel: str, curve: str, depths: Mapping[str, int]
) -> pd.DataFrame:
    """Rows of `Drawing.curves` from a table of one epoch: the exponential of the mean over seeds, and its band."""
    if profiles.table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    by_seed = profiles.table.pivot(index="seed", columns="layer", values=column)
    value, low, high = np.exp(mean_and_band(by_seed.to_numpy(dtype=np.float64)))
    rows = {"panel": panel, "curve": curve, "x": [depths[str(layer)] for layer in by_seed], "name": by_seed.columns}
    return pd.DataFrame({**rows, "value": value, "low": low, "high": high}).sort_values("x", ignore_index=True)


def pooled_ratio(ratios: Profiles) -> str:
    """Geometric mean of paired ratios over all their layers and epochs with its band over seeds, in words."""
    if ratios.table.empty:
        return "not known"
    of_seeds = ratios.table.groupby("seed")["log_ratio"].mean().to_numpy()
    value, low, high = (float(end[0]) for end in np.exp(mean_and_band(of_seeds[:, None])))
    band = f" [{low:.3f}, {high:.3f}]" if len(of_seeds) > 1 else ""
    return f"{value:.3f}{band}, n = {len(of_seeds)}"


def layer_depths(evidence: Evidence, models: Iterable[str], lr: float) -> dict[str, int]:
    """The place of each layer among all leaves of its net, from 0, as the first readable runs of these nets say."""
    depths: dict[str, int] = {}
    for model in models:
        for run in evidence.select(model, lr, signals=True):
            try:
                frame = run.signals()[["layer", "depth"]].drop_duplicates("layer")
            except EvidenceError:
                continue
            for layer, depth in zip(frame["layer"], frame["depth"], strict=True):
                depths.setdefault(str(layer), int(depth))
    return depths


def say_runs(found: Mapping[str, Collection[int]], lr: float) -> str:
    """A sentence on the seeds of each net: a seed is missing where another one of the nets has it."""
    models = list(found)
    union = sorted({seed for seeds in found.values() for seed in seeds})
    text = f"Runs: learning rate {lr:g}, {_seeds(union)}"
    absent = {model: [seed for seed in union if seed not in found[model]] for model in models}
    if not any(absent.values()):
        return f"{text} of {_list(models)}."
    lacking = [f"{model} ({_seeds(absent[model]) if found[model] else 'all'})" for model in models if absent[model]]
    return f"{text}. Missing: {'; '.join(lacking)}."


def say_problems(problems: Iterable[str]) -> str:
    """A sentence on what was left out and why, each once; empty if nothing was."""
    unique = [problem for problem in dict.fromkeys(problems) if problem.startswith("left out: ")]
    return f" Left out: {'; '.join(problem.removeprefix('left out: ') for problem in unique)}." if unique else ""


def _seeds(seeds: Collection[int]) -> str:
    return f"seed{'s' if len(seeds) != 1 else ''} {_list(seeds)}"


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
