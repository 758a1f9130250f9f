"""The figures of the backward gain: factors add up to the measured gain, and changes are put down to the right one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sppbench.evidence.profiles import attribute_change, log_gains
from sppbench.evidence.runs import Run
from sppbench.evidence.selection import Evidence
from sppbench.spp.history.writer import BatchNormWriter
from sppbench.study.figures.c2_gain_figures import MEASURED, draw_gains
from sppbench.study.figures.drawing import Drawing
from tests.fabricate.histories import Factors, write_gains

LAYERS = [f"block{block}.norm" for block in range(9)]
NETS = {"ffnn_bn_noaffine": "off", "ffnn_bn": "on"}
PARTS = {"γ²": 0, "1/(v + ε)": 1, "p": 2}


def factors(model: str, seed: int) -> Factors:
    """log2 of 1/(v + ε) falls from +block/2 by 2 over 20 epochs, γ² rises by ½ where it is learned, p stays; ±seed."""

    def of(layer: str, depth: int, epoch: int) -> tuple[float, float, float]:
        gamma = 0.5 * epoch / 19 if model == "ffnn_bn" else 0.0
        inverse = depth / 2 - 2.0 * epoch / 19 + (seed - 2)
        return 2.0**gamma, 2.0**inverse, 0.99

    return of


def record(path: Path, model: str, seed: int) -> Run:
    return Run(path, "figures", model, 0.001, seed, {}, "completed", None, None)


def fabricate(directory: Path, seeds: Mapping[str, Sequence[int]], layers: Sequence[str] | None = None) -> Evidence:
    runs = []
    for model, of_model in seeds.items():
        for seed in of_model:
            path = directory / model / "lr=0.001" / f"seed={seed}"
            write_gains(path, factors(model, seed), layers)
            runs.append(record(path, model, seed))
    return Evidence(directory, tuple(runs), ())


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    evidence = fabricate(tmp_path_factory.mktemp("gains"), dict.fromkeys(NETS, (1, 2, 3)))
    return {drawing.name: drawing for drawing in draw_gains(evidence, NETS, 0.001)[0]}


def table(drawing: Drawing, panel: str) -> pd.DataFrame:
    return drawing.curves[drawing.curves["panel"] == panel].pivot(index="x", columns="curve", values="value")


def test_all_panels_are_there(drawings: dict[str, Drawing]) -> None:
    assert [panel.name for panel in drawings["gain_changes"].panels] == ["off", "on"]
    some = {f"{net}: block{block}.norm" for net in ("off", "on") for block in (0, 4, 8)}
    assert {panel.name for panel in drawings["gain_factors"].panels} == some
    assert len(drawings["gain_factors_all"].panels) == 2 * 9
    for drawing in drawings.values():
        assert {panel.kind for panel in drawing.panels} == {"stack"}
        assert {panel.name for panel in drawing.panels} == set(drawing.curves["panel"])


def test_stacks_hold_the_mean_of_log2_over_seeds(drawings: dict[str, Drawing]) -> None:
    epochs = np.arange(20)
    for block in range(9):
        rows = table(drawings["gain_factors_all"], f"on: block{block}.norm")
        np.testing.assert_array_equal(rows.index, epochs)
        np.testing.assert_allclose(rows["γ²"], 0.5 * epochs / 19, atol=1e-6)
        np.testing.assert_allclose(rows["1/(v + ε)"], block / 2 - 2 * epochs / 19, atol=1e-6)
        np.testing.assert_allclose(rows["p"], math.log2(0.99), atol=1e-6)
        np.testing.assert_allclose(rows[MEASURED], block / 2 - 1.5 * epochs / 19 + math.log2(0.99), atol=1e-6)


def test_changes_are_put_down_to_factors(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["gain_changes"]
    for net, gamma in (("off", 0.0), ("on", 0.5)):
        rows = table(drawing, net)
        assert len(rows) == 9
        np.testing.assert_allclose(rows[[*PARTS, MEASURED]], [[gamma, -2.0, 0.0, gamma - 2.0]] * 9, atol=1e-6)
    assert ": -1.50 = γ² +0.50, 1/(v + ε) -2.00, p " in drawing.caption
    assert "seeds 1, 2, 3 of ffnn_bn_noaffine, ffnn_bn." in drawing.caption


def test_the_figure_stacks_positive_parts_up_and_negative_ones_down(drawings: dict[str, Drawing]) -> None:
    ax = drawings["gain_factors"].figure.axes[1]  # on: block0.norm
    rows = table(drawings["gain_factors"], "on: block0.norm")
    steps = {patch.get_gid(): patch.get_data() for patch in ax.patches}
    for name, below in {
        "γ²": 0.0,
        "1/(v + ε)": 0.0,
        "p": np.where(rows["1/(v + ε)"] < 0, rows["1/(v + ε)"], 0),
    }.items():
        np.testing.assert_allclose(steps[name].baseline, np.broadcast_to(below, 20), atol=1e-9)
        np.testing.assert_allclose(steps[name].values, rows[name] + below, atol=1e-9)
        np.testing.assert_array_equal(steps[name].edges, np.arange(21) - 0.5)
    (line,) = [line for line in ax.get_lines() if line.get_gid() == MEASURED]
    np.testing.assert_array_equal(line.get_ydata(), rows[MEASURED])


def test_shares_add_up(tmp_path: Path) -> None:
    evidence = fabricate(tmp_path, {"ffnn_bn": (1, 2)})
    changes = attribute_change(log_gains(evidence, "ffnn_bn").table)
    assert list(changes["layer"]) == LAYERS
    np.testing.assert_allclose(changes["change"], -1.5, atol=1e-6)
    shares = changes[["share_gamma_squared", "share_inverse_variance", "share_projection"]]
    np.testing.assert_allclose(shares, [[-1 / 3, 4 / 3, 0.0]] * 9, atol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_nothing_changed_has_no_shares(tmp_path: Path) -> None:
    write_gains(tmp_path, lambda layer, depth, epoch: (1.0, 0.5, 1.0))
    changes = attribute_change(log_gains(Evidence(tmp_path, (record(tmp_path, "ffnn_bn", 1),), ()), "ffnn_bn").table)
    assert (changes["change"] == 0).all()
    assert changes.filter(like="share_").isna().all(axis=None)


def test_the_measured_gain_is_drawn_as_measured(tmp_path: Path) -> None:
    """Where the product does not close, the line lies beside the stack, and the caption says by how much."""
    row = {"depth": 0, "layer": "norm", "gain": 0.51, "gamma_squared": 1.0, "inverse_variance": 0.5, "projection": 1.0}
    rows = [{"step": step, "epoch": step, **row} for step in range(2)]
    BatchNormWriter(tmp_path / "batchnorm.parquet").append(pd.DataFrame(rows))
    drawings, _ = draw_gains(Evidence(tmp_path, (record(tmp_path, "ffnn_bn", 1),), ()), NETS, 0.001)
    rows = table(drawings[1], "on: norm")
    np.testing.assert_allclose(rows[MEASURED], math.log2(0.51), atol=1e-6)
    np.testing.assert_allclose(rows[list(PARTS)].sum(axis=1), -1.0, atol=1e-6)
    for drawing in drawings:
        assert "by at most 2.0e-02 of it" in drawing.caption  # 1 - 0.50/0.51
        assert "Missing: ffnn_bn_noaffine (all)." in drawing.caption


@pytest.mark.parametrize("fault", ["NaN", "layers", "damaged"])
def test_a_faulty_run_is_left_out_with_the_reason(tmp_path: Path, fault: str) -> None:
    good = fabricate(tmp_path / "good", {"ffnn_bn": (1, 3)})
    path = tmp_path / "bad"
    if fault == "layers":
        write_gains(path, factors("ffnn_bn", 2), LAYERS[:8])
    else:
        write_gains(path, lambda layer, depth, epoch: (1.0, math.nan if epoch == 7 else 1.0, 1.0))
    if fault == "damaged":
        for file in (path / "batchnorm.parquet").iterdir():
            file.write_bytes(b"nothing")
    runs = sorted((*good.runs, record(path, "ffnn_bn", 2)), key=lambda run: run.seed)
    found = log_gains(Evidence(tmp_path, tuple(runs), ()), "ffnn_bn")
    pd.testing.assert_frame_equal(found.table, log_gains(good, "ffnn_bn").table)
    (problem,) = found.problems
    reason = {
        "NaN": "the gain of block0.norm has no logarithm in epoch 7",
        "layers": "ffnn_bn, seed 2, does not have the same layers or epochs as the other seeds",
        "damaged": "batchnorm.parquet",
    }[fault]
    assert reason in problem
    drawings, _ = draw_gains(Evidence(tmp_path, tuple(runs), ()), NETS, 0.001)
    assert all(reason in drawing.caption.partition("Left out: ")[2] for drawing in drawings)


def test_without_gains_there_are_no_figures(tmp_path: Path) -> None:
    assert draw_gains(Evidence(tmp_path, (), ()), NETS, 0.001) == ([], [])
    assert draw_gains(Evidence(tmp_path, (record(tmp_path, "ffnn_bn", 1),), ()), NETS, 0.001) == ([], [])
