"""The cosine schedule, against its equation, also where a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from sppbench.run.classifier import Classifier
from sppbench.train import train
from tests.test_train import STEPS, crash, same_weights, weights

SCHEDULE = "+trainer.callbacks=[{_target_: sppbench.run.callbacks.CosineSchedule}]"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each training step that has been begun."""
    found: list[float] = []
    original = Classifier.training_step

    def step(self: Classifier, *args: Any, **kwargs: Any) -> Any:
        (group,) = self.trainer.optimizers[0].param_groups
        found.append(group["lr"])
        if len(found) == STEPS - 2 and stops:
            stops.pop()()
        return original(self, *args, **kwargs)

    stops: list[Callable[[], None]] = [crash]
    monkeypatch.setattr(Classifier, "training_step", step)
    return found


def test_half_a_cosine_also_over_a_resume(
    config: Callable[..., DictConfig], tmp_path: Path, rates: list[float]
) -> None:
    cfg = config(SCHEDULE, "optimizer.lr=0.01")
    with pytest.raises(RuntimeError, match="power cut"):  # after two epochs and one step
        train(cfg)
    assert len(rates) == STEPS - 2
    rates.clear()
    train(cfg)
    expected = [0.01 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert rates == pytest.approx(expected[-3:])
    rates.clear()
    train(config(SCHEDULE, "optimizer.lr=0.01", f"output_dir={tmp_path}/whole"))
    assert rates == pytest.approx(expected)
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))
