"""Tests that compare two groups of runs, of two nets or of two learning rates, by Welch's interval."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Cell, Record
from sppbench.study.common.intervals import Estimate, Verdict, difference, measured


@dataclass(frozen=True)
class Criterion:
    """How a difference is judged.

    Attributes:
        decide: The verdict, from the estimate alone; it is asked only if both groups have their seeds.
        words: The same in words.
        unsure: The words for an interval from which no verdict follows.
    """

    decide: Callable[[Estimate], Verdict]
    words: str
    unsure: str = "the interval contains 0"


Group = tuple[Cell, Mapping[int, float]]


def accuracy_difference(record: Record, name: str, minuend: Cell, subtrahend: Cell, criterion: Criterion) -> Part:
    """A deciding part: the difference of two cells' test accuracies, in points."""
    groups = [(cell, record.accuracies(cell)) for cell in (minuend, subtrahend)]
    return compare(record, name, "difference of test accuracy, in points", groups[0], groups[1], criterion)


def compare(
    record: Record,
    name: str,
    quantity: str,
    minuend: Group,
    subtrahend: Group,
    criterion: Criterion,
    decides: bool = True,
) -> Part:
    """The difference of two groups' means, as a part; the groups are values by seed."""
    rules = record.rules
    groups = (minuend, subtrahend)
    details = tuple(f"{cell}: {_summary(values)}" for cell, values in groups if values)
    short = [
        (cell, record.unused(record.runs(cell), rules.seeds - len(values)))
        for cell, values in groups
        if len(values) < rules.seeds
    ]
    estimate = None
    if all(values for _, values in groups):
        a, b = (list(values.values()) for _, values in groups)
        estimate = difference(a, b, rules.confidence)
    verdict: Verdict = "undecided"
    missing = record.needs(short)
    if estimate is not None and not short:
        verdict = criterion.decide(estimate)
        if verdict == "undecided":
            used = set(record.runs(minuend[0])) & set(record.runs(subtrahend[0]))
            missing = record.more([cell for cell, _ in groups], used, criterion.unsure)
    return Part(
        name,
        quantity,
        *measured(estimate),
        sum(len(values) for _, values in groups),
        criterion.words,
        verdict,
        missing,
        details,
        decides,
    )


def _summary(values: Mapping[int, float]) -> str:
    mean = statistics.fmean(values.values())
    if len(values) == 1:
        return f"{mean:.4g}, one seed"
    return f"{mean:.4g} ± {statistics.stdev(values.values()):.2g} (standard deviation), {len(values)} seeds"
