"""Callback of ``transformers.Trainer``: tells a recording where a training begins, its steps, epochs and its end."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sppbench.checks import check_type
from sppbench.extras import need
from sppbench.spp.loggers import logger_of
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recording import Recording, loss_scale_of
from sppbench.spp.settings import Options, Settings

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ModuleNotFoundError:
    need("SPPTrainerCallback", "transformers")
    raise

if TYPE_CHECKING:
    from typing_extensions import Unpack

_IN_STATE = "sppbench.spp"


class SPPTrainerCallback(TrainerCallback):
    """Records signal propagation through the model of a ``transformers.Trainer`` while it trains.

    It leaves what ``Recorder`` leaves, by the same rules: the histories ``spp.parquet`` and, of a model with batch
    normalization, ``batchnorm.parquet``, and figures; another run's history stays; what cannot be written is a warning.
    A step is one of the trainer's, ``state.global_step``: the parts of an accumulated batch count as one. Gradients are
    those of the unscaled loss. A checkpoint names the run in its ``trainer_state.json``, so that
    ``train(resume_from_checkpoint=...)`` goes on with its history. In several processes the first one writes.

    The trainer tells its callbacks of no exception: after one, steps that wait are written when the process ends, or
    the next training begins.

    Args:
        directory: Where files go; ``args.output_dir`` by default.
        loggers: W&B runs and TensorBoard writers; see ``Recorder``.
        options: As in ``Recorder``.

    Attributes:
        probe: The ``SignalProbe``, while training.

    Raises:
        ValueError: An argument has the wrong type or an impossible value. When training begins: ``layers`` match no
            module.

    Example:
        >>> callback = SPPTrainerCallback(layers="*_proj", every_n_steps=10)
        >>> Trainer(model, TrainingArguments("run"), train_dataset=dataset, callbacks=[callback]).train()
        >>> read_history("run/spp.parquet", signals="gradient")
    """

    def __init__(
        self, directory: str | Path | None = None, *, loggers: Iterable[Any] = (), **options: Unpack[Options]
    ) -> None:
        check_type("directory", "" if directory is None else directory, str, Path)
        self.directory = None if directory is None else Path(directory).expanduser()
        self.settings = Settings(**options)
        self._loggers = [logger_of(logger) for logger in loggers]
        self._recording: Recording | None = None
        self._flush_at_exit: weakref.finalize[Any, Any] | None = None
        self._loss_scale: float | Tensor = 1.0
        self._epochs_begun = 0

    @property
    def probe(self) -> SignalProbe | None:
        """The probe of signals, while training."""
        return self._recording.probe if self._recording is not None else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any
    ) -> None:
        """Attaches the probes. A model that is to be compiled has not been called yet."""
        self._detach()  # of a training that an exception ended
        self._recording = recording = Recording(model, self.settings)
        self._flush_at_exit = weakref.finalize(self, recording.flush)
        self._epochs_begun = int(state.epoch or 0)
        recording.begin(state.global_step, self._epochs_begun)
        if state.is_world_process_zero:
            directory = self.directory or Path(args.output_dir)
            recording.open(directory, state.stateful_callbacks.get(_IN_STATE), self._loggers)
            state.stateful_callbacks[_IN_STATE] = recording.in_checkpoint

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begins an epoch."""
        if self._recording is not None:
            self._recording.epoch = self._epochs_begun
            self._recording.start_epoch()
        self._epochs_begun += 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Notes the scale of the loss, which the optimizer's step changes."""
        self._loss_scale = loss_scale_of(getattr(optimizer, "scaler", None))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ends a step."""
        if self._recording is not None:
            self._recording.end_step(state.global_step, self._loss_scale)
            if control.should_save:  # what a checkpoint has seen is on disk
                self._recording.flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Writes what a checkpoint has seen, also where a callback after this one asked for it."""
        if self._recording is not None:
            self._recording.flush()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ends an epoch."""
        if self._recording is not None:
            self._recording.end_epoch()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draws the last figures and removes the probes."""
        if self._recording is not None:
            self._recording.finish()
        self._detach()

    def _detach(self) -> None:
        if self._recording is not None:
            self._recording.flush()
            self._recording.close()
        if self._flush_at_exit is not None:
            self._flush_at_exit.detach()
        self._recording, self._flush_at_exit = None, None
