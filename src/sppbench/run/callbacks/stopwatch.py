"""Measures how fast a run trains and how long it takes, over all its parts."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback


class Stopwatch(Callback):
    """Counts training images and seconds; its state is kept in the checkpoint, so a resumed run continues counting.

    Attributes:
        epochs: Epochs that were trained to their last batch.

    Training seconds run from an epoch's start to its validation; the first epoch's include compilation and warm-up.
    """

    def __init__(self) -> None:
        self.epochs = 0
        self._images = 0
        self._train_seconds = 0.0
        self._earlier_seconds = 0.0  # of the parts of this run before it was resumed
        self._start = time.monotonic()
        self._train_start: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Training images per second so far; None before the first step."""
        seconds = self._train_seconds + self._running()
        return self._images / seconds if self._images and seconds else None

    @property
    def wall_seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_start = time.monotonic()  # a run that is resumed inside an epoch has no on_train_epoch_start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch[0]) * trainer.world_size
        if trainer.is_last_batch:
            self.epochs += 1
            self._stop(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)  # also where training ends inside an epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)

    def _stop(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._train_seconds += self._running()
        self._train_start = None

    def _running(self) -> float:
        return time.monotonic() - self._train_start if self._train_start is not None else 0.0

    def state_dict(self) -> dict[str, Any]:
        seconds = self._train_seconds + self._running()
        return {
            "epochs": self.epochs,
            "images": self._images,
            "train_seconds": seconds,
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]
        self._images = state_dict["images"]
        self._train_seconds = state_dict["train_seconds"]
        self._earlier_seconds = state_dict["wall_seconds"]
