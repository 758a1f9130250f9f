"""Optimization or generalization, on curves with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fabricate.claims import LEARNING, cell, judged, part
from tests.fabricate.runs import SEEDS, write_run

BN, NOMP = "efficientnet_bn", "sn_efficientnet_nomp"


def runs(directory: Path, net: str, train: list[list[float]], val: list[list[float]], fit: list[float] | None) -> None:
    """Runs of 20 epochs whose losses are those given in the first epochs, and then stay."""
    for number, (x, y) in enumerate(zip(train, val, strict=True)):
        train_curve, val_curve = ([*losses, *[losses[-1]] * (20 - len(losses))] for losses in (x, y))
        fields = {} if fit is None else {"train": {"loss": fit[number], "accuracy": 40.0, "images": 10_000}}
        arguments = {"curve": [0.0] * 20, "test": dict(LEARNING), **fields}
        path = write_run(directory, net, 0.001, SEEDS[number], 30.0, **arguments)
        rows = [f"{epoch},{a},{b}," for epoch, (a, b) in enumerate(zip(train_curve, val_curve, strict=True))]
        text = "\n".join(["epoch,train/loss,val/loss,test/accuracy", *rows, "20,,,30.0"]) + "\n"
        (path / "metrics.csv").write_text(text)


def test_validation_loss_is_compared_at_equal_training_loss(tmp_path: Path) -> None:
    # The better net has come further; at its own training loss of 2.5, half way from 3 to 2, it has a validation loss
    # of 2.6. The other ends there, with 2.9.
    spread = (-0.01, 0.0, 0.01)
    runs(tmp_path, BN, [[4.0, 3.0, 2.0]] * 3, [[4.0, 3.0 + d, 2.2 + d] for d in spread], None)
    runs(tmp_path, NOMP, [[4.0, 2.5]] * 3, [[4.0, 2.9 + d] for d in spread], None)
    one = part(judged(tmp_path, "C3"), f"{NOMP} - {BN}, at equal training loss")
    assert (one.value, one.n, one.decides) == (pytest.approx(0.3), 6, False)
    assert one.verdict == "holds"
    assert "at a training loss of 2.500" in one.details


def test_the_first_time_counts_that_the_training_loss_is_so_low(tmp_path: Path) -> None:
    runs(tmp_path, BN, [[4.0, 2.0, 3.0, 1.0]] * 3, [[4.0, 2.0, 9.0, 9.0]] * 3, None)
    runs(tmp_path, NOMP, [[4.0, 2.0]] * 3, [[4.0, 2.0]] * 3, None)
    assert part(judged(tmp_path, "C3"), f"{NOMP} - {BN}, at equal training loss").value == pytest.approx(0.0)


def test_nets_without_a_common_training_loss_are_not_compared(tmp_path: Path) -> None:
    runs(tmp_path, BN, [[2.0, 1.0]] * 3, [[2.0, 1.0]] * 3, None)
    runs(tmp_path, NOMP, [[4.0, 3.0]] * 3, [[4.0, 3.0]] * 3, None)
    assert not [one for one in judged(tmp_path, "C3").parts if "equal training loss" in one.name]


def test_the_fit_is_compared_where_it_was_recorded(tmp_path: Path) -> None:
    runs(tmp_path, BN, [[4.0, 2.0]] * 3, [[4.0, 2.0]] * 3, [1.9, 2.0, 2.1])
    cell(tmp_path, NOMP, 0.001, [30.0, 30.0, 30.0])  # the first two anew, with their fit
    runs(tmp_path, NOMP, [[4.0, 2.0]] * 2, [[4.0, 2.0]] * 2, [2.4, 2.5])
    one = part(judged(tmp_path, "C3"), f"{NOMP} - {BN}, fit")
    assert (one.value, one.n, one.verdict) == (pytest.approx(0.45), 5, "undecided")
    assert any("did not record its loss on training images" in detail for detail in one.details)


def test_older_runs_are_not_compared_by_what_they_did_not_record(tmp_path: Path) -> None:
    runs(tmp_path, BN, [[4.0, 2.0]] * 3, [[4.0, 2.0]] * 3, None)
    assert not [one for one in judged(tmp_path, "C3").parts if one.name.endswith(", fit")]
