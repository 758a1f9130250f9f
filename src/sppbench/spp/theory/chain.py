"""Expected values of every layer of a net at initialization, as a table that `plot_spp` draws.

=============  ======================================================================================
column         meaning
=============  ======================================================================================
layer, signal  as in a history; signals are activation and gradient
acsm, acv      average channel squared mean and average channel variance
second_moment  their sum
mean           mean over everything; with it the overall variance, ``second_moment - mean**2``
source         the papers; each source is a curve
=============  ======================================================================================

Where the theory says nothing there is NaN. A layer takes its inputs' second moments and covariances to its own by the
rules of `sppbench.spp.theory.layer_rules`, from the first layer on; gradients go the other way, from a recorded one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd

from sppbench.spp.names import OF_BATCH
from sppbench.spp.theory.closed_forms import ACTIVATIONS, Array
from sppbench.spp.theory.layer_rules import Keep, Known, Rule, Weights
from sppbench.spp.theory.norm_rules import BatchNorm
from sppbench.spp.theory.pointwise_rules import Elementwise
from sppbench.spp.theory.state import State

Init = Literal["he", "lecun"]
WEIGHT_GAINS: dict[Init, float] = {"he": 2.0, "lecun": 1.0}
EXPECTED_COLUMNS = ("layer", "signal", "acsm", "acv", "second_moment", "mean", "source")


@dataclass(frozen=True)
class Node:
    """An operation; `inputs` are the numbers of earlier nodes, none where a signal begins."""

    rule: Rule
    inputs: tuple[int, ...]


def propagate(
    nodes: Sequence[Node], layers: Sequence[tuple[str, int]], last: State | None = None, end: int = -1
) -> pd.DataFrame:
    """The table of a net.

    Args:
        nodes: in the order of their calls.
        layers: those that the table is of: the name of each, and the number of the node that gives its output.
        last: the gradient at the output of the layer with the index `end`; None is no gradients.
    """
    states: list[State] = []
    for node in nodes:
        states.append(node.rule.forward(*(states[i] for i in node.inputs)))
    rows = [_row(layer, "activation", states[number]) for layer, number in layers]
    if last is not None and layers:
        gradients = _gradients(nodes, states, layers[end][1], last)
        rows += [_row(layer, "gradient", gradients[number]) for layer, number in layers if number in gradients]
    sources = dict.fromkeys(node.rule.source for node in nodes if node.rule.source)
    return pd.DataFrame(rows, columns=list(EXPECTED_COLUMNS[:-1])).assign(source="; ".join(sources))


def _gradients(nodes: Sequence[Node], states: Sequence[State], end: int, last: State) -> dict[int, State]:
    """The gradient at the output of each node that has one: the sum over all nodes that take it."""
    if (places := states[end].places) > 1:  # recorded over samples and places alike: two places are as two samples
        own, elements = last.second_moment, last.samples * places
        other = (last.acsm - own / elements) / (1 - 1 / elements)
        last = replace(last, products=np.array([own, other, other]), places=places)
    products = {end: last.products}
    gradients: dict[int, State] = {}
    tilts: dict[int, float] = {}
    for number in range(end, -1, -1):
        if number not in products:
            continue
        # A gradient's mean is 0 where the weights behind it have mean 0.
        mean = last.mean if number == end else 0.0
        tilt = tilts.get(number, 1.0)
        gradient = State(products[number], last.samples, states[number].places, mean, tilt=tilt)
        gradients[number] = gradient
        inputs = nodes[number].inputs
        if not inputs:
            continue
        given = [states[i] for i in inputs]
        tilts[inputs[0]] = nodes[number].rule.tilt(*given)
        for i, part in zip(inputs, nodes[number].rule.backward(gradient, *given), strict=True):
            products[i] = products.get(i, np.zeros(3)) + part
    return gradients


def expected_of_chain(frame: pd.DataFrame, init: Init) -> pd.DataFrame:
    """Expected values for a plain chain of Linear, BatchNorm1d and activations, from the frame alone.

    A frame knows no widths, so hidden layers are taken to be equally wide: their weights have gain 2 ("he", fan-in or
    fan-out) or 1 ("lecun"), forward and backward. It starts from what is recorded at the earliest step: forward at the
    first Linear, backward at the input of the last one. It says nothing about the last one's output.

    Args:
        frame: a history, or its `epoch_mean`. Without the numbers of samples, as in an `epoch_mean`, nothing is said
            about how the gradient's second moment divides into ACSM and ACV.
        init: "he" or "lecun".

    Returns:
        the table of this module's docstring.

    Raises:
        ValueError: an unknown `init`, fewer than two Linear, or a layer that has no place in such a chain.

    Example:
        >>> history = read_history("run/spp.parquet")
        >>> table = expected_of_chain(history, "he")
        >>> table["source"].unique().tolist()
        ['He et al. 2015; Yang et al. 2019']
        >>> figure = plot_spp(history, expected="he")  # draws this table as dashed lines
    """
    if init not in get_args(Init):
        raise ValueError(f"unknown theory {init!r}; there are {', '.join(get_args(Init))}, or a table")
    frame = frame[frame["step"] == frame["step"].min()]
    net = frame[frame["signal"].isin(OF_BATCH)].drop_duplicates("layer").sort_values("depth")
    layers, kinds = list(net["layer"]), list(net["kind"])
    linear = [i for i, kind in enumerate(kinds) if kind == "Linear"]
    if len(linear) < 2:
        raise ValueError(f"expected={init!r} needs a chain with two layers of kind Linear; the frame has {len(linear)}")
    gain = np.full(3, WEIGHT_GAINS[init])
    chain = range(linear[0], linear[-1])
    first = _recorded(frame, layers[linear[0]], "activation")
    if first is None:
        raise ValueError(f"the frame has no activation of {layers[linear[0]]}, where expected={init!r} starts")
    nodes = [Node(Known(first, "He et al. 2015"), ())]  # the first Linear
    nodes += [Node(_rule_by_kind(layers[i], kinds[i], gain), (n,)) for n, i in enumerate(chain[1:])]
    numbers = [(layers[i], n) for n, i in enumerate(chain)]
    table = propagate(nodes, numbers, _recorded(frame, numbers[-1][0], "gradient"))
    if not math.isfinite(first.samples):
        table.loc[table["signal"] == "gradient", ["acsm", "acv"]] = math.nan
    return table


def _rule_by_kind(layer: str, kind: str, gain: Array) -> Rule:
    if kind == "Linear":
        return Weights(gain, gain)
    if kind == "BatchNorm1d":
        return BatchNorm()
    if kind == "Identity":
        return Keep()
    if kind in ACTIVATIONS:
        return Elementwise.named(kind)
    raise ValueError(
        f"no named theory for {layer}, a {kind}: the named theories are for chains of Linear, BatchNorm1d and "
        f"{', '.join(ACTIVATIONS)}; see expected_of_net for other nets"
    )


def recorded_gradient(frame: pd.DataFrame, layer: str) -> State | None:
    """The gradient at the output (N, C) of a layer at the frame's earliest step, None if it was not recorded."""
    return _recorded(frame[frame["step"] == frame["step"].min()], layer, "gradient")


def _recorded(frame: pd.DataFrame, layer: str, signal: str) -> State | None:
    rows = frame[(frame["layer"] == layer) & (frame["signal"] == signal)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    samples = float(row["samples"]) if "samples" in row and row["samples"] > 1 else math.inf
    own = float(row["second_moment"])
    # The pairs of samples, from the mean over all pairs; of an infinite batch those of one with itself are no part.
    sample = (float(row["acsm"]) - own / samples) / (1 - 1 / samples)
    return State(np.array([own, own, sample]), samples, mean=float(row["mean"]), gaussian=True)


def _row(layer: str, signal: str, state: State) -> tuple[str, str, float, float, float, float]:
    q, acsm = state.second_moment, state.acsm
    if abs(acsm) < 1e-12 * q:  # what batch normalization takes out, up to rounding
        acsm = 0.0
    return layer, signal, acsm, q - acsm, q, state.mean
