"""C3 on accuracies and losses with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.fabricate.claims import NAN, cell, judged, part, rules

BN, NOMP, MP = "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp"


def c3(directory: Path, bn: float = 33.0, nomp: float = 30.0, mp: float = 29.0, spread: float = 0.5) -> None:
    for net, mean, loss in ((BN, bn, 2.0), (NOMP, nomp, 2.5), (MP, mp, 1.5)):
        cell(directory, net, 0.001, [mean - spread, mean, mean + spread], losses=[loss - 0.1, loss, loss + 0.1])


def test_stable_and_worse_holds(tmp_path: Path) -> None:
    c3(tmp_path)
    claim = judged(tmp_path, "C3")
    assert claim.verdict == "holds"
    assert [one.decides for one in claim.parts] == [True] * 4 + [False] * 2
    one = part(claim, f"{BN} - {NOMP}")
    # Equal variances of 0.25 with three runs each: Welch's df are 4.
    t = 2.7764451051977987
    half = t * math.sqrt(0.25 / 3 + 0.25 / 3)
    assert (one.value, one.n) == (pytest.approx(3.0), 6)
    assert one.interval == pytest.approx((3 - half, 3 + half))
    assert part(claim, f"{NOMP} trains stably").value == 29.5


def test_the_training_loss_tells_optimization_from_regularization(tmp_path: Path) -> None:
    c3(tmp_path)
    claim = judged(tmp_path, "C3")
    nomp, mp = part(claim, f"{NOMP} - {BN}"), part(claim, f"{MP} - {BN}")
    assert (nomp.verdict, nomp.value, nomp.decides) == ("holds", pytest.approx(0.5), False)
    assert any("one of optimization" in detail for detail in nomp.details)
    assert (mp.verdict, mp.value) == ("fails", pytest.approx(-0.5))
    assert any("one of regularization" in detail for detail in mp.details)


def test_a_run_without_its_loss_is_left_out_of_context_alone(tmp_path: Path) -> None:
    c3(tmp_path)
    (tmp_path / NOMP / "lr=0.001" / "seed=868" / "metrics.csv").write_text("epoch,train/loss\n19,nan\n")
    (tmp_path / MP / "lr=0.001" / "seed=868" / "metrics.csv").unlink()
    claim = judged(tmp_path, "C3")
    assert claim.verdict == "holds"
    for net in (NOMP, MP):
        one = part(claim, f"{net} - {BN}")
        assert (one.verdict, one.n) == ("undecided", 5)
        assert any("left out" in detail for detail in one.details)
        assert "seed 362" in one.missing, "a seed that has run already would not run again"


def test_no_difference_is_undecided_and_the_reverse_fails(tmp_path: Path) -> None:
    c3(tmp_path / "equal", bn=30.0, nomp=30.0)
    equal = part(judged(tmp_path / "equal", "C3"), f"{BN} - {NOMP}")
    assert equal.verdict == "undecided"
    assert "the interval contains 0" in equal.missing
    assert f"model={BN},{NOMP} optimizer.lr=0.001 seed=362,970" in equal.missing
    c3(tmp_path / "reverse", bn=25.0)
    assert judged(tmp_path / "reverse", "C3").verdict == "fails"


@pytest.mark.parametrize("kind", ["low", "nan", "diverged"])
def test_one_unstable_run_refutes_it(tmp_path: Path, kind: str) -> None:
    c3(tmp_path)
    arguments = {"low": {}, "nan": {"test": NAN}, "diverged": {"test": NAN, "status": "diverged"}}[kind]
    cell(tmp_path, MP, 0.001, [9.0 if kind == "low" else 29.0], **arguments)  # in the place of the first
    claim = judged(tmp_path, "C3")
    assert part(claim, f"{MP} trains stably").verdict == "fails"
    assert part(claim, f"{NOMP} trains stably").verdict == "holds"
    assert claim.verdict == "fails"


def test_too_few_seeds(tmp_path: Path) -> None:
    c3(tmp_path)
    for seed in (67, 472):
        (tmp_path / NOMP / "lr=0.001" / f"seed={seed}" / "result.json").unlink()
    claim = judged(tmp_path, "C3")
    one = part(claim, f"{BN} - {NOMP}")
    assert claim.verdict == "undecided"
    assert (one.verdict, one.value, one.n, one.interval) == ("undecided", 3.5, 4, None)
    assert one.missing.startswith(
        f"needs {NOMP} at lr 0.001, seeds 67, 472: "
        f"python -m sppbench.train -m model={NOMP} optimizer.lr=0.001 seed=67,472"
    )
    assert "seed=472 is unfinished" in one.missing
    assert part(claim, f"{NOMP} trains stably").verdict == "undecided"


def test_the_thresholds_of_c3_are_the_rules_(tmp_path: Path) -> None:
    c3(tmp_path)
    assert judged(tmp_path, "C3", rules(tmp_path / "a.yaml", claims__C3__accuracy_above=29.2)).verdict == "fails"
    assert judged(tmp_path, "C3", rules(tmp_path / "b.yaml", seeds=4)).verdict == "undecided"
    assert judged(tmp_path, "C3", rules(tmp_path / "c.yaml", confidence=0.99999)).verdict == "undecided"


def test_runs_off_the_protocol_do_not_count(tmp_path: Path) -> None:
    c3(tmp_path)
    cell(tmp_path / "old", BN, 0.001, [1.0] * 5, overrides=["trainer.max_epochs=8"])
    cell(tmp_path / "other", MP, 0.001, [1.0] * 5, overrides=["model.mp_weight=0.3"])
    assert judged(tmp_path, "C3").verdict == "holds"


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    c3(tmp_path / "outputs")
    c3(tmp_path / "results")
    assert part(judged(tmp_path, "C3"), f"{BN} - {NOMP}").n == 6
