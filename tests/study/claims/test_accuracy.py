"""C3, C4 and C6 on accuracies with known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.fabricate.claims import CONSTANT, NAN, T2, cell, judged, part, rules

BN, NOMP, MP, LECUN = "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp", "sn_efficientnet_mp_lecun"


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


def c4(directory: Path, difference: float, equal_init: float, spread: float = 0.1) -> None:
    for net, mean in ((NOMP, 30.0), (MP, 30.0 + difference), (LECUN, 30.0 + equal_init)):
        cell(directory, net, 0.001, [mean - spread, mean, mean + spread])


@pytest.mark.parametrize(
    ("difference", "equal_init", "spread", "verdict"),
    [
        (-0.8, -0.5, 0.1, "holds"),
        (0.0, 0.0, 0.1, "holds"),  # no effect: ± 0.23
        (0.0, 0.0, 0.5, "undecided"),  # ± 1.1
        (2.0, 2.0, 0.1, "fails"),
        (-0.8, 2.0, 0.1, "fails"),  # the classifier's initialization hid the raise
    ],
)
def test_c4(tmp_path: Path, difference: float, equal_init: float, spread: float, verdict: str) -> None:
    c4(tmp_path, difference, equal_init, spread)
    claim = judged(tmp_path, "C4")
    assert claim.verdict == verdict
    assert [one.value for one in claim.parts] == pytest.approx([difference, equal_init], abs=1e-9)


def test_c4_needs_the_repeat_with_equal_initialization(tmp_path: Path) -> None:
    cell(tmp_path, NOMP, 0.001, [30.0, 30.1, 29.9])
    cell(tmp_path, MP, 0.001, [29.0, 29.1, 28.9])
    claim = judged(tmp_path, "C4")
    assert [one.verdict for one in claim.parts] == ["holds", "undecided"]
    assert claim.verdict == "undecided"
    assert f"model={LECUN} optimizer.lr=0.001 seed=868,67,472" in claim.parts[1].missing


def test_the_nets_of_c4_cannot_be_mistaken_for_one_another(tmp_path: Path) -> None:
    """A net that is called MP with equal initialization, but begins as the study's, is another net."""
    cell(tmp_path, LECUN, 0.001, [29.0] * 3, overrides=["model.classifier_std=0.01"])
    cell(tmp_path, NOMP, 0.001, [30.0] * 3)
    assert part(judged(tmp_path, "C4"), f"{LECUN} - {NOMP}").n == 3


def test_the_margin_is_the_rules_(tmp_path: Path) -> None:
    c4(tmp_path, 0.3, 0.3)  # ± 0.23
    assert judged(tmp_path, "C4").verdict == "fails"
    assert judged(tmp_path, "C4", rules(tmp_path / "rules.yaml", claims__C4__margin=0.6)).verdict == "holds"


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
