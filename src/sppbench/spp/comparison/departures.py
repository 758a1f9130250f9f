"""Where two runs depart from each other, and what is said of it.

A value departs that is further away than its yardstick allows, if in the next step it is still so: what is wrong once
stays wrong, while a single outlier among thousands of values says nothing. In the last step, which has no next one, it
departs if it is not alone. Of a single step each value counts that rounding does not explain.

The first departure is that of the earliest step, and in it what a step computes first: weights, then activations from
the first layer on, then gradients from the last layer on, then gradients and updates of weights, likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.checks import check_choice, check_number
from sppbench.spp.comparison.outcome import Comparison, Departure, Verdict
from sppbench.spp.comparison.pairing import Pairing, pair
from sppbench.spp.comparison.wording import text_of
from sppbench.spp.comparison.yardsticks import (
    UNIT_ROUNDOFFS,
    Differences,
    by_rounding,
    by_seeds,
    by_statistic,
    second_moments,
)


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    *,
    seeds: Sequence[pd.DataFrame] = (),
    rename: Mapping[str, str] | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    k: float | None = None,
) -> Comparison:
    """Finds the first step and layer at which two runs differ by more than rounding or other seeds explain.

    Steps are matched by number and layers by name, or else by order of execution and kind, where that leaves no doubt.
    What only one of the two has is not compared; the notes list it.

    Args:
        a, b: Histories, as ``read_history`` returns them, or single steps, as ``SignalProbe.collect`` does.
        seeds: Further runs of ``a`` with other seeds: ``b`` then departs if it falls outside their spread.
        rename: Beginnings of layer names in a → in b, such as ``{"layers": "model.blocks"}``.
        precision: What values are rounded to: "float32", "tf32", "float16" or "bfloat16"; by default what the histories
            say, which cannot show TF32.
        tolerance: Largest relative difference that still counts as equal, instead of what rounding explains. Not with
            ``seeds``.
        k: How many standard deviations between seeds still count as equal; by default a quantile. Only with ``seeds``.

    Returns:
        What was found; false if the runs depart. ``str()`` gives it in words.

    Raises:
        HistoryError: A frame lacks columns or rows, or nothing in the two can be matched.
        ValueError: An unknown ``precision``; a ``tolerance`` or ``k`` that is not positive, or does not apply.

    Example:
        >>> before = read_history("run/spp.parquet")
        >>> after = before.assign(acv=before["acv"].where(before["layer"] != "2", before["acv"] * 4))
        >>> found = compare(before, after)
        >>> bool(found), found.departures[0].step, found.departures[0].cell.layer, found.departures[0].statistic
        (False, 0, '2', 'second_moment')
    """
    check_choice("precision", precision, (None, *UNIT_ROUNDOFFS))
    for name, value, applies in (("tolerance", tolerance, not seeds), ("k", k, bool(seeds))):
        check_number(name, "positive", value or 1, value is None or value > 0)
        if value is not None and not applies:
            raise ValueError(f"{name} is for a comparison {'without' if seeds else 'with'} seeds")
    pairing = pair(a, b, seeds, rename)
    differences = by_seeds(pairing, k, precision) if seeds else by_rounding(pairing, precision, tolerance)
    beyond = differences.distance > differences.allowed  # false where there is nothing
    departs = _that_stay(beyond, lone_counts=not seeds)
    departures = tuple(_departures(pairing, differences, departs))
    verdict: Verdict = "depart" if departures else "identical" if _is_identical(pairing) else "the same"
    found = Comparison(verdict, departures, pairing, differences, departs, int((beyond & ~departs).sum()))
    return replace(found, text=text_of(found))


def _is_identical(pairing: Pairing) -> bool:
    """Whether both have the same values at the same places, bit for bit."""
    common = pairing.a.keys() & pairing.b.keys()
    return all(np.array_equal(pairing.a[name], pairing.b[name], equal_nan=True) for name in common)


def _that_stay(beyond: NDArray[np.bool_], lone_counts: bool) -> NDArray[np.bool_]:
    """Those values beyond what is allowed that are so in the next step, too; of the last step those that are not alone.

    ``lone_counts``: whether they may be, if there is no other step.
    """
    stay = beyond.copy()
    stay[:-1] &= beyond[1:]
    follows = beyond[-2] if len(beyond) > 1 else np.zeros_like(beyond[-1])
    if beyond[-1].sum() == 1 and not (lone_counts and len(beyond) == 1):
        stay[-1] &= follows
    return stay


def _departures(pairing: Pairing, differences: Differences, departs: NDArray[np.bool_]) -> list[Departure]:
    """The first of each cell, by step and in the order of a step."""
    numbers = np.flatnonzero(departs.any(axis=0))
    first = departs.argmax(axis=0)[numbers]
    statistics = by_statistic(pairing)
    return [
        _departure(pairing, differences, statistics, int(step), int(number))
        for step, number in sorted(zip(first, numbers, strict=True))
    ]


def _departure(
    pairing: Pairing, differences: Differences, statistics: Mapping[str, NDArray[np.float64]], step: int, number: int
) -> Departure:
    name = max(statistics, key=lambda one: statistics[one][step, number])  # the first of equals: the second moment
    if len(pairing.seeds) or statistics["second_moment"][step, number] > differences.allowed[step, number]:
        name = "second_moment"
    a, b = (
        second_moments(values)[step, number] if name == "second_moment" else values[name][step, number]
        for values in (pairing.a, pairing.b)
    )
    return Departure(
        step=int(pairing.steps[step]),
        epoch=int(pairing.epochs[step]),
        cell=pairing.cells[number],
        statistic=name,
        a=float(a),
        b=float(b),
        distance=float(differences.distance[step, number]),
        allowed=float(differences.allowed[step, number]),
    )
