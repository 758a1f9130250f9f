from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sppbench.run.callbacks import StopOnNonFiniteLoss, Stopwatch


def trainer(step: int, accumulating: bool = False, last: bool = False) -> Any:
    return SimpleNamespace(
        global_step=step,
        is_last_batch=last,
        world_size=2,
        should_stop=False,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: accumulating),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
    )


def outputs(loss: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss)}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_not_finite_stops_the_run(loss: float) -> None:
    callback, state = StopOnNonFiniteLoss(), trainer(7)
    callback.on_train_batch_end(state, None, outputs(1.0), None, 0)  # type: ignore[arg-type]
    assert (callback.step, state.should_stop) == (None, False)
    callback.on_train_batch_end(state, None, outputs(loss), None, 1)  # type: ignore[arg-type]
    assert (callback.step, state.should_stop) == (7, True)


def test_within_an_accumulated_batch_the_step_is_the_one_to_come() -> None:
    callback = StopOnNonFiniteLoss()
    callback.on_train_batch_end(trainer(0, accumulating=True), None, outputs(math.nan), None, 0)  # type: ignore[arg-type]
    assert callback.step == 1


def test_a_run_that_diverged_stays_so_when_it_is_resumed() -> None:
    callback, again, state = StopOnNonFiniteLoss(), StopOnNonFiniteLoss(), trainer(8)
    callback.on_train_batch_end(trainer(7), None, outputs(math.nan), None, 0)  # type: ignore[arg-type]
    again.load_state_dict(callback.state_dict())
    again.on_train_start(state, None)  # type: ignore[arg-type]
    assert (again.step, state.should_stop) == (7, True)


def test_the_stopwatch_counts_training_and_goes_on_after_a_resume() -> None:
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    first = Stopwatch()
    assert first.images_per_second is None
    first.on_train_start(trainer(0), module)
    time.sleep(0.05)
    first.on_train_batch_end(trainer(1, last=True), module, None, (torch.zeros(8, 1), None), 0)
    seconds = 2 * 8 / (first.images_per_second or math.nan)  # 8 images in each of two processes
    assert 0.05 <= seconds < 5
    time.sleep(0.05)  # validation does not count
    assert 2 * 8 / (first.images_per_second or math.nan) == seconds
    second = Stopwatch()
    second.load_state_dict(first.state_dict())
    assert second.images_per_second == first.images_per_second
    assert second.epochs == first.epochs == 1
    assert second.wall_seconds >= 0.1
