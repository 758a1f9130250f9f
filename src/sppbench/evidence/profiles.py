"""What the runs of a net recorded, by seed: gradients over depth, and the gains of batch normalizations over training.

Both are given as logarithms, since means over seeds are geometric. A run counts as a whole or not at all: it is left
out if one of its values is missing or has no logarithm, or if it has other layers than most runs of its net.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
import pandas as pd

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.evidence.selection import Evidence
from sppbench.spp.names import FACTORS, GAIN_AND_FACTORS

Key = TypeVar("Key")
Kind = TypeVar("Kind", bound=Hashable)

_GAINS = list(GAIN_AND_FACTORS)


@dataclass(frozen=True)
class Profiles:
    """What the runs of one net, or pairs of runs of two nets, recorded.

    Attributes:
        table: A row per (seed, epoch, layer), sorted by seed and epoch, layers in order of execution, with columns of
            logarithms, all of them finite.
        problems: Which runs were left out and why, one line each.
    """

    table: pd.DataFrame
    problems: tuple[str, ...]


def unusual(kinds: Mapping[Key, Kind]) -> tuple[Kind | None, list[Key]]:
    """The most frequent kind, and the keys of all others; of equally frequent ones the first counts as usual.

    Example:
        >>> unusual({868: ("a", "b"), 67: ("a",), 472: ("a", "b")})
        (('a', 'b'), [67])
    """
    found = list(kinds.values())
    usual = max(found, key=found.count, default=None)
    return usual, [key for key in kinds if kinds[key] != usual]


def gradient_profile(run: Run, epoch: int, batches: str = "all") -> pd.Series:
    """Second moment of the gradient by layer, in order of execution; layers without a gradient are left out.

    It is mean(g²) of the gradient with respect to a layer's output, as a mean over the steps of an epoch: what the
    study draws for tensors of two dimensions.

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
    """Natural logarithm of the second moment of the gradient, by seed: the column ``log_moment``.

    Args:
        evidence: Runs, of any nets.
        model: Name of the net.
        epochs: Counted from 0.
        layers: A pattern, such as "*.activation".
        lr: Learning rate.
    """
    wanted = list(epochs)
    runs = evidence.select(model, lr, signals=True)
    frames, problems = _alike(model, runs, lambda run: _log_moments(run, wanted, layers), "layers")
    if not frames:
        problems.append(f"no run of {model} at learning rate {lr:g} with the gradients that are needed")
    types = {"seed": "int64", "epoch": "int64", "layer": "str", "log_moment": "float64"}
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(types))
    return Profiles(table.astype(types), tuple(problems))


def paired_ratio(
    evidence: Evidence,
    numerator_model: str,
    denominator_model: str,
    epochs: Iterable[int],
    layers: str = "*.activation",
    lr: float = 0.001,
) -> Profiles:
    """Natural logarithm of the ratio of two nets' gradients, seed by seed: the column ``log_ratio``.

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
    return ratio_of_profiles(numerator_model, above, denominator_model, below)


def ratio_of_profiles(numerator_model: str, above: Profiles, denominator_model: str, below: Profiles) -> Profiles:
    """`paired_ratio` of two nets whose `log_profiles` are known."""
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


def log_gains(evidence: Evidence, model: str, lr: float = 0.001) -> Profiles:
    """log2 of the backward gain and of its factors by seed: columns gain, the factors of it, and closure.

    For a batch normalization after a Linear the gain G = mean(g_linear²) / mean(g_bn²) is γ² · 1/(v + ε) · p (see
    `sppbench.spp`), so that the logarithms of the factors add up to that of the gain. ``closure`` is no logarithm, but
    the largest |γ²·1/(v + ε)·p / G − 1| over the steps of the epoch.
    """
    frames, problems = _alike(model, evidence.select(model, lr), _log_gains, "layers or epochs")
    if not frames:
        problems.append(f"no run of {model} at learning rate {lr:g} with the gains of its batch normalizations")
        return Profiles(pd.DataFrame(columns=["seed", "epoch", "layer", *_GAINS, "closure"]), tuple(problems))
    return Profiles(pd.concat(frames, ignore_index=True), tuple(problems))


def attribute_change(gains: pd.DataFrame) -> pd.DataFrame:
    """How much each factor has changed the gain of each layer between the first epoch and the last; mean over seeds.

    Args:
        gains: Table of `log_gains`, not empty.

    Returns:
        A row per layer, in order: layer, ``change`` of log2 G, the changes of the factors, which add up to it, and
        their shares of it, ``share_<factor>``, which add up to 1 (NaN where nothing changed; a share can be negative).
    """
    means = gains.groupby(["epoch", "layer"], sort=False)[_GAINS].mean()
    change = (means.loc[gains["epoch"].max()] - means.loc[gains["epoch"].min()]).rename(columns={"gain": "change"})
    # The sum and not the gain itself: the two differ by rounding, and shares shall add up.
    total = change[list(FACTORS)].sum(axis=1)
    shares = change[list(FACTORS)].div(total.where(total != 0), axis=0).add_prefix("share_")
    return pd.concat([change, shares], axis=1).reset_index()


def _alike(
    model: str, runs: Iterable[Run], read: Callable[[Run], pd.DataFrame], what: str
) -> tuple[list[pd.DataFrame], list[str]]:
    """The tables of the runs that can be read and have the usual rows (epoch, layer), and why others are left out."""
    frames: dict[int, pd.DataFrame] = {}
    problems = []
    for run in runs:
        try:
            frames[run.seed] = read(run)
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    _, odd = unusual({seed: tuple(zip(frame["epoch"], frame["layer"], strict=True)) for seed, frame in frames.items()})
    problems += [f"left out: {model}, seed {seed}, does not have the same {what} as the other seeds" for seed in odd]
    return [frame for seed, frame in frames.items() if seed not in odd], problems


def _log_moments(run: Run, epochs: list[int], layers: str) -> pd.DataFrame:
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


def _log_gains(run: Run) -> pd.DataFrame:
    frame = run.gains.sort_values(["epoch", "depth"])
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log2(frame[_GAINS])
    bad = ~np.isfinite(logarithms).all(axis=1)
    if bad.any():
        first = frame[bad].iloc[0]
        raise EvidenceError(f"{run.path}: the gain of {first['layer']} has no logarithm in epoch {first['epoch']}")
    frame = pd.concat([frame[["epoch", "layer"]], logarithms, frame["closure"]], axis=1)
    frame.insert(0, "seed", run.seed)
    return frame
