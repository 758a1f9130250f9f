from __future__ import annotations

import math
import statistics
import warnings

import numpy as np
import pytest
from scipy import stats

from sppbench.study.common.intervals import Summary, summarize
from sppbench.study.table.verdict import can_be_reproduced, compare, decide, is_chance


def sample(mean: float, std: float, n: int) -> list[float]:
    """Numbers with exactly this mean and sample standard deviation."""
    z = np.arange(n) - (n - 1) / 2
    return list(mean + std * z / z.std(ddof=1))


def verdict(ours: Summary, published: Summary, margin: float = 2.0, chance: float = 1.0) -> str:
    accuracies = sample(ours.mean, ours.std or 0.0, ours.n)
    return decide(accuracies, compare(ours, published), published, chance, margin)


def test_mean_and_sample_standard_deviation() -> None:
    # Deviations from 33: -1, 0, 1; squares sum up to 2; 2 / (3 - 1) = 1.
    assert summarize([32.0, 33.0, 34.0]) == Summary(33.0, 1.0, 3)
    assert summarize([33.1]) == Summary(33.1, None, 1)
    assert summarize([33.3] * 5) == Summary(33.3, 0.0, 5), "not 7e-15 from rounding"


def test_welch_by_hand() -> None:
    """Equal spreads and numbers: Welch is the pooled test.

    a = b = 1²/5 = 0.2, so the standard error is sqrt(0.4) = 0.632456 and df = 0.4² / (2 · 0.2²/4) = 8. From a printed
    table t(0.95, 8) = 1.8595, so that the half width is 1.8595 · 0.632456 = 1.17606.
    """
    comparison = compare(Summary(33.0, 1.0, 5), Summary(33.5, 1.0, 5))
    assert comparison.difference == -0.5
    assert comparison.df == pytest.approx(8)
    assert comparison.interval == pytest.approx((-1.67606, 0.67606), abs=5e-5)


def test_the_prediction_interval_by_hand() -> None:
    # t(0.975, 4) = 2.7764 in a printed table; 2.7764 · 0.8 · sqrt(1/5 + 1/5) = 1.40475; for one run sqrt(1/5 + 1).
    published = Summary(33.5, 0.8, 5)
    assert compare(Summary(30.0, 0.1, 5), published).prediction == pytest.approx((32.09525, 34.90475), abs=1e-4)
    half = 2.7764 * 0.8 * math.sqrt(1.2)
    assert compare(Summary(30.0, None, 1), published).prediction == pytest.approx((33.5 - half, 33.5 + half), abs=1e-4)


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy, of samples without spread
@pytest.mark.parametrize("ours", [(33.0, 0.8, 5), (10.0, 3.0, 2), (29.0, 0.01, 12), (30.0, 0.0, 3)])
@pytest.mark.parametrize("published", [(33.5, 0.8, 5), (13.9, 3.4, 5), (30.0, 0.001, 4)])
def test_welch_is_scipy_s(ours: tuple[float, float, int], published: tuple[float, float, int]) -> None:
    expected = stats.ttest_ind(sample(*ours), sample(*published), equal_var=False)
    comparison = compare(Summary(*ours), Summary(*published))
    assert comparison.df == pytest.approx(expected.df)
    assert comparison.interval == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_the_prediction_interval_covers_as_many_means_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        known, future = random.normal(33, 0.8, 5), random.normal(33, 0.8, 3)
        published = Summary(known.mean(), known.std(ddof=1), 5)
        low, high = compare(summarize(future.tolist()), published).prediction
        hits += low <= future.mean() <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_equality_is_shown_just_inside_of_the_margin_only() -> None:
    ours, published = Summary(33.0, 0.5, 5), Summary(33.5, 0.8, 5)
    low, high = compare(ours, published).interval or (0, 0)
    assert low < 0 < high
    edge = max(-low, high)
    assert verdict(ours, published, margin=edge + 1e-6) == "reproduced"
    assert verdict(ours, published, margin=edge - 1e-6) == "undecided"


@pytest.mark.parametrize("shift", [1.2, -1.2])
def test_equality_is_two_one_sided_tests(shift: float) -> None:
    """Schuirmann 1987: both one-sided hypotheses rejected at 5 %, here by SciPy on samples."""
    ours, published = sample(33.5 + shift, 0.5, 5), sample(33.5, 0.8, 5)
    summary, other = Summary(33.5 + shift, 0.5, 5), Summary(33.5, 0.8, 5)
    for margin in (1.9, 1.95, 2.0, 2.05, 2.1):
        above = stats.ttest_ind(np.add(ours, margin), published, equal_var=False, alternative="greater").pvalue
        below = stats.ttest_ind(np.subtract(ours, margin), published, equal_var=False, alternative="less").pvalue
        assert (verdict(summary, other, margin) == "reproduced") == (max(above, below) < 0.05), margin


def test_a_difference_is_shown_where_the_interval_excludes_0() -> None:
    published = Summary(33.5, 0.8, 5)
    assert verdict(Summary(36.0, 0.8, 5), published) == "higher"
    assert verdict(Summary(31.0, 0.8, 5), published) == "lower"
    # Welch at 90 %: half width 1.8595 · 0.8 · sqrt(0.4) = 0.94085.
    assert verdict(Summary(33.5 - 0.942, 0.8, 5), published, margin=0.5) == "lower"
    assert verdict(Summary(33.5 - 0.940, 0.8, 5), published, margin=0.5) == "undecided"
    assert verdict(Summary(33.5 - 0.942, 0.8, 5), published) == "reproduced", "different, and still within the margin"


def test_the_published_spread_alone_can_be_wider_than_the_margin() -> None:
    wide, narrow = Summary(13.9, 3.4, 5), Summary(33.5, 0.8, 5)
    assert not can_be_reproduced(wide, 2.0)
    assert can_be_reproduced(narrow, 2.0)
    assert can_be_reproduced(wide, 2.6)
    for n in (2, 5, 1000):
        for std in (0.0, 0.1, 1.0, 3.4):
            assert verdict(Summary(13.9, std, n), wide) == "undecided"


def test_no_spread_on_either_side() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare(Summary(31.0, 0.0, 5), Summary(30.0, 0.0, 5))
    assert comparison.interval == (1.0, 1.0)
    assert comparison.df is None
    assert comparison.prediction == (30.0, 30.0)
    for mean, expected in ((31.0, "reproduced"), (30.0, "reproduced"), (32.5, "higher"), (27.0, "lower")):
        assert verdict(Summary(mean, 0.0, 5), Summary(30.0, 0.0, 5)) == expected


def test_one_run_has_no_interval() -> None:
    comparison = compare(Summary(33.0, None, 1), Summary(33.5, 0.8, 5))
    assert (comparison.difference, comparison.interval, comparison.df) == (-0.5, None, None)
    assert decide([33.0], comparison, Summary(33.5, 0.8, 5), 1.0, 2.0) == "undecided"


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([1.0] * 5, "reproduced"),
        ([0.9, 1.0, 1.0, 1.0, 1.1], "reproduced"),
        ([1.0, 1.0, 1.0, 1.0, 1.2], "higher"),
        ([1.0, 1.0, 1.0, 1.0, 0.8], "lower"),
        ([1.5, 1.0, 1.0, 1.0, 0.5], "undecided"),
    ],
)
def test_chance_cells(accuracies: list[float], expected: str) -> None:
    published = Summary(1.0, 0.0, 5)
    comparison = compare(summarize(accuracies), published)
    assert decide(accuracies, comparison, published, chance=1.0, margin=2.0) == expected


def test_what_chance_is_depends_on_the_number_of_classes() -> None:
    assert is_chance(Summary(1.0, 0.0, 5), 100 / 100)
    assert is_chance(Summary(33.3, 0.0, 5), 100 / 3)
    assert not is_chance(Summary(1.0, 0.0, 5), 100 / 10)
    assert not is_chance(Summary(1.0, 0.1, 5), 100 / 100)
    accuracies = [1.0, 1.0, 1.2]
    comparison = compare(summarize(accuracies), Summary(1.0, 0.0, 5))
    assert decide(accuracies, comparison, Summary(1.0, 0.0, 5), chance=10.0, margin=2.0) == "reproduced"


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    values = [13.9, 10.2, 17.7]
    assert summarize(values).std == pytest.approx(np.std(values, ddof=1))
    assert summarize(values).mean == pytest.approx(statistics.fmean(values))
