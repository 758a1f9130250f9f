"""Means and differences of means with their intervals, Student's and Welch's: pure functions of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["holds", "fails", "undecided"]
Number = TypeVar("Number", float, NDArray[np.float64])


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


def quantile(confidence: float, df: float) -> float:
    """The two-sided quantile of Student's t.

    Example:
        >>> round(quantile(0.95, 4), 3)
        2.776
    """
    from scipy.special import stdtrit  # as scipy.stats.t.ppf, which takes a second longer to import

    return float(stdtrit(df, (1 + confidence) / 2))


def student(mean: Number, std: Number, n: int, confidence: float) -> tuple[Number, Number]:
    """Student's interval of the mean of n values, at least two; of numbers, or of arrays value by value."""
    half = quantile(confidence, n - 1) * (std / math.sqrt(n))
    return mean - half, mean + half


def welch(a: Summary, b: Summary, confidence: float) -> tuple[tuple[float, float] | None, float | None]:
    """Welch's interval of the difference a minus b, and its degrees of freedom by Welch and Satterthwaite.

    Returns:
        The interval is None where a single run leaves no spread. Without any spread on both sides it is a point, and
        the degrees of freedom are None.
    """
    difference = a.mean - b.mean
    if a.std is None or b.std is None:
        return None, None
    of_a, of_b = a.std**2 / a.n, b.std**2 / b.n
    if of_a + of_b == 0:
        return (difference, difference), None
    df = (of_a + of_b) ** 2 / (of_a**2 / (a.n - 1) + of_b**2 / (b.n - 1))
    half = quantile(confidence, df) * math.sqrt(of_a + of_b)
    return (difference - half, difference + half), df


def mean(values: Sequence[float], confidence: float) -> Estimate:
    """Mean of at least one value, with Student's interval."""
    of = summarize(values)
    interval = None if of.std is None else student(of.mean, of.std, of.n, confidence)
    return Estimate(of.mean, interval, of.n)


def difference(a: Sequence[float], b: Sequence[float], confidence: float) -> Estimate:
    """Mean of `a` minus mean of `b`, at least one value each, with Welch's interval; n counts both."""
    of_a, of_b = summarize(a), summarize(b)
    return Estimate(of_a.mean - of_b.mean, welch(of_a, of_b, confidence)[0], of_a.n + of_b.n)


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
