"""C5 on runs that do not learn, and on some that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fabricate.claims import CONSTANT, NAN, cell, inspection, judged, part, rules

NET, CONTROL = "efficientnet_nobn", "efficientnet_nobn_lsuv"
CONTROL_PART = f"control: {CONTROL} at lr 0.001"


def dead(directory: Path, control: float = 20.0) -> list[Path]:
    """One run a rate, and the control after fewer epochs than the protocol has."""
    cell(directory, CONTROL, 0.001, [control], overrides=["trainer.max_epochs=2"])
    return [cell(directory, NET, lr, [1.0], test=CONSTANT)[0] for lr in (0.001, 0.01, 0.1)]


def test_constant_predictions_at_all_rates_hold_with_one_seed(tmp_path: Path) -> None:
    dead(tmp_path)
    claim = judged(tmp_path, "C5")
    assert claim.verdict == "holds"
    assert [one.n for one in claim.parts if one.decides] == [1, 1, 1, 1]
    one = part(claim, f"{NET} at lr 0.1")
    assert one.value == 1.0
    assert "constant prediction, standard deviation of the logits 1e-15" in one.details[0]


@pytest.mark.parametrize(
    ("accuracy", "test", "verdict"),
    [
        (1.1, CONSTANT, "holds"),
        (0.9, CONSTANT, "holds"),
        (1.2, CONSTANT, "fails"),
        (8.0, {"classes_predicted": 90, "logits_finite": True}, "fails"),
        (1.0, NAN, "fails"),  # not by constancy, as the rules want it
        (1.0, {"classes_predicted": 3, "logits_finite": True}, "fails"),
        (1.0, {}, "undecided"),
    ],
)
def test_how_a_run_fails_to_learn(tmp_path: Path, accuracy: float, test: dict[str, Any], verdict: str) -> None:
    dead(tmp_path)
    cell(tmp_path, NET, 0.01, [accuracy], test=test)
    claim = judged(tmp_path, "C5")
    one = part(claim, f"{NET} at lr 0.01")
    assert (one.verdict, claim.verdict, one.value) == (verdict, verdict, accuracy)
    assert bool(one.missing) == (verdict == "undecided")


def test_every_seed_must_be_dead(tmp_path: Path) -> None:
    dead(tmp_path)
    cell(tmp_path, NET, 0.01, [1.0, 1.0, 7.0], test=CONSTANT)
    one = part(judged(tmp_path, "C5"), f"{NET} at lr 0.01")
    assert (one.verdict, one.value, one.n) == ("fails", 7.0, 3)


def test_a_rate_without_runs_is_asked_for(tmp_path: Path) -> None:
    runs = dead(tmp_path)
    (runs[2] / "result.json").unlink()
    claim = judged(tmp_path, "C5")
    assert claim.verdict == "undecided"
    assert part(claim, f"{NET} at lr 0.1").missing.startswith(
        f"needs {NET} at lr 0.1, seed 868: python -m sppbench.train -m model={NET} optimizer.lr=0.1 seed=868"
    )


def test_seeds_and_tolerance_are_the_rules_(tmp_path: Path) -> None:
    dead(tmp_path)
    assert judged(tmp_path, "C5", rules(tmp_path / "a.yaml", claims__C5__seeds=2)).verdict == "undecided"
    cell(tmp_path, NET, 0.01, [1.3], test=CONSTANT)
    assert judged(tmp_path, "C5").verdict == "fails"
    assert judged(tmp_path, "C5", rules(tmp_path / "b.yaml", chance_tolerance=0.3)).verdict == "holds"


def test_a_control_that_does_not_learn_leaves_it_open(tmp_path: Path) -> None:
    dead(tmp_path, control=4.0)
    claim = judged(tmp_path, "C5")
    assert (claim.verdict, part(claim, CONTROL_PART).verdict) == ("undecided", "undecided")
    assert "needs a control that learns" in part(claim, CONTROL_PART).missing
    file = rules(tmp_path / "rules.yaml", claims__C5__control_accuracy=3.0)
    assert judged(tmp_path, "C5", file).verdict == "holds"


def test_a_control_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    for lr in (0.001, 0.01, 0.1):
        cell(tmp_path, NET, lr, [1.0], test=CONSTANT)
    claim = judged(tmp_path, "C5")
    assert claim.verdict == "undecided"
    assert f"model={CONTROL}" in part(claim, CONTROL_PART).missing


def test_shorter_runs_count_for_the_control_alone(tmp_path: Path) -> None:
    cell(tmp_path, CONTROL, 0.001, [20.0], overrides=["trainer.max_epochs=2"])
    cell(tmp_path, NET, 0.001, [1.0], test=CONSTANT, overrides=["trainer.max_epochs=2"])
    claim = judged(tmp_path, "C5")
    assert part(claim, CONTROL_PART).verdict == "holds"
    assert (part(claim, f"{NET} at lr 0.001").n, claim.verdict) == (0, "undecided")


def moved(**changes: tuple[float | None, float | None]) -> dict[str, dict[str, float | None]]:
    """Relative and absolute changes by parameter; the names have a dot where Python wants an underscore."""
    return {name.replace("_", "."): {"relative": a, "absolute": b} for name, (a, b) in changes.items()}


@pytest.mark.parametrize(
    ("weight", "bias", "verdict", "value"),
    [
        ((1e-9, 1e-10), (None, 1e-12), "holds", 1e-9),
        ((0.5, 0.1), (None, 0.0), "fails", 0.5),
        ((0.0, 0.0), (None, 0.3), "fails", 0.3),  # absolute, where the initial value is 0
    ],
)
def test_what_moved(tmp_path: Path, weight: Any, bias: Any, verdict: str, value: float) -> None:
    run = dead(tmp_path)[0]
    inspection(run, moved=moved(conv_weight=weight, conv_bias=bias, classifier_1_bias=(None, 2.0)))
    claim = judged(tmp_path, "C5")
    one = part(claim, f"weights of {NET} at lr 0.001")
    assert (one.verdict, one.value, one.decides) == (verdict, value, False)
    assert f"{1 if verdict == 'holds' else 2} of 3 parameters moved: classifier.1.bias by 2" in one.details[0]
    assert claim.verdict == "holds", "it is context"


@pytest.mark.parametrize("content", [moved(conv_weight=(None, None)), {}, 3, {"conv.weight": None}])
def test_what_moved_to_nan_or_is_damaged_tells_nothing(tmp_path: Path, content: Any) -> None:
    inspection(dead(tmp_path)[0], moved=content)
    one = part(judged(tmp_path, "C5"), f"weights of {NET} at lr 0.001")
    assert (one.verdict, one.value) == ("undecided", None)
    assert "inspection.json" in one.missing
