"""C1 on inspections with known errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fabricate.claims import cell, inspection, judged, part, rules

NETS = ("ffnn_bn", "ffnn_bn_h100", "ffnn_bn_noaffine", "ffnn_bn_noaffine_h100", "efficientnet_bn")


def layer(mean: float | None, variance: float | None, low: float = 0.9) -> dict[str, Any]:
    return {"mean_error": mean, "variance_error": variance, "normalized_variance": [low, 0.99]}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Path]]:
    """Two runs of each net with errors of at most 4e-4."""
    paths = {net: cell(tmp_path, net, 0.001, [24.0, 25.0]) for net in NETS}
    for run in [run for found in paths.values() for run in found]:
        inspection(run, batch_norm={"norm1": layer(1e-6, 4e-4), "norm2": layer(2e-6, 1e-5, low=0.25)})
    return paths


def test_small_errors_hold(tmp_path: Path, runs: dict[str, list[Path]]) -> None:
    claim = judged(tmp_path, "C1")
    assert claim.verdict == "holds"
    assert [one.name for one in claim.parts] == list(NETS)
    for one in claim.parts:
        assert (one.value, one.n, one.interval, one.missing) == (4e-4, 2, None, "")
        assert "variance within 0.0004 (at norm1)" in one.details[0]
        assert "v/(v + ε) from 0.25 to 0.99" in one.details[0]


@pytest.mark.parametrize("bad", [layer(2e-3, 0.0), layer(0.0, 2e-3), layer(0.0, 1e-3)])
def test_one_channel_of_one_run_refutes_it(tmp_path: Path, runs: dict[str, list[Path]], bad: dict[str, Any]) -> None:
    inspection(runs["ffnn_bn"][1], batch_norm={"norm1": layer(0.0, 0.0), "norm2": bad})
    claim = judged(tmp_path, "C1")
    assert claim.verdict == "fails"
    assert part(claim, "ffnn_bn").value == max(bad["mean_error"], bad["variance_error"])
    assert part(claim, "efficientnet_bn").verdict == "holds"


def test_the_threshold_is_the_rules_(tmp_path: Path, runs: dict[str, list[Path]]) -> None:
    file = rules(tmp_path / "rules.yaml", claims__C1__relative_error=1e-4)
    assert judged(tmp_path, "C1", file).verdict == "fails"


def test_one_run_is_enough_and_none_is_not(tmp_path: Path, runs: dict[str, list[Path]]) -> None:
    (runs["ffnn_bn"][0] / "inspection.json").unlink()
    assert judged(tmp_path, "C1").verdict == "holds"
    (runs["ffnn_bn"][1] / "inspection.json").unlink()
    claim = judged(tmp_path, "C1")
    assert claim.verdict == "undecided"
    missing = part(claim, "ffnn_bn").missing
    assert missing.endswith(f"sppbench inspect {tmp_path}")
    assert str(runs["ffnn_bn"][0]) in missing


def test_a_missing_run_is_asked_for(tmp_path: Path) -> None:
    claim = judged(tmp_path, "C1")
    assert claim.verdict == "undecided"
    assert part(claim, "efficientnet_bn").missing == (
        "needs efficientnet_bn at lr 0.001, seed 868: python -m sppbench.train -m model=efficientnet_bn "
        f"optimizer.lr=0.001 seed=868, then sppbench inspect {tmp_path}"
    )


@pytest.mark.parametrize("content", [{"n": layer(None, 0.0)}, {"n": layer(0.0, None)}, {"n": 3}, {}, None])
def test_what_is_nan_or_damaged_is_no_evidence(tmp_path: Path, runs: dict[str, list[Path]], content: Any) -> None:
    for run in runs["ffnn_bn"]:
        inspection(run, batch_norm=content)
    one = part(judged(tmp_path, "C1"), "ffnn_bn")
    assert (one.verdict, one.value, one.n) == ("undecided", None, 0)
    assert "seed=472" in one.missing, "another run is asked for"
    (runs["ffnn_bn"][0] / "inspection.json").write_text("{")
    assert "cannot read" in part(judged(tmp_path, "C1"), "ffnn_bn").missing


def test_a_run_off_the_protocol_does_not_count(tmp_path: Path) -> None:
    (run,) = cell(tmp_path, "ffnn_bn", 0.001, [24.0], overrides=["trainer.max_epochs=8"])
    inspection(run, batch_norm={"n": layer(1.0, 1.0)})
    one = part(judged(tmp_path, "C1"), "ffnn_bn")
    assert one.verdict == "undecided"
    assert f"{run} does not count: trainer.max_epochs is 8" in one.missing
