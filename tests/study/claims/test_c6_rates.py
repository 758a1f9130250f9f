"""C6 on accuracies with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.fabricate.claims import CONSTANT, NAN, T2, cell, judged, part, rules

BN, NOMP, MP = "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp"


def c6(directory: Path) -> None:
    cell(directory, BN, 0.001, [33.0, 33.5, 34.0])
    cell(directory, BN, 0.01, [13.0, 14.0, 15.0])
    cell(directory, BN, 0.1, [1.0, 1.0, 1.0], test=CONSTANT)
    for net in (NOMP, MP):
        cell(directory, net, 0.01, [1.0] * 3, test=CONSTANT)
        cell(directory, net, 0.1, [1.0] * 3, test=NAN, status="diverged")


@pytest.mark.filterwarnings("error")
def test_larger_rates_hurt_and_one_net_survives(tmp_path: Path) -> None:
    c6(tmp_path)
    claim = judged(tmp_path, "C6")
    assert claim.verdict == "holds"
    assert all(one.decides for one in claim.parts)
    last = part(claim, f"{BN}, lr 0.01 - lr 0.1")
    half = T2 / math.sqrt(3)  # all of the spread is in one group of three
    assert last.interval == pytest.approx((13 - half, 13 + half))
    survives = part(claim, f"{BN} at lr 0.01 survives")
    assert survives.value == 14.0
    assert survives.interval == pytest.approx((14 - half, 14 + half))
    assert "constant prediction" in part(claim, f"{NOMP} at lr 0.01").details[0]
    assert "NaN" in part(claim, f"{MP} at lr 0.1").details[0]


def test_a_net_that_learns_at_the_larger_rate_refutes_it(tmp_path: Path) -> None:
    c6(tmp_path)
    cell(tmp_path, NOMP, 0.01, [5.0])  # in the place of the first
    claim = judged(tmp_path, "C6")
    one = part(claim, f"{NOMP} at lr 0.01")
    assert (claim.verdict, one.verdict, one.value) == ("fails", "fails", 5.0)
    assert any(detail.startswith("seed 868: 5.00 %, learning") for detail in one.details)


@pytest.mark.filterwarnings("error")
def test_a_net_that_does_not_survive_refutes_it(tmp_path: Path) -> None:
    c6(tmp_path)
    cell(tmp_path, BN, 0.01, [1.0] * 3, test=NAN, status="diverged")
    claim = judged(tmp_path, "C6")
    assert part(claim, f"{BN} at lr 0.01 survives").verdict == "fails"
    same = part(claim, f"{BN}, lr 0.01 - lr 0.1")
    assert (same.verdict, same.value, same.interval) == ("fails", 0.0, (0.0, 0.0))


def test_c6_with_too_few_and_without_runs(tmp_path: Path) -> None:
    c6(tmp_path)
    (tmp_path / MP / "lr=0.1" / "seed=67" / "result.json").unlink()
    claim = judged(tmp_path, "C6")
    assert claim.verdict == "undecided"
    assert "seed=67" in part(claim, f"{MP} at lr 0.1").missing
    file = rules(tmp_path / "rules.yaml", claims__C6__seeds_at_chance=2)
    assert judged(tmp_path, "C6", file).verdict == "holds"
    (tmp_path / "nothing").mkdir()
    nothing = judged(tmp_path / "nothing", "C6")
    assert nothing.verdict == "undecided"
    assert all(one.missing and one.value is None for one in nothing.parts)


def test_rates_between_are_context(tmp_path: Path) -> None:
    c6(tmp_path)
    cell(tmp_path, NOMP, 0.003, [20.0, 20.0, 20.0])
    cell(tmp_path, MP, 0.0003, [25.0])
    claim = judged(tmp_path, "C6")
    assert claim.verdict == "holds"
    context = {one.name: one for one in claim.parts if not one.decides}
    assert set(context) == {f"{NOMP} at lr 0.003", f"{MP} at lr 0.0003"}
    assert context[f"{NOMP} at lr 0.003"].verdict == "holds"
    assert context[f"{MP} at lr 0.0003"].verdict == "undecided"
