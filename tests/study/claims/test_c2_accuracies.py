"""The published accuracies of C2's nets beside ours, with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from tests.fabricate.claims import cell, judged, rules

SETTINGS = [
    ("h = 100, affine off", "ffnn_bn_noaffine_h100", 18.4),
    ("h = 100, affine on", "ffnn_bn_h100", 23.9),
    ("h = 512, affine off", "ffnn_bn_noaffine", 18.4),
    ("h = 512, affine on", "ffnn_bn", 23.9),
]
SPREAD = [-0.2, -0.1, 0.0, 0.1, 0.2]


def verdicts(directory: Path, file: Path | None = None) -> list[str]:
    parts = [part for part in judged(directory, "C2", file).parts if ": ours - " in part.name]
    assert [part.name.partition(":")[0] for part in parts] == [name for name, *_ in SETTINGS]
    assert not any(part.decides for part in parts)
    return [part.verdict for part in parts]


def runs(directory: Path, small: float, large: float) -> None:
    """Accuracies that follow the width."""
    for name, net, _ in SETTINGS:
        mean = small if "100" in name else large
        cell(directory, net, 0.001, [mean + deviation for deviation in SPREAD])


def test_accuracies_that_follow_the_width_are_the_published_ones_in_one_setting_each(tmp_path: Path) -> None:
    runs(tmp_path, 18.4, 23.9)
    assert verdicts(tmp_path) == ["holds", "fails", "fails", "holds"]


def test_accuracies_that_follow_the_setting_are_the_published_ones_at_each_width(tmp_path: Path) -> None:
    for _, net, published in SETTINGS:
        cell(tmp_path, net, 0.001, [published + deviation for deviation in SPREAD])
    assert verdicts(tmp_path) == ["holds"] * 4


def test_the_interval_counts_the_published_spread_and_ours(tmp_path: Path) -> None:
    runs(tmp_path, 18.6, 23.9)
    one = next(part for part in judged(tmp_path, "C2").parts if part.name.startswith("h = 100, affine off"))
    ours, theirs = 0.025 / 5, 0.2**2 / 5  # variances of the means
    degrees = (ours + theirs) ** 2 / ((ours**2 + theirs**2) / 4)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(ours + theirs)
    assert one.value == pytest.approx(0.2)
    assert one.interval == pytest.approx((0.2 - half, 0.2 + half))


def test_what_is_neither_equal_nor_different_is_undecided(tmp_path: Path) -> None:
    runs(tmp_path, 19.4, 24.9)  # one point above
    assert verdicts(tmp_path)[0] == "undecided"
    assert verdicts(tmp_path, rules(tmp_path / "rules.yaml", claims__C2__accuracy_margin=2.0))[0] == "holds"
    cell(tmp_path / "few", "ffnn_bn", 0.001, [23.9, 23.8])
    assert verdicts(tmp_path / "few") == ["undecided"] * 4
