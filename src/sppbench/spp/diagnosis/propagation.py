"""Signals that die or explode: in one layer, or bit by bit from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sppbench.spp.diagnosis.finding import LIMITS, Finding, finding
from sppbench.spp.diagnosis.kinds import is_activation, is_weights
from sppbench.spp.diagnosis.step_table import Array, StepTable
from sppbench.spp.diagnosis.structure import Structure
from sppbench.spp.names import OF_BATCH, SIGNALS

# So many layers or blocks follow each other before a trend is one.
_SERIES = 4
# An activation function that passes on less than this of a second moment is to blame; ReLU passes on a half.
_LITTLE = 0.1


def lifeless(table: StepTable, structure: Structure) -> Iterator[Finding]:
    """Signals that are not finite, dead or about to overflow, with the layer where that starts."""
    for signal in SIGNALS:
        if signal not in table:
            continue
        moment, recorded = table.of(signal), table.recorded(signal)
        finite = np.isfinite(moment)
        bad = (recorded & ~finite) | (table.of(signal, "nonfinite") > 0)
        # A loss scale that is too large makes gradients overflow for some steps, which are left out.
        passing = "gradient" in signal
        first = table.first(bad, recorded) if passing else np.where(bad.any(axis=0), bad.argmax(axis=0), -1)
        for place, line, layers in _starts(table, signal, first):
            text = f"the {signal} at {layers[0]}{{others}} is not finite from step {table.steps[line]} on"
            yield finding(
                "not finite",
                signal,
                layers,
                int(table.steps[line]),
                float(np.nan_to_num(table.of(signal, "nonfinite")[line, place])),
                f"{text}: lower the learning rate, or find the operation that is not defined there",
            )
        if signal in OF_BATCH:
            first = table.first((moment < LIMITS["dead"].threshold) & ~table.of_small_weights(signal), recorded)
            for place, line, layers in _starts(table, signal, first):
                why = _why_dead(table, structure, signal, place, line)
                text = f"the {signal} at {layers[0]}{{others}} is dead from step {table.steps[line]} on: {why}"
                yield finding("dead", signal, layers, int(table.steps[line]), float(moment[line, place]), text)
        first = table.first(finite & (moment > LIMITS["overflowing"].threshold), recorded)
        for place, line, layers in _starts(table, signal, first):
            value = float(moment[line, place])
            text = f"the second moment of the {signal} at {layers[0]}{{others}} is {value:.2g}: it is about to overflow"
            yield finding("overflowing", signal, layers, int(table.steps[line]), value, text)


def _starts(table: StepTable, signal: str, first: NDArray[np.int64]) -> Iterator[tuple[int, int, list[str]]]:
    """Where something starts: the layer, the line, and all layers in the order in which the signal reaches them."""
    places = np.flatnonzero(first >= 0)
    if not len(places):
        return
    onward = -places if "gradient" in signal else places
    places = places[np.lexsort((onward, first[places]))]
    yield int(places[0]), int(first[places[0]]), [table.layers[place].name for place in places]


def _why_dead(table: StepTable, structure: Structure, signal: str, place: int, line: int) -> str:
    layer = table.layers[place]
    if signal == "gradient":
        after = next((one for one in table.layers[place + 1 :] if is_activation(one.kind)), None)
        hint = f" (here {after.name}, {after.kind})" if after is not None else ""
        subnormal = table.of(signal, "subnormal")[line]
        if np.isfinite(subnormal[place]):
            return f"below the smallest number of its type, or stopped by what comes after it{hint}; scale the loss"
        return f"what comes after it{hint} has a slope of zero everywhere, or does not use it"
    gain = _gain_of_weights(table, structure, place, line)
    if gain is not None and gain < LIMITS["vanishing"].threshold:
        return f"look at the scale of its weights (fan-in times mean square: {gain:.2g})"
    before = _before(table, place, line)
    if before is not None and is_activation(layer.kind):
        there = table.of(signal)[line, before]
        name = table.layers[before].name
        return (
            f"the nonlinearity ({layer.kind}) passes on nothing of {name}, whose second moment is {there:.2g} and "
            f"whose mean is {table.of(signal, 'mean')[line, before]:.2g}: look at the bias and the step size"
        )
    return f"look at what {layer.name} ({layer.kind}) is given"


def _gain_of_weights(table: StepTable, structure: Structure, place: int, line: int) -> float | None:
    """Fan-in times mean square of a layer's weights: the factor that they have on a second moment (He et al. 2015)."""
    fan = structure.fan_in.get(table.layers[place].module)
    weight = _weight_of(table, place)
    moment = table.of("parameter")[line, weight] if weight is not None else np.nan
    return float(fan * moment) if fan is not None and np.isfinite(moment) else None


def _weight_of(table: StepTable, place: int) -> int | None:
    """The column of a layer's weight, which is that of its first call."""
    module = table.layers[place].module
    return next((one.place for one in table.layers if one.name == module), None)


def _before(table: StepTable, place: int, line: int) -> int | None:
    """The layer that ran before, which in a chain gave the input."""
    earlier = np.flatnonzero(np.isfinite(table.of("activation")[line, :place]))
    return int(earlier[-1]) if len(earlier) else None


# -- from layer to layer ---------------------------------------------------------------------------------------------


def drifting(table: StepTable, structure: Structure) -> Iterator[Finding]:
    """Signals that shrink or grow by about the same factor from each layer or block to the next."""
    for signal in OF_BATCH:
        if signal not in table:
            continue
        moment = table.of(signal)
        series = _series(table, np.asarray(np.isfinite(moment).any(axis=0)))
        if signal == "gradient":
            series = [places[::-1] for places in series]
        if not series:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithms = np.log10(np.where(np.isfinite(moment) & (moment > 0), moment, np.nan))
        gains = np.stack([_median(np.diff(logarithms[:, places])) for places in series], axis=1)
        gaps = np.array([len(places) - 1 for places in series])
        ends = np.stack([logarithms[:, places[-1]] - logarithms[:, places[0]] for places in series], axis=1)
        for kind, sign in (("vanishing", -1), ("exploding", 1)):
            most = abs(np.log10(LIMITS[kind].threshold))
            where = (sign * gains * gaps > most) & (sign * ends > 0.75 * most)
            first = table.first(where, np.isfinite(gains))
            found = np.flatnonzero(first >= 0)
            if not len(found):
                continue
            worst = max(found, key=lambda one: sign * gains[first[one], one] * gaps[one])
            line = int(first[worst])
            places = series[worst]
            relative = sign * (logarithms[line, places] - logarithms[line, places[0]])
            start = next((i for i, value in enumerate(relative) if value > most / 4), len(places) - 1)
            layers = [table.layers[place].name for place in places[start:]]
            factor, number = 10 ** gains[line, worst], 10 ** (gains[line, worst] * gaps[worst])
            a, z = (table.layers[places[i]].name for i in (0, -1))
            verb = "falls" if sign < 0 else "grows"
            text = (
                f"the second moment of the {signal} {verb} by a factor of {factor:.2g} from layer to layer, from "
                f"{moment[line, places[0]]:.2g} at {a} to {moment[line, places[-1]]:.2g} at {z}: "
                f"{_why_drifting(table, structure, signal, places, line, factor)}"
            )
            yield finding(kind, signal, layers, int(table.steps[line]), float(number), text)


def _series(table: StepTable, recorded: NDArray[np.bool_]) -> list[list[int]]:
    """Columns of equal layers that follow each other: of each role over the blocks; without blocks all weights but the
    last, which may be of any scale."""
    roles: dict[str, list[int]] = {}
    chain = []
    for layer in table.layers:
        is_stream = layer.role == "."
        if not recorded[layer.place] or "#" in layer.name or not (is_stream or is_weights(layer.kind)):
            continue
        chain.append(layer.place)
        if layer.block >= 0:
            roles.setdefault(layer.role, []).append(layer.place)
    series = [places for places in roles.values() if len(places) >= _SERIES]
    return series or ([chain[:-1]] if len(chain) > _SERIES else [])


def _median(values: Array) -> Array:
    """(steps,) the median of each line; NaN are left out."""
    numbers = np.isfinite(values).sum(axis=1)
    middle = np.maximum(numbers - 1, 0) // 2
    ordered = np.sort(values, axis=1)
    return np.asarray(np.take_along_axis(ordered, middle[:, None], axis=1)[:, 0])


def _why_drifting(
    table: StepTable, structure: Structure, signal: str, places: list[int], line: int, factor: float
) -> str:
    if signal == "gradient":
        return "look at the scale of the weights at the start, and at normalization and skips"
    moment = table.of(signal)[line]
    before = {place: _before(table, place, line) for place in places}
    own = [moment[place] / moment[at] for place, at in before.items() if at is not None and moment[at] > 0]
    if not own:
        return "look at the scale of the weights at the start"
    of_weights = float(np.median(own))
    between = factor / of_weights
    said = [gain for place in places if (gain := _gain_of_weights(table, structure, place, line)) is not None]
    expected = f" (fan-in times mean square: {np.median(said):.2g})" if said else ""
    numbers = f"its weights multiply it by {of_weights:.2g}{expected}, and what lies between them by {between:.2g}"
    if factor < 1 and between < _LITTLE and between < of_weights:
        return f"{numbers}: the nonlinearity is the cause"
    return f"{numbers}: the cause is the scale of the weights, whose factor should be about {1 / between:.2g}"


def cut_off(table: StepTable, structure: Structure) -> Iterator[Finding]:
    """Layers at which nearly all of a signal is lost at once, and nothing normalizes it afterwards."""
    if "activation" not in table:
        return
    moment = table.of("activation")
    places = np.flatnonzero(np.isfinite(moment).any(axis=0))
    last = max((i for i in places if is_weights(table.layers[i].kind)), default=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = moment[:, places[1:]] / moment[:, places[:-1]]
    candidate = np.array([i < last and _can_cut(table.layers[i].kind) for i in places[1:]], dtype=np.bool_)
    where = (gains < LIMITS["vanishing"].threshold) & (moment[:, places[1:]] > 0) & candidate
    first = table.first(where, np.isfinite(gains))
    found = [i for i in np.flatnonzero(first >= 0) if not _is_restored(table, moment[first[i]], places[i + 1 :])]
    if not found:
        return
    at = int(found[0])
    place, line, number = int(places[at + 1]), int(first[at]), float(gains[first[at], at])
    layer, before = table.layers[place], table.layers[int(places[at])]
    gain = _gain_of_weights(table, structure, place, line)
    why = (
        "the nonlinearity is the cause: look at the bias before it"
        if is_activation(layer.kind)
        else "look at its weights"
    )
    if gain is not None:
        small = gain < 100 * LIMITS["vanishing"].threshold
        cause = ": their scale is the cause" if small else ""
        why = f"fan-in times the mean square of its weights is {gain:.2g}{cause}"
    text = f"{layer.name}{{others}} passes on {number:.2g} of the second moment of {before.name}: {why}"
    names = [table.layers[int(places[i + 1])].name for i in found]
    yield finding("vanishing", "activation", names, int(table.steps[line]), number, text)


def _can_cut(kind: str) -> bool:
    return is_weights(kind) or is_activation(kind)


def _is_restored(table: StepTable, moment: Array, places: NDArray[np.int64]) -> bool:
    """Whether a norm or a sum makes a signal large again before other weights, which add their bias alone."""
    for place in places[1:]:
        if is_weights(table.layers[place].kind):
            return False
        if moment[place] > 100 * moment[places[0]]:
            return True
    return False
