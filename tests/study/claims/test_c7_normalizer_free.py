"""C7 on accuracies with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy import stats

from tests.fabricate.claims import cell, judged, part, rules

NF, BN = "nf_efficientnet", "efficientnet_bn"
EQUAL, REGULARIZED = "efficientnet_bn_equal_steps", "efficientnet_bn_regularized"
SPREAD = [-1.0, -0.5, 0.0, 0.5, 1.0]


def c7(directory: Path, over_bn: float, over_regularized: float, over_equal: float = 5.0) -> None:
    means = {NF: 36.0, BN: 36.0 - over_bn, EQUAL: 36.0 - over_equal, REGULARIZED: 36.0 - over_regularized}
    for net, mean in means.items():
        cell(directory, net, 0.001, [mean + deviation for deviation in SPREAD])


@pytest.mark.parametrize(
    ("over_bn", "over_regularized", "verdicts"),
    [
        (2.0, 0.0, ["holds", "holds"]),
        (1.0, 0.0, ["undecided", "holds"]),  # ± 1.15 at 95 %
        (-2.0, 0.0, ["fails", "holds"]),
        (2.0, -0.5, ["holds", "undecided"]),  # ± 0.93 at 90 %
        (2.0, -2.0, ["holds", "fails"]),
    ],
)
def test_c7(tmp_path: Path, over_bn: float, over_regularized: float, verdicts: list[str]) -> None:
    c7(tmp_path, over_bn, over_regularized)
    claim = judged(tmp_path, "C7")
    assert [one.verdict for one in claim.parts] == [verdicts[0], "holds", verdicts[1]]
    assert [one.value for one in claim.parts] == pytest.approx([over_bn, 5.0, over_regularized], abs=1e-9)


def test_it_must_be_as_good_as_each_of_its_rivals(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, 0.0, over_equal=-2.0)
    claim = judged(tmp_path, "C7")
    assert [one.verdict for one in claim.parts] == ["holds", "fails", "holds"]
    assert claim.verdict == "fails"


def test_superiority_is_at_95_and_non_inferiority_at_90_percent(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, 0.0)
    standard_error = math.sqrt(2 * 0.625 / 5)  # both groups have the variance 2.5 / 4; Welch's df are then 8
    for one, value, level in zip(judged(tmp_path, "C7").parts, (2.0, 5.0, 0.0), (0.95, 0.90, 0.90), strict=True):
        half = stats.t.ppf((1 + level) / 2, 8) * standard_error
        assert one.interval == pytest.approx((value - half, value + half))


def test_c7_needs_five_seeds_of_both_nets_and_three_of_a_rival(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, 0.0)
    cell(tmp_path / "fewer", NF, 0.001, [36.0, 36.1, 35.9, 36.0])
    cell(tmp_path / "fewer", BN, 0.001, [30.0 + deviation for deviation in SPREAD])
    claim = judged(tmp_path / "fewer", "C7")
    assert [one.verdict for one in claim.parts] == ["undecided"] * 3
    assert f"model={NF} optimizer.lr=0.001 seed=970" in claim.parts[0].missing
    assert f"model={REGULARIZED} optimizer.lr=0.001 seed=868,67,472" in claim.parts[2].missing
    cell(tmp_path / "fewer", REGULARIZED, 0.001, [36.0, 36.1])
    assert judged(tmp_path / "fewer", "C7").parts[2].verdict == "undecided"
    cell(tmp_path / "fewer", REGULARIZED, 0.001, [36.0, 36.1, 35.9])
    assert judged(tmp_path / "fewer", "C7").parts[2].verdict == "holds"


def test_a_net_with_a_part_taken_out_is_another_net(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, 0.0)
    cell(tmp_path / "other", NF, 0.001, [40.0] * 5, overrides=["model.bias=true"])
    assert judged(tmp_path / "other", "C7").parts[0].n == 0


def test_larger_rates_are_context(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, 0.0)
    assert len(judged(tmp_path, "C7").parts) == 3
    for net, mean in ((NF, 5.0), (BN, 12.0)):
        cell(tmp_path, net, 0.01, [mean + deviation for deviation in SPREAD])
    claim = judged(tmp_path, "C7")
    assert claim.verdict == "holds"
    context = part(claim, f"{NF} - {BN} at lr 0.01")
    assert (context.verdict, context.decides, context.value) == ("fails", False, pytest.approx(-7.0))


def test_the_margin_is_the_rules_(tmp_path: Path) -> None:
    c7(tmp_path, 2.0, -0.5)
    assert judged(tmp_path, "C7", rules(tmp_path / "rules.yaml", claims__C7__margin=2.0)).verdict == "holds"
