"""Weights that move too far or not at all, and gradients that are too small for their type or their optimizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sppbench.spp.diagnosis.finding import LIMITS, Finding, finding
from sppbench.spp.diagnosis.step_table import Array, Mask, StepTable, ends

# In so many recorded steps at least: the first ones of a run, those of Adam above all, are not like the others.
_STEPS = 5
# Weights that begin smaller than this (a class token, LayerScale, zeros) are as large as their updates for a while, and
# behind those that begin near zero gradients are.
_SMALL_START = 1e-3
_WHILE = 20


def misfit_updates(table: StepTable) -> Iterator[Finding]:
    """Weights whose updates are too large or too small: sqrt(second moment of update / second moment of weight)."""
    if "update" not in table or "parameter" not in table:
        return
    update, weight = table.of("update"), table.of("parameter")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(update / weight)
    ratio = np.where(np.isfinite(ratio), ratio, np.nan)
    start, _ = ends(weight)
    done = np.cumsum(np.isfinite(weight) * table.counts[:, None], axis=0)
    ratio[(start < _SMALL_START**2) & (done <= _WHILE)] = np.nan
    gradient = table.of("parameter_gradient")
    # A weight that is not trained has no gradient.
    trained = (update > 0) | (gradient > 0)
    for kind, where in (
        ("large update", ratio > LIMITS["large update"].threshold),
        ("small update", (ratio < LIMITS["small update"].threshold) & trained),
    ):
        first = table.first(where, np.isfinite(ratio), _STEPS)
        yield from _worst(
            table,
            kind,
            "update",
            first,
            ratio,
            "each step changes {layer}{{others}} by {number:.2g} of its size, where about 1e-3 is usual: "
            + ("lower its learning rate" if kind == "large update" else "{small}"),
        )


def small_gradients(table: StepTable) -> Iterator[Finding]:
    """Gradients at the rounding floor of their type, or below Adam's ε."""
    for signal in ("gradient", "parameter_gradient"):
        if signal not in table:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            share = table.of(signal, "subnormal") / (1 - table.of(signal, "zeros"))
        where = share > LIMITS["underflow"].threshold
        text = (
            f"{{number:.2g}} of the elements of the {signal} at {{layer}}{{{{others}}}} that are not 0 are below the "
            "smallest normal number of their type: scale the loss"
        )
        yield from _worst(table, "underflow", signal, table.first(where, np.isfinite(share)), share, text)
    if "parameter_gradient" not in table:
        return
    size = np.sqrt(table.of("parameter_gradient"))
    small: Mask = (size > 0) & (size < LIMITS["below epsilon"].threshold)
    if table.growing.any():
        small[np.cumsum(table.counts) <= _WHILE] = False
    yield from _worst(
        table,
        "below epsilon",
        "parameter_gradient",
        table.first(small, np.isfinite(size), _STEPS),
        size,
        "the gradient of {layer}{{others}} has a root mean square of {number:.2g}, below Adam's usual ε: its steps "
        "shrink with the gradient; scale the loss up, or choose a smaller ε",
    )


def _worst(
    table: StepTable, kind: str, signal: str, first: NDArray[np.int64], numbers: Array, text: str
) -> Iterator[Finding]:
    """The finding of all layers of which something is so, the one that is farthest from the limit first."""
    places = np.flatnonzero(first >= 0)
    if not len(places):
        return
    with np.errstate(divide="ignore"):
        away = np.abs(np.log(numbers[first[places], places] / LIMITS[kind].threshold))
    places = places[np.argsort(-away, kind="stable")]
    place, line = int(places[0]), int(first[places[0]])
    number = float(numbers[line, place])
    small = "is it in the optimizer, and can its type hold the sum?" if number == 0 else "raise its learning rate"
    names = [table.layers[one].name for one in places]
    said = text.format(layer=names[0], number=number, small=small)
    yield finding(kind, signal, names, int(table.steps[line]), number, said)
