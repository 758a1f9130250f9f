"""Saves the run after every epoch, and when it is asked to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from sppbench.files import replacing

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The run was asked to stop by a signal and can be resumed from its checkpoint."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Checkpointing(Checkpoint):
    """Keeps one checkpoint, replaced atomically at the end of each epoch.

    Inside :meth:`listening`, SIGINT (Ctrl-C) and SIGTERM end the run in an orderly way: after the current step, or
    after the current epoch's validation, the checkpoint is written and :class:`Interrupted` raised. A second signal of
    either kind does not wait.

    Lightning calls subclasses of ``Checkpoint`` after all other callbacks, so the state of those is up to date.

    Args:
        path: The checkpoint file.

    Attributes:
        saved_step: The number of steps that the last checkpoint of this process holds; None without one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved_step: int | None = None
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over SIGINT and SIGTERM for the duration of the block."""
        self._before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        self._take_signals()
        try:
            yield
        finally:
            before, self._before = self._before, {}
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise Interrupted(signum)
        self.signum = signum
        log.info(f"{signal.Signals(signum).name}: stopping as soon as the state is saved; once more to stop at once")

    # Lightning puts a handler of its own for SIGTERM around ours, and ends the process with status 0 and without a
    # checkpoint; it does so before these hooks.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_signals()

    def _take_signals(self) -> None:
        for signum in self._before:
            signal.signal(signum, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last batch of an epoch is left to on_train_epoch_end: a checkpoint from here would skip its validation.
        # Between the parts of an accumulated batch there is no state that a checkpoint could hold.
        wanted = self._stop_is_wanted(trainer) and not trainer.is_last_batch
        if wanted and not trainer.fit_loop._should_accumulate():
            self._save(trainer)
            raise Interrupted(self.signum or signal.SIGTERM)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if self._stop_is_wanted(trainer):
            raise Interrupted(self.signum or signal.SIGTERM)

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._stop_is_wanted(trainer):
            raise Interrupted(self.signum or signal.SIGTERM)  # the last epoch's checkpoint is there

    def _save(self, trainer: Trainer) -> None:
        # Lightning's own way is atomic only where the system's folder for temporary files is on the same file system.
        with replacing(self.path) if trainer.is_global_zero else nullcontext(self.path) as file:
            trainer.save_checkpoint(file)  # all processes: it waits for each of them, and the first one writes
        trainer.strategy.barrier("checkpoint")
        self.saved_step = trainer.global_step

    def _stop_is_wanted(self, trainer: Trainer) -> bool:
        signalled = self.signum is not None
        if trainer.world_size > 1:  # the processes must stop at the same step
            return trainer.strategy.reduce_boolean_decision(signalled, all=False)
        return signalled
