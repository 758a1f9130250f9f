"""The backward gain of batch normalizations and its factors over training, by seed, and which factor moved it.

For a batch normalization after a Linear the gain G = mean(g_linear²) / mean(g_bn²) is γ² · 1/(v + ε) · p (see
`sppbench.spp`). All of them are given as log2, so that the factors add up to the gain.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sppbench.evidence.runs import Evidence, EvidenceError, Run
from sppbench.evidence.seed_profiles import Profiles
from sppbench.spp.names import FACTORS, GAIN_AND_FACTORS

_NUMBERS = list(GAIN_AND_FACTORS)


def log_gains(evidence: Evidence, model: str, lr: float = 0.001) -> Profiles:
    """log2 of gain and factors for each seed of a net: columns seed, epoch, layer, gain, the factors, and closure.

    `closure` is the largest |γ²·1/(v + ε)·p / G − 1| over the steps of the epoch. A run is left out as a whole if one
    of its values is missing or not finite, or if it has other layers or epochs than most runs of its net.
    """
    frames: dict[int, pd.DataFrame] = {}
    problems = []
    for run in evidence.select(model, lr):
        try:
            frames[run.seed] = _logarithms(run)
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    found = {seed: tuple(zip(frame["epoch"], frame["layer"], strict=True)) for seed, frame in frames.items()}
    usual = max(found.values(), key=list(found.values()).count, default=())
    for seed in [seed for seed in found if found[seed] != usual]:
        problems.append(f"left out: {model}, seed {seed}, has other layers or epochs than the other seeds")
        del frames[seed]
    if not frames:
        problems.append(f"no run of {model} at learning rate {lr:g} with the gains of its batch normalizations")
        return Profiles(pd.DataFrame(columns=["seed", "epoch", "layer", *_NUMBERS, "closure"]), tuple(problems))
    return Profiles(pd.concat(frames.values(), ignore_index=True), tuple(problems))


def attribute_change(gains: pd.DataFrame) -> pd.DataFrame:
    """How much each factor has changed the gain of each layer between the first epoch and the last; mean over seeds.

    Args:
        gains: Table of `log_gains`, not empty.

    Returns:
        A row per layer, in order: layer, ``change`` of log2 G, the changes of the factors, which add up to it, and
        their shares of it, ``share_<factor>``, which add up to 1 (NaN where nothing changed; a share can be negative).
    """
    means = gains.groupby(["epoch", "layer"], sort=False)[_NUMBERS].mean()
    change = (means.loc[gains["epoch"].max()] - means.loc[gains["epoch"].min()]).rename(columns={"gain": "change"})
    # The sum and not the gain itself: the two differ by rounding, and shares shall add up.
    total = change[list(FACTORS)].sum(axis=1)
    shares = change[list(FACTORS)].div(total.where(total != 0), axis=0).add_prefix("share_")
    return pd.concat([change, shares], axis=1).reset_index()


def _logarithms(run: Run) -> pd.DataFrame:
    frame = run.gains.sort_values(["epoch", "depth"])
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log2(frame[_NUMBERS])
    bad = ~np.isfinite(logarithms).all(axis=1)
    if bad.any():
        first = frame[bad].iloc[0]
        raise EvidenceError(f"{run.path}: the gain of {first['layer']} has no logarithm in epoch {first['epoch']}")
    frame = pd.concat([frame[["epoch", "layer"]], logarithms, frame["closure"]], axis=1)
    frame.insert(0, "seed", run.seed)
    return frame
