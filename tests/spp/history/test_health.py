"""The numbers that say whether signals pass. Warnings of whole runs are tested with the callback."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.history.health import Watch, summarize_batchnorm


def test_scalars_of_batch_normalizations() -> None:
    means = pd.DataFrame(
        {
            "epoch": 3,
            "depth": [0, 1, 2],
            "layer": ["a", "b", "c"],
            "gain": [1.0, 4.0, np.nan],
            "gamma_squared": [2.0, 2.0, 1.0],
            "inverse_variance": [1.0, 9.0, 1.0],
            "projection": [0.5, 2 / 9, 1.0],
        }
    )
    found = summarize_batchnorm(means)
    assert found["gain"] == pytest.approx(2.0)
    assert found["inverse_variance"] == pytest.approx(3.0)
    assert found["gain"] == pytest.approx(found["gamma_squared"] * found["inverse_variance"] * found["projection"])
    ends = [found[f"gain_{name}"] for name in ("min", "min_depth", "max", "max_depth")]
    assert ends == [1.0, 0.0, 4.0, 1.0]
    assert summarize_batchnorm(means[2:]) == {}


def watched(
    caplog: pytest.LogCaptureFixture, moments: Mapping[tuple[str, str], Sequence[float]], together: bool
) -> list[tuple[str, str]]:
    """Levels and texts of what a watch says of signals at layers, with their second moments in each step."""
    rows = [
        {
            "step": step,
            "signal": signal,
            "layer": layer,
            "kind": "Linear",
            "depth": 3,
            "nonfinite": 0,
            "second_moment": m,
        }
        for (signal, layer), of_steps in moments.items()
        for step, m in enumerate(of_steps)
    ]
    frame = pd.DataFrame(rows).sort_values("step", kind="stable", ignore_index=True)
    frame = frame.assign(kind="Linear", depth=3, nonfinite=0)
    caplog.clear()
    watch = Watch()
    with caplog.at_level(logging.INFO, "sppbench.spp.history.health"):
        for part in [frame] if together else [part for _, part in frame.groupby("step")]:
            watch.look(part)
    return [(record.levelname, record.message) for record in caplog.records]


@pytest.mark.parametrize("together", [False, True])
def test_a_branch_that_begins_at_zero_is_not_dead(caplog: pytest.LogCaptureFixture, together: bool) -> None:
    moments = {
        ("parameter", "B"): [0, 0, 1, 1, 1],
        ("activation", "B"): [0, 0, 1, 1, 0],  # the weight no longer is zero at the end
        ("gradient", "A"): [0, 0, 1, 1, 1],
        ("gradient", "B"): [1, 1, 1, 1, 1],
    }
    level, first = (found := watched(caplog, moments, together))[0]
    assert (level, first) == (
        "INFO",
        "no signal from the first step on, because weights start near zero (B): B, A",
    )
    assert [level for level, _ in found[1:]] == ["WARNING"]
    assert found[1][1].startswith("the activation at B (layer 3, Linear) is dead in step 4: second moment 0")


@pytest.mark.parametrize("together", [False, True])
def test_a_signal_that_stays_zero_when_the_weights_do_not_is_dead(
    caplog: pytest.LogCaptureFixture, together: bool
) -> None:
    moments = {("parameter", "B"): [0, 1, 1], ("activation", "B"): [0, 1, 1], ("activation", "C"): [0, 0, 0]}
    found = watched(caplog, moments, together)
    assert [level for level, _ in found] == ["INFO", "WARNING"]
    assert found[1][1].startswith("the activation at C (layer 3, Linear) is dead in step 1")
    without_zero_weights = {("parameter", "B"): [1, 1], ("activation", "C"): [0, 0]}
    [(level, text)] = watched(caplog, without_zero_weights, together)
    assert level == "WARNING"
    assert text.startswith("the activation at C (layer 3, Linear) is dead in step 0")


def test_each_layer_is_named_once_and_those_of_a_step_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    moments = {("activation", f"layer{i}"): [1.0, 0.0 if i else 1.0, 0.0] for i in range(12)}
    [(_, first), (_, second)] = watched(caplog, moments, together=True)
    assert first.startswith("the activation at layer1 (layer 3, Linear) is dead in step 1")
    assert first.endswith("and at layer2, layer3, layer4, layer5, layer6, layer7, layer8, layer9 and 2 more")
    assert second.startswith("the activation at layer0 (layer 3, Linear) is dead in step 2")
    assert second.endswith("0 elements not finite")
