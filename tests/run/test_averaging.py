"""The average of the weights: its sums in closed form, and that the run beside it stays as it was."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from sppbench.run.assembly import make_data_and_net
from sppbench.run.callbacks import WeightAverage
from sppbench.run.callbacks.averaging import EXPONENT, move_towards
from sppbench.run.evaluation import evaluate
from sppbench.run.results import read_result
from sppbench.train import train
from tests.conftest import DROPOUT, FFNN
from tests.test_train import at_step, same_weights, send, weights

Make = Callable[..., DictConfig]


def test_weights_of_a_step_count_by_a_power_of_it() -> None:
    """The average of 0, …, 0, 1, 0, … over steps is the weight of the step that has the 1."""
    steps, net, average = 200, nn.Linear(200, 1, bias=False), nn.Linear(200, 1, bias=False)
    average.requires_grad_(False)
    for step in range(1, steps + 1):
        net.weight.data = torch.eye(steps)[step - 1 : step]
        move_towards(average, net, 1 - (1 - 1 / step) ** (EXPONENT + 1))
    counts = average.weight[0].double()
    assert float(counts.sum()) == pytest.approx(1, abs=1e-5), "nothing is left of the initial weights"
    tau = torch.arange(1, steps + 1)
    power = (EXPONENT + 1) * (tau / steps) ** EXPONENT / steps
    late = tau > steps / 2
    assert torch.allclose(counts[late], power[late].double(), rtol=0.05)
    age = float((counts * (steps - tau)).sum()) / steps
    assert age == pytest.approx(1 / (EXPONENT + 2), rel=0.05)


def test_the_exponent_is_that_of_a_relative_width_of_a_tenth() -> None:
    """Karras et al. 2024, section 3.1: σ_rel = (γ + 1)^½ (γ + 2)^-1 (γ + 3)^-½."""
    assert pytest.approx(0.10, abs=5e-5) == (EXPONENT + 1) ** 0.5 / (EXPONENT + 2) / (EXPONENT + 3) ** 0.5


def test_buffers_are_averaged_and_counters_copied() -> None:
    net, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    net.running_mean.fill_(8.0)  # type: ignore[union-attr,operator]
    net.num_batches_tracked.fill_(8)  # type: ignore[union-attr,operator]
    average.requires_grad_(False)
    move_towards(average, net, 0.25)
    assert average.running_mean.tolist() == [2.0]  # type: ignore[union-attr,operator]
    assert average.num_batches_tracked == 8


def test_a_run_leaves_it_beside_the_last_weights(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed from the weights after each of its 9 steps; batch normalization is tested with the averaged sums."""
    seen: list[dict[str, torch.Tensor]] = []
    original = WeightAverage.on_train_batch_end

    def watch(self: WeightAverage, trainer: Any, pl_module: Any, *rest: Any) -> None:
        seen.append({name: value.double().clone() for name, value in pl_module.net.state_dict().items()})
        original(self, trainer, pl_module, *rest)

    monkeypatch.setattr(WeightAverage, "on_train_batch_end", watch)
    cfg = config(net=DROPOUT)
    train(cfg)
    assert len(seen) == 9
    average = seen[0]
    for step, current in enumerate(seen[1:], 2):
        share = 1 - ((step - 1) / step) ** (EXPONENT + 1)
        average = {name: (1 - share) * average[name] + share * current[name] for name in average}
    data, net = make_data_and_net(cfg)
    net.load_state_dict({name: value.float() for name, value in average.items()})
    data.prepare_data()
    data.setup()
    averaged = read_result(Path(cfg.output_dir) / "result.json").averaged
    assert averaged is not None
    for part, batches in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        expected = evaluate(net, batches)
        assert averaged[part]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert averaged[part]["images"] == expected["images"] == 20


def test_the_run_is_what_it_is_without(config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged, plain = config(net=DROPOUT), config(f"output_dir={tmp_path}/plain", net=DROPOUT)
    train(averaged)
    monkeypatch.setattr(WeightAverage, "setup", lambda *arguments, **named: None)
    train(plain)
    assert read_result(Path(plain.output_dir) / "result.json").averaged is None
    assert same_weights(weights(Path(averaged.output_dir)), weights(Path(plain.output_dir)))


def test_a_checkpoint_without_it_goes_on_without(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The average of the rest alone would be another one."""
    cfg = config()
    with monkeypatch.context() as patch:
        patch.setattr(WeightAverage, "state_dict", lambda self: {})
        at_step(patch, 4, send(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(cfg)
    train(cfg)
    result = read_result(tmp_path / "run" / "result.json")
    assert (result.status, result.averaged) == ("completed", None)
    assert caplog.text.count("no average of the weights: the checkpoint has none") == 1


def test_parts_of_an_accumulated_batch_are_no_steps(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(
        "sppbench.run.callbacks.averaging.move_towards", lambda average, net, share: shares.append(share)
    )
    train(config("trainer.accumulate_grad_batches=2", "trainer.max_epochs=1"))
    assert shares == pytest.approx([1, 1 - 0.5 ** (EXPONENT + 1)])


@pytest.mark.parametrize("place", ["evaluate", "move_towards"])
def test_what_fails_in_it_does_not_end_the_run(
    place: str, config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such data")

    monkeypatch.setattr(f"sppbench.run.callbacks.averaging.{place}", fail)
    cfg = config()
    train(cfg)
    result = read_result(Path(cfg.output_dir) / "result.json")
    assert (result.status, result.averaged) == ("completed", None)
    assert caplog.text.count("no average of the weights: no such data") == 1


class Singular(nn.Module):
    """A net of which there can be only one."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 10)

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("only one")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


def test_a_net_that_cannot_be_copied_is_trained_without(config: Make, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config("trainer.max_epochs=1", f"model._target_={__name__}.Singular", net=FFNN[:2])
    train(cfg)
    assert caplog.text.count("no average of the weights: this net cannot be copied (only one)") == 1
    assert read_result(Path(cfg.output_dir) / "result.json").averaged is None


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_other_precisions(config: Make, precision: str) -> None:
    """Fit and average are evaluated in the types of their weights; a run once ended there."""
    cfg = config("trainer.max_epochs=1", f"trainer.precision={precision}")
    train(cfg)
    result = read_result(Path(cfg.output_dir) / "result.json")
    assert result.train is not None
    assert result.averaged is not None
    assert result.averaged["test"]["loss"] == pytest.approx((result.test or {})["loss"], rel=0.2)


def test_a_run_without_validation_has_the_average_of_the_test_alone(config: Make) -> None:
    cfg = config("trainer.max_epochs=1", "trainer.limit_val_batches=0")
    train(cfg)
    assert set(read_result(Path(cfg.output_dir) / "result.json").averaged or {}) == {"test"}


def test_limits_of_batches_hold(config: Make) -> None:
    cfg = config("trainer.max_epochs=1", "trainer.limit_test_batches=1", "trainer.limit_val_batches=1")
    train(cfg)
    averaged = read_result(Path(cfg.output_dir) / "result.json").averaged
    assert averaged is not None
    assert [averaged[part]["images"] for part in ("val", "test")] == [16, 16]
