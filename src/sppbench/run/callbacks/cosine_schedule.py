"""Lets the learning rate fall to zero."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback


class CosineSchedule(Callback):
    """The learning rate falls from its first value to 0 by half a cosine (Loshchilov & Hutter 2017, "SGDR", equation 5,
    without restarts); for ``trainer.callbacks``. The study has none: its learning rate is constant.

    Step t of T, counted from 0, has lr · (1 + cos(π t / T)) / 2. A resumed run goes on where it was.

    Example:
        $ python -m sppbench.train model=nf_efficientnet \\
              '+trainer.callbacks=[{_target_: sppbench.run.callbacks.CosineSchedule}]'
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        share = trainer.global_step / trainer.estimated_stepping_batches
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                # As torch's own schedulers; it is saved with the optimizer.
                first = group.setdefault("initial_lr", group["lr"])
                group["lr"] = first * (1 + math.cos(math.pi * share)) / 2
