"""Intervals against closed forms: Student's t has one at two degrees of freedom."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from sppbench.study.claims.claim import combine
from sppbench.study.common.intervals import Estimate, above, at_most, below, difference, mean, student, summarize, welch
from tests.fabricate.claims import T2


def test_a_mean_of_three() -> None:
    estimate = mean([1.0, 2.0, 6.0], 0.95)
    half = T2 * math.sqrt(7.0 / 3)  # the sample variance is (4 + 1 + 9) / 2
    assert (estimate.value, estimate.n) == (3.0, 3)
    assert estimate.interval == pytest.approx((3 - half, 3 + half))


def test_welch_with_equal_variances_of_two_and_two() -> None:
    estimate = difference([1.0, 3.0], [10.0, 12.0], 0.95)
    half = T2 * math.sqrt(2 / 2 + 2 / 2)  # df = (1 + 1)² / (1²/1 + 1²/1) = 2
    assert (estimate.value, estimate.n) == (-9.0, 4)
    assert estimate.interval == pytest.approx((-9 - half, -9 + half))


def test_welch_where_one_group_has_no_spread_has_the_freedom_of_the_other() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = difference([32.0, 33.0, 34.0], [30.0] * 5, 0.95)
    half = T2 / math.sqrt(3)
    assert estimate.interval == pytest.approx((3 - half, 3 + half))


def test_the_confidence_counts() -> None:
    t = 0.8 / (2 * 0.9 * 0.1) ** 0.5
    assert mean([1.0, 2.0, 6.0], 0.8).interval == pytest.approx((3 - t * math.sqrt(7 / 3), 3 + t * math.sqrt(7 / 3)))


def test_intervals_are_those_of_scipy() -> None:
    a, b = [32.18, 33.4, 31.9, 32.5], [27.53, 29.0, 28.1, 26.2, 30.3]
    reference = stats.ttest_ind(a, b, equal_var=False)
    ends = reference.confidence_interval(0.9)
    assert difference(a, b, 0.9).interval == pytest.approx((ends.low, ends.high), rel=1e-13)
    interval, df = welch(summarize(a), summarize(b), 0.9)
    assert interval == pytest.approx((ends.low, ends.high), rel=1e-13)
    assert df == pytest.approx(reference.df, rel=1e-13)
    ends = stats.ttest_1samp(a, 0.0).confidence_interval(0.95)
    assert mean(a, 0.95).interval == pytest.approx((ends.low, ends.high), rel=1e-13)
    columns = np.array([a, a[::-1]]).T
    low, high = student(columns.mean(axis=0), columns.std(axis=0, ddof=1), 4, 0.95)
    assert low == pytest.approx([ends.low] * 2, rel=1e-13)
    assert high == pytest.approx([ends.high] * 2, rel=1e-13)


@pytest.mark.parametrize("value", [1.0, 0.1, 33.3])
def test_no_spread_at_all_is_a_point_without_warnings(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean([value] * 3, 0.95).interval == pytest.approx((value, value), abs=1e-12)
        assert difference([value] * 3, [value] * 3, 0.95).interval == (0.0, 0.0)
        assert difference([value] * 3, [1.0] * 2, 0.95).interval == pytest.approx((value - 1, value - 1))


def test_one_run_has_no_interval_and_decides_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = mean([5.0], 0.95)
        two = difference([5.0], [1.0, 2.0, 3.0], 0.95)
    assert (one.interval, two.interval) == (None, None)
    assert two.value == 3.0
    assert {above(one, 0.0), above(one, 9.0), at_most(one, 9.0, 10.0), at_most(one, 1.0, 10.0), below(one, 9.0)} == {
        "undecided"
    }


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, (low, high), 3)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 2, "holds"),
        (0.0, 2, "undecided"),
        (-1, 1, "undecided"),
        (-2, 0, "fails"),
        (-2, -1, "fails"),
        (0, 0, "fails"),
    ],
)
def test_above(low: float, high: float, verdict: str) -> None:
    assert above(interval(low, high), 0.0) == verdict
    assert above(interval(low + 7, high + 7), 7.0) == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.5, 0.3, 0.9, "holds"),  # halved, and surely reduced
        (0.4, 0.2, 1.0, "undecided"),  # perhaps not reduced at all
        (0.55, 0.45, 0.65, "undecided"),  # perhaps halved
        (0.6, 0.51, 0.7, "fails"),  # reduced, but surely not halved
        (1.0, 0.9, 1.1, "fails"),
        (0.2, 0.1, 0.3, "holds"),
    ],
)
def test_at_most(value: float, low: float, high: float, verdict: str) -> None:
    assert at_most(Estimate(value, (low, high), 3), 0.5, 1.0) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-2, -1, "holds"),
        (-1, 0.4, "holds"),
        (0.1, 0.4, "holds"),  # raised, but by less than is worth speaking of
        (-1, 0.5, "undecided"),
        (0.1, 0.9, "fails"),
        (1, 2, "fails"),
    ],
)
def test_below(low: float, high: float, verdict: str) -> None:
    assert below(interval(low, high), 0.5) == verdict


def test_a_claim_needs_all_of_its_parts() -> None:
    assert combine(["holds", "holds"]) == "holds"
    assert combine(["holds", "undecided"]) == "undecided"
    assert combine(["undecided", "fails", "holds"]) == "fails"
    assert combine([]) == "undecided"
