"""Ends a run whose loss is no longer a number."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor


class StopOnNonFiniteLoss(Callback):
    """Stops training on the first loss that is NaN or infinite; the epoch's validation and checkpoint still take place.

    On CPU the loss is read after every step. On other devices reading it would make the step wait for the device, so
    the losses of a few steps are read together: the run then ends a little later, with the same ``step``.

    Args:
        every_n_steps: How often they are read where that costs time.

    Attributes:
        step: The optimizer step, counted from 1, whose loss was the first that was not finite; None while all were.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self._every = every_n_steps
        self.step: int | None = None
        self._unread: list[tuple[int, Tensor]] = []  # steps and their losses, on the device

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        # In the middle of an accumulated batch its step is still to come.
        self._unread.append((trainer.global_step + int(trainer.fit_loop._should_accumulate()), loss))
        every = 1 if loss.device.type == "cpu" else self._every
        if trainer.is_last_batch or (batch_idx + 1) % every == 0:
            self._read(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= self.step is not None  # resumed after it had diverged

    def _read(self, trainer: Trainer) -> None:
        finite = torch.stack([loss for _, loss in self._unread]).isfinite().tolist()
        step = next((step for (step, _), good in zip(self._unread, finite, strict=True) if not good), None)
        self._unread = []
        if trainer.strategy.reduce_boolean_decision(step is not None, all=False):
            self.step = self.step or step or trainer.global_step
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]
