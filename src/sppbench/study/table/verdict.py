"""Whether our runs agree with a published mean ± standard deviation: pure functions of numbers.

Two tests, both for means of independent runs whose accuracies are near to normal with unequal variances:

- Welch's interval for the difference of two means (Welch 1947), at 90 %. The two one-sided tests at 5 % (Schuirmann
  1987) find the means equivalent within a margin exactly if this interval lies inside ± margin.
- The prediction interval at 95 % for the mean of n further runs, from the published statistics alone. It needs no
  spread of ours, so that it also judges a single run.

Both count the uncertainty of the published mean. With n = 5 that is large: for 13.9 ± 3.4 the interval of the
difference reaches 2.5 points to each side at least, whatever our runs say. At a margin of 2 points such a cell can be
higher, lower or undecided, but never reproduced: the published spread alone is wider (`can_be_reproduced`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sppbench.study.common.intervals import Summary, quantile, welch

Verdict = Literal["reproduced", "higher", "lower", "undecided", "incomplete"]

MARGIN = 2.0  # points: differences up to this count as equal, unless another margin is asked for
CHANCE_TOLERANCE = 0.1  # points: the study's accuracies are rounded to so much
CONFIDENCE = 0.90  # of the interval of the difference; one-sided tests at (1 - 0.90) / 2
PREDICTION = 0.95


@dataclass(frozen=True)
class Comparison:
    """Ours beside the published value, in points.

    Attributes:
        difference: Our mean minus the published one.
        interval: Welch's interval of the difference; None if one run of ours leaves no spread.
        df: Its degrees of freedom; None where there is no interval, and where neither side has a spread.
        prediction: Where the published value expects the mean of as many runs as ours.
    """

    difference: float
    interval: tuple[float, float] | None
    df: float | None
    prediction: tuple[float, float]


def compare(ours: Summary, published: Summary) -> Comparison:
    """Both intervals. The published value has a standard deviation and n of at least 2."""
    assert published.std is not None
    half = quantile(PREDICTION, published.n - 1) * published.std * math.sqrt(1 / published.n + 1 / ours.n)
    interval, df = welch(ours, published, CONFIDENCE)
    return Comparison(ours.mean - published.mean, interval, df, (published.mean - half, published.mean + half))


def decide(
    accuracies: Sequence[float], comparison: Comparison, published: Summary, chance: float, margin: float
) -> Verdict:
    """The verdict on a cell that has all of its runs.

    Args:
        accuracies: of our runs, in percent.
        comparison: of their mean with the published one.
        chance: accuracy of a constant prediction, in percent.
        margin: difference in points up to which two means count as equal.

    Returns:
        - for a published value at chance (see `is_chance`): "reproduced" if every run lies within ± 0.1 of it, else
          "higher" or "lower" by the mean;
        - otherwise "reproduced" if the interval lies inside ± margin; "higher" or "lower" if it excludes 0; and
          "undecided" if neither equality nor a difference is shown.
    """
    difference, interval = comparison.difference, comparison.interval
    if is_chance(published, chance):
        if all(abs(accuracy - published.mean) <= CHANCE_TOLERANCE + 1e-9 for accuracy in accuracies):
            return "reproduced"
        interval = (difference, difference)
    elif interval is not None and -margin < interval[0] and interval[1] < margin:
        return "reproduced"
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "higher" if interval[0] > 0 else "lower"


def is_chance(published: Summary, chance: float) -> bool:
    """Whether a published value says that no run learned: no spread, and the mean is `chance`, rounded to 0.1."""
    return published.std == 0 and abs(published.mean - chance) <= CHANCE_TOLERANCE / 2


def can_be_reproduced(published: Summary, margin: float) -> bool:
    """Whether any runs of ours could put the interval inside ± margin; it never gets narrower than this."""
    from scipy.special import ndtri

    assert published.std is not None
    return bool(float(ndtri((1 + CONFIDENCE) / 2)) * published.std / math.sqrt(published.n) < margin)
