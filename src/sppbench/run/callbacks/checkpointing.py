"""Saves the run after every epoch, and when it is asked to stop."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sppbench.files import replacing
from sppbench.run.checkpoint import KEY

log = logging.getLogger(__name__)

# SIGUSR1 is what Slurm sends before the time of a job is over, if it is asked to.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(Exception):
    """The run was asked to stop by a signal and can be resumed from its checkpoint."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Checkpointing(Checkpoint):
    """Keeps one checkpoint, replaced atomically at the end of each epoch.

    Inside :meth:`listening`, SIGINT (Ctrl-C), SIGTERM and SIGUSR1 end the run in an orderly way: after the current
    step, or after the current epoch's validation, the checkpoint is written and :class:`Interrupted` raised. A second
    signal of any of these kinds does not wait.

    Lightning calls subclasses of ``Checkpoint`` after all other callbacks, so the state of those is up to date.

    Args:
        path: The checkpoint file.
        mark: What each checkpoint says about its run, under `KEY`: the run's id and the hash of its configuration.

    Attributes:
        saved_step: The number of steps that the last checkpoint of this process holds; None without one.
    """

    def __init__(self, path: Path, mark: dict[str, str]) -> None:
        self.path, self.mark = path, mark
        self.saved_step: int | None = None
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over the signals for the duration of the block."""
        self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
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
        log.info(
            f"{signal.Signals(signum).name}: stopping as soon as the state is saved; send it again to stop at once"
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and not what the user has chosen
            trainer.strategy.checkpoint_io = _WholeCheckpointIO(self.path.parent)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.mark

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
        with replacing(self.path) if trainer.is_global_zero else nullcontext(self.path) as file:
            trainer.save_checkpoint(file)  # all processes: it waits for each of them, and the first one writes
        trainer.strategy.barrier("checkpoint")
        self.saved_step = trainer.global_step

    def _stop_is_wanted(self, trainer: Trainer) -> bool:
        signalled = self.signum is not None
        if trainer.world_size > 1:  # the processes must stop at the same step
            return trainer.strategy.reduce_boolean_decision(signalled, all=False)
        return signalled


class _WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint of a directory to the file that it is given, and nowhere else.

    Lightning's own way goes by a second file in the system's folder for temporary files, which stays where the disk of
    the first one is full.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if Path(path).parent != self._directory:  # of a callback of the user's, perhaps on another machine
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch hides the errors of files that it writes to itself
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())
