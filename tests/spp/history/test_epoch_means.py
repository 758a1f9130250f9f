"""Means over the steps of an epoch: every step counts the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.reader import read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.names import COLUMNS
from tests.spp.history.imagined import assert_same, rows


def an_epoch(second_moments: np.ndarray, samples: list[int]) -> pd.DataFrame:
    """One layer's gradient, one step each, a quarter of the second moment in the ACSM."""
    steps = len(samples)
    frame = rows(0, 1).query("layer == 'layer0' and signal == 'gradient'").drop(columns="step")
    frame = frame.loc[frame.index.repeat(steps)].assign(step=range(steps), samples=samples, nonfinite=2)
    return frame.assign(acsm=second_moments / 4, acv=second_moments * 3 / 4, mean=np.sqrt(second_moments))


def test_the_partial_batch_inflates_a_gradient_as_in_the_study() -> None:
    """Second moments of gradients are as 1/batch²: 78 steps of 512 and one of 64 give (78 + 64)/79 times the usual."""
    samples = [512] * 78 + [64]
    history = an_epoch(0.0099 / np.array(samples) ** 2.0, samples)
    [all_steps] = epoch_mean(history).to_dict("records")
    assert all_steps["second_moment"] == pytest.approx(0.0099 / 512**2 * (78 + 64) / 79, rel=1e-12)
    assert all_steps["second_moment"] == pytest.approx(6.8e-8, rel=5e-3)  # what the study's figures show
    assert all_steps["acsm"] == pytest.approx(all_steps["second_moment"] / 4)
    # Plain, not weighted, for the mean as well: it is as 1/batch.
    assert all_steps["mean"] == pytest.approx(np.sqrt(0.0099) / 512 * (78 + 8) / 79)
    assert (all_steps["steps"], all_steps["step"], all_steps["nonfinite"]) == (79, 78, 158)
    [full] = epoch_mean(history, full_batches_only=True).to_dict("records")
    assert full["second_moment"] == pytest.approx(0.0099 / 512**2, rel=1e-12)
    assert (full["steps"], full["step"], full["nonfinite"]) == (78, 77, 156)


@pytest.mark.parametrize("full_batches_only", [False, True])
def test_epoch_means_of_a_whole_history(tmp_path: Path, full_batches_only: bool) -> None:
    """Against a mean in plain Python, over the file and over the frames as a probe gives them."""
    # The last epoch is cut short: its one step is a full batch.
    frame = rows(0, 9, layers=11).query("depth in (0, 3, 10) and not (layer == 'layer3' and step == 1)")
    HistoryWriter(tmp_path / "spp.parquet").append(frame)
    found = epoch_mean(read_history(tmp_path / "spp.parquet", columns=COLUMNS), full_batches_only)
    assert_same(found, epoch_mean(frame, full_batches_only))
    expected = []
    for epoch in range(3):
        for depth in (0, 3, 10):
            for signal in ("activation", "gradient", "parameter"):
                one = frame[(frame.epoch == epoch) & (frame.depth == depth) & (frame.signal == signal)]
                one = one[one.samples == 64] if full_batches_only else one
                means = {name: float(sum(one[name])) / len(one) for name in ("acsm", "acv", "mean")}
                kind = "ReLU" if depth % 2 else "Linear"
                row: dict[str, Any] = {
                    "epoch": epoch,
                    "depth": depth,
                    "layer": f"layer{depth}",
                    "kind": kind,
                    "signal": signal,
                    "ndim": 2,
                }
                row |= {"steps": len(one), "step": max(one.step)}
                row |= {"acsm": means["acsm"], "acv": means["acv"], "second_moment": means["acsm"] + means["acv"]}
                variances = [max(a + v - m * m, 0.0) for a, v, m in zip(one.acsm, one.acv, one["mean"], strict=True)]
                row |= {"mean": means["mean"], "variance": float(sum(variances)) / len(one)}
                row |= {"nonfinite": sum(one.nonfinite), "absmax": max(one.absmax)}
                expected.append(row | {name: float(sum(one[name])) / len(one) for name in ("zeros", "subnormal")})
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), rtol=1e-12, check_dtype=False)


def test_a_step_that_is_not_finite_is_seen_in_the_mean() -> None:
    history = rows(0, 8)
    history.loc[(history.step == 5) & (history.depth == 1), "acv"] = np.nan
    history.loc[(history.step == 5) & (history.depth == 2), "acsm"] = np.inf
    means = epoch_mean(history)
    finite = np.isfinite(means.set_index(["epoch", "depth"])["second_moment"])
    assert set(finite[~finite].index) == {(1, 1), (1, 2)}
    assert means.query("epoch == 1 and depth == 1")["acv"].isna().all()
    assert np.isinf(means.query("epoch == 1 and depth == 2")["acsm"]).all()
    assert np.isfinite(means["mean"]).all()


def test_the_variance_is_a_mean_over_steps_too() -> None:
    """Two steps whose mean(x) are 1 and -1 and whose variances are 2 and 4: 3, not the 4 of the means' moments."""
    history = an_epoch(np.array([3.0, 5.0]), [8, 8]).assign(mean=[1.0, -1.0])
    [means] = epoch_mean(history).to_dict("records")
    assert (means["variance"], means["second_moment"] - means["mean"] ** 2) == (3.0, 4.0)
    history = history.assign(acsm=[np.inf, 1.0], mean=[np.inf, 1.0])
    assert np.isnan(epoch_mean(history)["variance"].item())


def test_epoch_mean_of_few_columns_and_of_no_rows() -> None:
    with pytest.raises(HistoryError, match="the history lacks the columns samples, nonfinite"):
        epoch_mean(rows(0, 1).drop(columns=["samples", "nonfinite"]))
    empty = epoch_mean(rows(0, 1).iloc[:0])
    assert empty.empty
    assert list(empty) == list(epoch_mean(rows(0, 1)))
    categories = rows(0, 4).astype({"layer": "category", "kind": "category", "signal": "category"})
    assert_same(epoch_mean(categories).astype({"signal": "object"})[["acsm"]], epoch_mean(rows(0, 4))[["acsm"]])
