"""Means, differences of means and their intervals, by SciPy: pure functions of numbers."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1 in the denominator; None for n = 1) of n accuracies, in percent."""

    mean: float
    std: float | None
    n: int


def summarize(accuracies: Sequence[float]) -> Summary:
    """Mean and standard deviation, computed exactly and rounded once: equal runs have a spread of exactly 0."""
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return Summary(statistics.mean(accuracies), std, len(accuracies))


@dataclass(frozen=True)
class Estimate:
    """A measured value, its interval over seeds (None where one run leaves no spread), and the runs behind it."""

    value: float
    interval: tuple[float, float] | None
    n: int

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The same on another scale, under a function that grows."""
        interval = self.interval and (function(self.interval[0]), function(self.interval[1]))
        return Estimate(function(self.value), interval, self.n)

    @property
    def low(self) -> float:
        """The lower end of the interval; -inf where there is none, so that nothing is decided."""
        return self.interval[0] if self.interval else float("-inf")

    @property
    def high(self) -> float:
        return self.interval[1] if self.interval else float("inf")


def measured(estimate: Estimate | None) -> tuple[float | None, tuple[float, float] | None]:
    """Value and interval, as a part has them."""
    return (estimate.value, estimate.interval) if estimate is not None else (None, None)


def mean(values: Sequence[float], confidence: float) -> Estimate:
    """Mean of at least one value, with Student's interval."""
    from scipy import stats

    value = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value, None, len(values))
    return Estimate(value, _interval(stats.ttest_1samp, confidence, values, 0.0), len(values))


def difference(a: Sequence[float], b: Sequence[float], confidence: float) -> Estimate:
    """Mean of `a` minus mean of `b`, at least one value each, with Welch's interval; n counts both."""
    from scipy import stats

    value, n = statistics.fmean(a) - statistics.fmean(b), len(a) + len(b)
    if min(len(a), len(b)) < 2:
        return Estimate(value, None, n)
    if statistics.pvariance(a) == statistics.pvariance(b) == 0:
        return Estimate(value, (value, value), n)
    return Estimate(value, _interval(stats.ttest_ind, confidence, a, b, equal_var=False), n)


def _interval(test: Any, confidence: float, *samples: Any, **options: Any) -> tuple[float, float]:
    with warnings.catch_warnings():
        # Values that are all equal have a spread of exactly 0; SciPy suspects a cancellation.
        warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
        low, high = test(*samples, **options).confidence_interval(confidence)
    return float(low), float(high)


def above(estimate: Estimate, threshold: float) -> Verdict:
    """Holds if the interval lies above the threshold, fails if nothing of it does, else is undecided."""
    if estimate.low > threshold:
        return "holds"
    return "fails" if estimate.high <= threshold else "undecided"


def at_most(estimate: Estimate, threshold: float, excluded: float) -> Verdict:
    """For a reduction to at most a threshold.

    Holds if the value is at most the threshold and the interval excludes `excluded`, such as a ratio of 1; fails if the
    interval lies above the threshold; else is undecided.
    """
    if estimate.value <= threshold and estimate.high < excluded:
        return "holds"
    return "fails" if estimate.low > threshold else "undecided"


def below(estimate: Estimate, margin: float) -> Verdict:
    """For a raise that is none up to a margin.

    Holds if the interval ends below the margin; else fails if it lies above 0; else is undecided.
    """
    if estimate.high < margin:
        return "holds"
    return "fails" if estimate.low > 0 else "undecided"
