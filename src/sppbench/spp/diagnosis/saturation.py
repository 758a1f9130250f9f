"""Nonlinearities that pass on no change: at their bounds, at zero, or all weight on one key."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sppbench.spp.diagnosis.finding import LIMITS, Finding, finding
from sppbench.spp.diagnosis.kinds import is_activation
from sppbench.spp.diagnosis.step_table import Array, Mask, StepTable

# Kinds whose outputs are those of tanh, or means of them; and those of a sigmoid, which may be by another name.
_TANH = {"Tanh", "GRU", "RNN"}
_SIGMOID = {"Sigmoid", "Hardsigmoid", "HardSigmoid"}
# The smallest values: -λα of Klambauer et al. 2017, and -α of Clevert et al. 2016 with its usual α.
_FLOORS = {"SELU": -1.7580993408473766, "ELU": -1.0}
# So many times as unequal as equal units would be.
_UNEQUAL = 3


def saturated(table: StepTable) -> Iterator[Finding]:
    """Gates and activation functions of which nearly all elements are at a bound.

    Of y = tanh(x) the mean slope is E[1 - y²], of a sigmoid E[y(1 - y)]: both follow from the second moment and the
    mean. SELU and ELU have a floor: a mean near it says that most elements are there.
    """
    moment, mean = table.of("activation"), table.of("activation", "mean")
    last = max((one.place for one in table.layers if np.isfinite(moment[:, one.place]).any()), default=-1)
    kinds = np.array([one.kind if one.place < last else "" for one in table.layers])
    slope = np.where(np.isin(kinds, [*_TANH]), 1 - moment, np.nan)
    slope = np.where(np.isin(kinds, [*_SIGMOID]), (mean - moment) / 0.25, slope)
    low = slope < LIMITS["saturated"].threshold
    yield from _findings(
        table,
        "saturated",
        low,
        slope,
        "the mean slope of {kind} at {layer}{{others}} is {number:.2g} of its largest possible value: its inputs "
        "are too large",
    )
    floors = np.array([_FLOORS.get(kind, np.nan) for kind in kinds])
    share = mean / floors
    yield from _findings(
        table,
        "at its floor",
        share > LIMITS["at its floor"].threshold,
        share,
        "the mean of {layer}{{others}} ({kind}) is at {number:.3g} of its floor: nearly all inputs are far below zero, "
        "and no gradient passes",
    )


def dead_units(table: StepTable) -> Iterator[Finding]:
    """Activation functions most of whose units give zero for all inputs.

    That most elements are zero alone may be sparsity, as trained transformers with ReLU have it (Li et al. 2023). A
    unit that is not zero with probability p has E[y]² ≤ p E[y²], so ACSM over second moment is at most the p of the
    units that carry the signal: where it is far above the share of elements that are not zero, few units carry it.
    """
    zeros, moment = table.of("activation", "zeros"), table.of("activation")
    with np.errstate(divide="ignore", invalid="ignore"):
        firing = table.of("activation", "acsm") / moment
        chance = 1 / table.of("activation", "samples")  # what the channel means of a small batch have by chance
    firing = np.where(np.isfinite(chance) & (chance < 1), (firing - chance) / (1 - chance), firing)
    unequal = firing > _UNEQUAL * (1 - zeros)
    kinds = np.array([is_activation(one.kind) for one in table.layers])
    where = (zeros > LIMITS["dead units"].threshold) & (zeros < 1) & unequal & kinds
    yield from _findings(
        table,
        "dead units",
        where,
        zeros,
        "{number:.3g} of the outputs of {layer}{{others}} ({kind}) are exactly 0, and few units carry what is left: "
        "the others are dead; look at the learning rate, and at the bias before it",
    )


def _findings(table: StepTable, kind: str, where: Mask, numbers: Array, text: str) -> Iterator[Finding]:
    first = table.first(where, np.isfinite(numbers))
    places = np.flatnonzero(first >= 0)
    if not len(places):
        return
    places = places[np.argsort(first[places], kind="stable")]
    place, line = int(places[0]), int(first[places[0]])
    layer, number = table.layers[place], float(numbers[line, place])
    said = text.format(layer=layer.name, kind=layer.kind, number=number)
    names = [table.layers[one].name for one in places]
    yield finding(kind, "activation", names, int(table.steps[line]), number, said)


def collapsed_attention(attention: pd.DataFrame) -> Iterator[Finding]:
    """Attention whose heads give all their weight to one key each.

    Args:
        attention: As from ``AttentionProbe.collect``, of one step or several.
    """
    means = attention.groupby(["step", "layer"], sort=False)[["entropy", "depth"]].mean()
    entropy = means["entropy"].unstack("layer").sort_index()
    order = means["depth"].groupby("layer").first().sort_values(kind="stable").index
    entropy = entropy[order]
    values = entropy.to_numpy()
    since = (values < LIMITS["collapsed attention"].threshold) | np.isnan(values)
    lasts = since[-(len(since) + 1) // 2 :].all(axis=0) & np.isfinite(values[-1])
    if not lasts.any():
        return
    place = int(np.flatnonzero(lasts)[0])
    line = len(values) - int(np.argmin(since[::-1, place])) if not since[:, place].all() else 0
    number = float(values[line, place])
    text = (
        f"the attention of {order[place]}{{others}} has a mean entropy of {number:.2g} nats: each query sees one key; "
        "lower the learning rate, or normalize queries and keys"
    )
    names = [str(name) for name, collapsed in zip(order, lasts, strict=True) if collapsed]
    yield finding("collapsed attention", "", names, int(entropy.index[line]), number, text)
