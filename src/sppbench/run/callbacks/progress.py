"""Shows how far the run is: a bar on a terminal, lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from tqdm import tqdm

from sppbench.run.callbacks.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class Progress(Callback):
    """A line in the log after every epoch; between them a bar on a terminal, else a line every ``every_seconds``.

    Loss and accuracy inside an epoch are those of the last batch.

    Reading the loss waits for the device, so it is done once a second at most.

    The training step must return its ``accuracy`` beside its ``loss``, and the LightningModule keep what it has logged
    of the current epoch in ``scores``.

    Args:
        stopwatch: Where images per second are taken from.
        bar: Whether a terminal, if there is one, is this run's alone.
        every_seconds: Time between two lines inside an epoch where there is no bar.
    """

    def __init__(self, stopwatch: Stopwatch, bar: bool = True, every_seconds: float = 30.0) -> None:
        self._stopwatch = stopwatch
        self._terminal = bar and sys.stderr.isatty()
        self._interval = 1.0 if self._terminal else every_seconds
        self._bar: Any = None
        self._first_step = 0
        self._start = self._last = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        self._start = self._last = time.monotonic()
        if self._terminal and trainer.is_global_zero:
            total = trainer.estimated_stepping_batches
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True, leave=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._last < self._interval or not trainer.is_global_zero:
            return
        self._last = now
        loss = f"loss {float(outputs['loss']):.4f}, accuracy {float(outputs['accuracy']):.1f} %"
        if self._bar is not None:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(f"{self._epoch(trainer)}, {loss}, {self._speed()}")
        else:
            step = f"step {batch_idx + 1}/{trainer.num_training_batches}"
            log.info(f"{self._epoch(trainer)}, {step} | {loss} | {self._speed()} | {self._left(trainer)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._last = time.monotonic()
        # Not trainer.callback_metrics: in a distributed run all processes would have to ask for them.
        scores: dict[str, float] = getattr(pl_module, "scores", {})
        parts = [
            f"{part} loss {scores[f'{part}/loss']:.4f}, accuracy {scores[f'{part}/accuracy']:.1f} %"
            for part in ("train", "val")
            if f"{part}/loss" in scores
        ]
        line = " | ".join([self._epoch(trainer), *parts, self._speed(), self._left(trainer)])
        if self._bar is not None:
            self._bar.n = trainer.global_step
            self._bar.clear()
        log.info(line)
        if self._bar is not None:
            self._bar.refresh()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _epoch(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _speed(self) -> str:
        speed = self._stopwatch.images_per_second
        return f"{speed:,.0f} images/s" if speed else "- images/s"

    def _left(self, trainer: Trainer) -> str:
        done = trainer.global_step - self._first_step
        left = trainer.estimated_stepping_batches - trainer.global_step
        seconds = (time.monotonic() - self._start) / max(done, 1) * left
        return f"{tqdm.format_interval(seconds)} left"
