"""What a comparison says, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sppbench.spp.comparison.outcome import Comparison, Departure
from sppbench.spp.comparison.yardsticks import second_moments
from sppbench.spp.names import shortened

STATISTIC_NAMES = {"second_moment": "second moment", "acsm": "ACSM", "acv": "ACV", "mean": "mean"}
_GRADUAL = 0.1  # of what is allowed: a difference as large as that, the step before, has come near and not jumped


def text_of(found: Comparison) -> str:
    """The answer first, then how it goes on, the sizes of the differences, and what is not compared."""
    pairing = found.pairing
    lines = [headline(found)]
    lines += [f"  {line}" for line in _details(found)]
    steps = pairing.steps
    lines.append(
        f"Compared: {pairing.layers:,} layers, {_steps(steps)}, {', '.join(pairing.signals)}; by {_yardstick(found)}"
    )
    lines += ["", *_sizes(found)] if found.verdict != "identical" else []
    lines += ["", "Notes:", *(f"- {note}" for note in pairing.notes)] if pairing.notes else []
    return "\n".join(lines)


def headline(found: Comparison) -> str:
    """The answer, in a line."""
    if found.verdict == "identical":
        return "a and b are identical: every number that both recorded is the same, bit for bit."
    if found.verdict == "the same":
        return f"a and b are the same: no lasting difference exceeds {_yardstick(found)}."
    first = found.departures[0]
    return f"a and b first differ in step {first.step} (epoch {first.epoch}) at {_layer(first)}: {_values(first)}."


def _details(found: Comparison) -> list[str]:
    lines = []
    if found.departures:
        first, *others = found.departures
        if (weights := _weights(found)) is not None:
            lines.append(weights)
        lines += _approach(found)
        for departure in [one for one in others if one.step == first.step][:2]:
            lines.append(f"then in the same step at {_layer(departure)}: {_values(departure)}")
        for departure in [one for one in others if one.step != first.step][:2]:
            lines.append(f"then in step {departure.step} at {_layer(departure)}: {_values(departure)}")
        last = found.differences.distance[-1] > found.differences.allowed[-1]
        lines.append(
            f"in all, {len(found.departures)} of {len(found.pairing.cells)} signals of layers differ at some step, "
            f"{int(last.sum())} in the last one"
        )
    if found.alone:
        lines.append(f"{_counted(found.alone, 'value')} beyond this for a single step only: not counted")
    return lines


def _weights(found: Comparison) -> str | None:
    """Whether both began with the same weights, which is what to know first."""
    columns = found.pairing.columns("parameter")
    if not len(columns):
        return "whether both started from the same weights is not known: weights are not recorded"
    first = int(found.pairing.steps[0])
    apart = found.differences.distance[0, columns] > found.differences.allowed[0, columns]
    if apart.any():
        names = shortened([found.pairing.cells[number].layer for number in columns[apart]], 3)
        what = f"the weights already differ in step {first}, the first that both have, at {int(apart.sum())} of"
        return f"{what} {len(columns)} layers ({names}): another initialization or seed"
    equal = all(
        np.array_equal(found.pairing.a[name][0, columns], found.pairing.b[name][0, columns])
        for name in ("acsm", "acv", "mean")
    )
    text = (
        f"the weights are {'equal' if equal else 'the same up to rounding'} in step {first}, the first that both have"
    )
    cell = found.departures[0].cell
    if found.departures[0].step == first and cell.signal == "activation" and cell.place == 0:
        text += ": so the data differ, or the first layer does"
    return text


def _approach(found: Comparison) -> list[str]:
    """Whether the first departure came as a jump, and after which layer, or step by step as amplified rounding does."""
    step = found.place
    if step == 0:
        return _before(found)
    with np.errstate(invalid="ignore"):
        before = found.differences.distance[step - 1] / found.differences.allowed[step - 1]
    nearest = float(np.nanmax(np.where(np.isfinite(before), before, np.nan)))
    if nearest > _GRADUAL:
        return [
            "the difference grew gradually, as rounding errors do in training: in the step before, the largest "
            f"was {nearest:.0%} of what is allowed"
        ]
    sudden = f"the difference came at once: in the step before, none was above {nearest:.1%} of what is allowed"
    if found.departures[0].cell.signal == "parameter":
        before = found.pairing.steps[step - 1]
        return [f"{sudden}; so an update since step {before} differed: in the optimizer, or in something not recorded"]
    return [sudden, *_before(found)]


def _before(found: Comparison) -> list[str]:
    """What the same step computed last that does not depart: what is wrong lies between."""
    number = found.pairing.cells.index(found.departures[0].cell)
    signal = found.pairing.cells[number].signal
    if number == 0 or found.pairing.cells[number - 1].signal != signal or signal in ("parameter", "update"):
        return []
    cell = found.pairing.cells[number - 1]
    return [f"what was computed just before agrees: {cell.layer} ({cell.kind}, {cell.signal})"]


def _sizes(found: Comparison) -> list[str]:
    """A small table: how large the differences of the second moments are, in a few steps."""
    steps = found.pairing.steps
    chosen = sorted({0, found.place, len(steps) // 2, len(steps) - 1})
    rows = [["|b/a - 1|, median (largest)", *(f"step {steps[number]}" for number in chosen)]]
    ratios = np.abs(np.expm1(log_ratios(found)))
    for signal in found.pairing.signals:
        of_signal = ratios[:, found.pairing.columns(signal)]
        rows.append([f"  {signal}", *(_middle_and_most(of_signal[number]) for number in chosen)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def log_ratios(found: Comparison) -> NDArray[np.float64]:
    """The natural logarithm of b/a of the second moments, shape (S, C); NaN where it has none."""
    a, b = second_moments(found.pairing.a), second_moments(found.pairing.b)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(b) - np.log(a)
    ratios[a == b] = 0.0
    return np.where(np.isfinite(ratios), ratios, np.nan)


def _middle_and_most(values: NDArray[np.float64]) -> str:
    values = values[np.isfinite(values)]
    return f"{np.median(values):.1e} ({values.max():.1e})" if len(values) else "none"


def _layer(departure: Departure) -> str:
    cell = departure.cell
    other = f", in b {cell.other}" if cell.other != cell.layer else ""
    return f"{cell.layer} ({cell.kind}, {cell.signal}{other})"


def _values(departure: Departure) -> str:
    text = f"{STATISTIC_NAMES[departure.statistic]} {departure.a:.4g} in a, {departure.b:.4g} in b"
    if departure.statistic == "second_moment" and departure.a > 0 and np.isfinite([departure.a, departure.b]).all():
        ratio = departure.b / departure.a
        text += f", b/a = {ratio:.4g}" if abs(ratio - 1) > 0.01 else f", b/a - 1 = {ratio - 1:.1e}"
    return text


def _yardstick(found: Comparison) -> str:
    allowed = found.differences.allowed[np.isfinite(found.differences.allowed)]
    if not len(allowed):
        return found.differences.yardstick
    ends = allowed.min(), allowed.max()
    low, high = (f"{np.exp(end):.3g}" if len(found.pairing.seeds) else f"{end:.1e}" for end in ends)
    unit = "a factor of " if len(found.pairing.seeds) else ""
    return f"{found.differences.yardstick} ({unit}{low if low == high else f'{low} to {high}'})"


def _steps(steps: NDArray[np.int64]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps):,} steps ({steps[0]} to {steps[-1]})"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}s are" if number != 1 else f"1 {what} is"
