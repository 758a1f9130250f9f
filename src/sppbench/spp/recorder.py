"""Records signal propagation in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from sppbench.checks import check_integer, check_type
from sppbench.spp.loggers import logger_of
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.stepping import on_optimizer_step
from sppbench.spp.recording import Recording, loss_scale_of
from sppbench.spp.settings import Options, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Recorder:
    """Records signal propagation through any ``nn.Module`` in any training loop: probe, history and figures in one.

    Call :meth:`step` after each step of the optimizer (the parts of an accumulated batch count as one), and
    :meth:`end_epoch` after each epoch, if there are any. In ``directory`` it leaves what ``SPPCallback`` leaves: the
    histories ``spp.parquet`` and ``batchnorm.parquet`` (see ``read_history``, ``read_batchnorm``), and figures. A
    history of another run that is already there stays as it is; this run then records in ``spp-2.parquet``.

    It warns once when a signal dies, explodes or is not finite, and at the end of an epoch of all else that `diagnose`
    finds in its means.

    When the ``with`` block ends, pending steps are written and the last figures are drawn; after an exception, only the
    steps are written. Steps that cannot be written (a full disk) and figures that cannot be drawn are warnings:
    recording never ends a run, and does not change a bit of it. In a process group of ``torch.distributed`` every
    process makes a recorder and calls it in the same way, and the first one writes.

    **To resume**, keep :meth:`state_dict` in the checkpoint, and give it to :meth:`load_state_dict` before the first
    step; ``accelerator.register_for_checkpointing(recorder)`` does both. The run then goes on with its history without
    gaps or duplicates.

    Args:
        model: Any module; of one that ``torch.compile`` or DistributedDataParallel has wrapped, what is inside. The
            recorder must be made before a compiled model is first called.
        directory: Where files go, created if missing; ``~`` is the home directory.
        scaler: The ``GradScaler`` that multiplies the loss, if there is one. Call :meth:`step` after its ``update``.
        loggers: W&B runs and TensorBoard writers (``SummaryWriter``) that are given the scalars of :meth:`end_epoch`
            and the figures, ``spp/panels``, ``spp/gradients``, ``spp/heatmap_activation``, ``spp/heatmap_gradient``.
        options: ``every_n_steps``, ``start``, ``stop``, ``layers``, ``signals``, ``epochs``, ``convention``,
            ``flush_every_n_steps``, ``batchnorm``, ``run_id``, ``config_hash`` and ``log_layers``, as in
            ``SPPCallback``.

    Attributes:
        probe: The ``SignalProbe``.
        epoch: The current epoch, from 0; counted by :meth:`end_epoch`; it may be set.

    Raises:
        ValueError: An argument has the wrong type or an impossible value, or ``layers`` match no module.

    Example:
        >>> with Recorder(model, "mine") as recorder:
        ...     for x, y in batches:
        ...         optimizer.zero_grad()
        ...         criterion(model(x), y).backward()
        ...         optimizer.step()
        ...         recorder.step()
        >>> history = read_history("mine/spp.parquet", signals="gradient", layers="0")
        >>> history[["step", "epoch", "layer", "signal"]]
           step  epoch layer    signal
        0     0      0     0  gradient
        1     1      0     0  gradient
    """

    def __init__(
        self,
        model: nn.Module,
        directory: str | Path,
        *,
        scaler: Any = None,
        loggers: Iterable[Any] = (),
        **options: Unpack[Options],
    ) -> None:
        check_type("directory", directory, str, Path)
        self._directory = Path(directory).expanduser()
        self._loggers = [logger_of(logger) for logger in loggers]
        self._scaler, self._loss_scale = scaler, loss_scale_of(scaler)
        self._checkpoint: Mapping[str, Any] = {}
        self._begun = False
        self._recording = Recording(model, Settings(**options))
        # The scaler changes the scale after the optimizer's step, and before ours.
        self._handles = on_optimizer_step(self, Recorder._note_loss_scale) if scaler is not None else []

    @property
    def probe(self) -> SignalProbe:
        """The probe of signals."""
        return self._recording.probe

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._recording.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        check_integer("epoch", epoch, 0)
        self._recording.epoch = epoch

    def _note_loss_scale(self, optimizer: torch.optim.Optimizer) -> None:
        self._loss_scale = loss_scale_of(self._scaler)

    # -- in the loop --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Ends a step: to be called after the optimizer's, in every process."""
        self._begin()
        self._recording.end_step(self._recording.steps_done + 1, self._loss_scale)
        self._loss_scale = loss_scale_of(self._scaler)  # where the scaler skips a step, no optimizer says it

    def end_epoch(self) -> dict[str, float]:
        """Ends an epoch, in every process: forms its means, hands them to the loggers, and draws its figures if it is
        among ``epochs``.

        Returns:
            Scalars of the means: ``spp/activation_gain``, ``spp/gradient_gain``, ``spp/dead_layers`` and the others
            that ``SPPCallback`` logs; none in a process that does not write, or if no step was recorded.
        """
        self._begin()
        scalars = self._recording.end_epoch()
        done = self._recording.steps_done
        self._recording.begin(done, self.epoch + 1, epoch_start=done)
        return scalars

    def _begin(self) -> None:
        """Begins to write, before the first step: only then it is known whether a run is resumed."""
        if self._begun:
            return
        self._begun = True
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            self._recording.open(self._directory, self._checkpoint, self._loggers)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint should keep. All steps until now are on disk when it returns."""
        self._begin()
        recording = self._recording
        recording.flush()
        return {
            "step": recording.steps_done,
            "epoch": recording.epoch,
            "epoch_start": recording.epoch_start,
            **recording.in_checkpoint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from where a checkpoint was made.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            RuntimeError: Steps have been recorded already.
        """
        if self._begun:
            raise RuntimeError("load_state_dict must be called before the first step")
        self._checkpoint = {name: state[name] for name in ("run_id", "history") if name in state}
        self._recording.begin(state["step"], state["epoch"], state["epoch_start"])

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Writes pending steps, draws the last figures, and removes the probes from the model."""
        if self._begun:
            if self._recording.epoch_start != self._recording.steps_done:  # an epoch that nobody ended
                self.end_epoch()
            self._recording.finish()
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._recording.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._recording.flush()
            self._detach()
