"""Adaptive gradient clipping, against its equation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from sppbench.run.callbacks import AdaptiveGradientClipping
from sppbench.run.callbacks.adaptive_clipping import clip
from sppbench.train import train
from tests.test_train import weights

TARGET = "sppbench.run.callbacks.AdaptiveGradientClipping"


def test_each_row_is_clipped_to_its_own_share() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    gradient = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.03, 0.0]])
    clip(gradient, weight, 0.01, 1e-3)
    # ‖W‖ is 5, so at most 0.05; a row of zeros counts as 0.001; the last is below its limit.
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.05], [1e-5, 0.0], [0.03, 0.0]]))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1, 1)])
def test_the_norm_after_it(shape: tuple[int, ...]) -> None:
    weight, gradient = torch.full(shape, 2.0), torch.full(shape, 1000.0)
    clip(gradient, weight, 0.01, 1e-3)
    torch.testing.assert_close(gradient, torch.full(shape, 0.02))


def test_no_gradient_is_no_trouble() -> None:
    gradient = torch.zeros(2, 2)
    clip(gradient, torch.ones(2, 2), 0.01, 1e-3)
    assert torch.equal(gradient, torch.zeros(2, 2))


def test_a_run_with_it_moves_all_but_the_last_layer_less(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    """With SGD of rate 1 a step is the gradient: here at most a millionth of each row."""
    found = []
    for limit in (1e-6, 1e6):
        clipping = f"+trainer.callbacks=[{{_target_: {TARGET}, limit: {limit}}}]"
        train(
            config(
                f"output_dir={tmp_path}/{limit}", clipping, "optimizer=sgd", "optimizer.lr=1", "+trainer.max_steps=1"
            )
        )
        found.append(weights(tmp_path / str(limit)))
    clipped, free = found
    torch.testing.assert_close(clipped["net.classifier.weight"], free["net.classifier.weight"])
    others = [name for name in free if name.endswith("linear.weight")]
    assert others
    assert all(not torch.allclose(clipped[name], free[name], rtol=1e-4) for name in others)


@pytest.mark.parametrize("arguments", [{"limit": 0.0}, {"eps": -1.0}, {"limit": float("nan")}])
def test_impossible_values(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        AdaptiveGradientClipping(**arguments)
