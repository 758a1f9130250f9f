"""Gradients over depth, by seed: the numbers behind claim C2 and its figures.

The statistic is the second moment mean(g²) of the gradient with respect to a layer's output, as a mean over the steps
of an epoch: what the study draws for tensors of two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from sppbench.evidence.runs import Evidence, EvidenceError, Run


@dataclass(frozen=True)
class Profiles:
    """What the runs of one net, or pairs of runs of two nets, say.

    Attributes:
        table: A row per (seed, epoch, layer), sorted by seed and epoch, layers in order of execution, with one column
            of natural logarithms, all of them finite.
        problems: Which runs were left out and why, a line each.
    """

    table: pd.DataFrame
    problems: tuple[str, ...]


def gradient_profile(run: Run, epoch: int, batches: str = "all") -> pd.Series:
    """Second moment of the gradient by layer, in order of execution; layers without a gradient are left out.

    Args:
        run: Of any net.
        epoch: Counted from 0.
        batches: Mean over "all" batches of the epoch, or over "full" ones.

    Raises:
        EvidenceError: The run's signals were not recorded or are damaged, or it did not reach the epoch.
    """
    frame = run.signals(batches)
    rows = frame[(frame["epoch"] == epoch) & (frame["signal"] == "gradient")].sort_values("depth", kind="stable")
    if rows.empty:
        raise EvidenceError(f"{run.path} has no gradients of epoch {epoch}")
    return rows.set_index("layer")["second_moment"]


def log_profiles(
    evidence: Evidence, model: str, epochs: Iterable[int], layers: str = "*", lr: float = 0.001
) -> Profiles:
    """Logarithm of the second moment of the gradient, for each seed of a net; the table's column is ``log_moment``.

    A run is left out as a whole if one of its values is missing, zero or not finite, or if it has other layers than
    most runs of its net.

    Args:
        evidence: Runs, of any nets.
        model: Name of the net.
        epochs: Counted from 0.
        layers: A pattern, such as "*.activation".
        lr: Learning rate.
    """
    frames: dict[int, pd.DataFrame] = {}
    problems = []
    for run in evidence.select(model, lr, signals=True):
        try:
            frames[run.seed] = _logarithms(run, list(epochs), layers)
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    found = {seed: tuple(frame["layer"]) for seed, frame in frames.items()}
    usual = max(found.values(), key=list(found.values()).count, default=())
    for seed in [seed for seed in found if found[seed] != usual]:
        problems.append(f"left out: {model}, seed {seed}, has other layers than the other seeds")
        del frames[seed]
    if not frames:
        problems.append(f"no run of {model} at learning rate {lr:g} with the gradients that are needed")
    types = {"seed": "int64", "epoch": "int64", "layer": "str", "log_moment": "float64"}
    table = pd.concat(frames.values(), ignore_index=True) if frames else pd.DataFrame(columns=list(types))
    return Profiles(table.astype(types), tuple(problems))


def paired_ratio(
    evidence: Evidence,
    numerator_model: str,
    denominator_model: str,
    epochs: Iterable[int],
    layers: str = "*.activation",
    lr: float = 0.001,
) -> Profiles:
    """Logarithm of the ratio of two nets' gradients, seed by seed; the table's column is ``log_ratio``.

    Runs of the same seed see the same batches and, where their shapes are the same, begin with the same weights.

    Args:
        evidence: Runs, of any nets.
        numerator_model: Name of the net whose second moments are divided.
        denominator_model: Name of the net by whose they are divided.
        epochs: Counted from 0.
        layers: A pattern; by default the outputs of activations, where the peaks are.
        lr: Learning rate.
    """
    epochs = list(epochs)
    above, below = (log_profiles(evidence, model, epochs, layers, lr) for model in (numerator_model, denominator_model))
    problems = [*above.problems, *below.problems]
    lone = set(above.table["seed"]) ^ set(below.table["seed"])
    for seed in sorted(lone if len(above.table) and len(below.table) else ()):
        which = numerator_model if seed in set(below.table["seed"]) else denominator_model
        problems.append(f"unpaired: seed {seed}, for which there is no usable run of {which}")
    keys = ["seed", "epoch", "layer"]
    pairs = above.table.merge(below.table, on=keys, suffixes=("", "_below"))
    if len(pairs) and set(above.table["layer"]) != set(below.table["layer"]):
        problems.append(f"left out: {numerator_model} and {denominator_model} have different layers")
        pairs = pairs.iloc[:0]
    return Profiles(pairs[keys].assign(log_ratio=pairs["log_moment"] - pairs["log_moment_below"]), tuple(problems))


def _logarithms(run: Run, epochs: list[int], layers: str) -> pd.DataFrame:
    frames = []
    for epoch in epochs:
        profile = gradient_profile(run, epoch)
        profile = profile[[fnmatchcase(str(name), layers) for name in profile.index]]
        if profile.empty:
            raise EvidenceError(f"{run.path} has no layer {layers!r}")
        bad = profile[~(np.isfinite(profile) & (profile > 0))]
        if len(bad):
            raise EvidenceError(f"{run.path}: the gradient of {bad.index[0]} is {bad.iloc[0]:g} in epoch {epoch}")
        logs = np.log(profile.to_numpy())
        frames.append(pd.DataFrame({"seed": run.seed, "epoch": epoch, "layer": profile.index, "log_moment": logs}))
    return pd.concat(frames, ignore_index=True)
