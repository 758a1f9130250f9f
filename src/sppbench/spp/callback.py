"""Lightning callback: attaches the probes, writes what they read, and logs the summary of each epoch."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from operator import is_not
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import nn

from sppbench.checks import check_choice, check_integer, check_type, several
from sppbench.spp.history.health import Watch, summarize, summarize_batchnorm
from sppbench.spp.history.parts import Origin
from sppbench.spp.history.run_history import RunHistory
from sppbench.spp.names import DEFAULT_SIGNALS, SIGNALS
from sppbench.spp.plots.curves import Convention
from sppbench.spp.probe import batchnorm
from sppbench.spp.probe.batchnorm import BatchNormProbe, BatchNormReadings
from sppbench.spp.probe.layers import LayerChoice, checked_choice
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.readings import Readings, to_frame
from sppbench.spp.run_figures import RunFigures

log = logging.getLogger(__name__)

_IN_CHECKPOINT = "sppbench.spp"


class SPPCallback(Callback):
    """Records signal propagation through any LightningModule while it trains.

    In ``directory`` it leaves ``spp.parquet``, the history of every recorded step (see ``read_history``), of a net with
    batch normalization also ``batchnorm.parquet``, the backward gains of these layers and their factors (see
    ``read_batchnorm``), and at the end of the chosen epochs the figures ``spp_epoch=<e>.png`` and
    ``spp_gradient_epoch=<e>.png``; at the end of training ``spp_heatmap_activation.png`` and
    ``spp_heatmap_gradient.png``. The same figures go to W&B (as images) and to TensorBoard under ``spp/panels``,
    ``spp/gradients``, ``spp/heatmap_activation`` and ``spp/heatmap_gradient``.

    Logged once an epoch, through all loggers, of the epoch's means (``sppbench.spp.history.health.summarize``):
    ``spp/activation_gain``, ``spp/gradient_gain``, ``spp/activation_max``, ``spp/activation_max_depth``,
    ``spp/activation_min``, ``spp/activation_min_depth``, the same four of ``gradient``, ``spp/dead_layers`` and
    ``spp/nonfinite_layers``; of a net with batch normalization (``summarize_batchnorm``) also ``batchnorm/gain``, its
    factors ``batchnorm/gamma_squared``, ``batchnorm/inverse_variance`` and ``batchnorm/projection``, and
    ``batchnorm/gain_max``, ``batchnorm/gain_max_depth``, ``batchnorm/gain_min``, ``batchnorm/gain_min_depth``. It warns
    once, naming layer and step, when a signal dies, explodes or is not finite.

    A step is what lies between two optimizer steps: the parts of an accumulated batch count as one. Its number is that
    of the optimizer steps before it, so where a batch makes several of them (manual optimization) not every number
    occurs. Gradients are those of the unscaled loss, also under fp16 with a scaler. Statistics stay on the device until
    they are fetched and written; the state is complete on disk whenever a checkpoint is written, so a resumed run
    continues without gap or double. With several processes the first one writes. With ``fast_dev_run`` nothing is
    written.

    A history that is in the directory already, and is not this run's, stays: this run then records in
    ``spp-2.parquet`` and ``batchnorm-2.parquet``, and its figures begin with ``spp-2`` (or with 3, and so on). A run
    that is resumed from a checkpoint goes on with its own history; if it now has another directory, with a copy of it.
    If steps of it are lost, it warns once and goes on, and whoever reads the history across the gap gets an error. A
    figure that cannot be drawn is a warning, too.

    Args:
        every_n_steps: Record each n-th step.
        layers, signals: As of ``SignalProbe``.
        module: Attribute of the LightningModule that is looked into; the whole of it by default.
        epochs: At the end of which epochs, counted from 0, figures are drawn; the last one always is.
        convention: Of the figures: ``definition`` or the ``study``'s; see ``plot_spp``.
        flush_every_n_steps: After how many recorded steps they are fetched and written.
        directory: Where files go, made if there is none; ``~`` is the home directory. By default ``trainer.log_dir``,
            that of the first logger, and without one ``trainer.default_root_dir``.
        batchnorm: Whether the gains of batch normalizations are recorded.
        run_id: Names the run in its history; by default a random one, which checkpoints keep. A run with the id of the
            history in the directory starts that anew, unless it is resumed.
        config_hash: Names the run's configuration in its history.

    Attributes:
        probe, batchnorm_probe: The probes, while training; None if there is nothing to record.

    Raises:
        ValueError: An argument has the wrong type or an impossible value. When training begins: ``layers`` match no
            module.
        AttributeError: When training begins: there is no ``module``.

    Example:
        >>> callback = SPPCallback(every_n_steps=10, layers="features.*")
        >>> Trainer(max_epochs=20, callbacks=[callback]).fit(module, loader)
        >>> read_history("lightning_logs/version_0/spp.parquet", signals="gradient")
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        layers: LayerChoice = None,
        signals: Iterable[str] = DEFAULT_SIGNALS,
        module: str = "",
        epochs: Collection[int] = (0, 9, 19),
        convention: Convention = "definition",
        flush_every_n_steps: int = 50,
        directory: str | Path | None = None,
        batchnorm: bool = True,
        run_id: str | None = None,
        config_hash: str | None = None,
    ) -> None:
        for name, count in {"every_n_steps": every_n_steps, "flush_every_n_steps": flush_every_n_steps}.items():
            check_integer(name, count, 1)
        for name, text in {"module": module, "run_id": run_id or "", "config_hash": config_hash or ""}.items():
            check_type(name, text, str)
        check_type("batchnorm", batchnorm, bool)
        check_type("directory", "" if directory is None else directory, str, Path)
        check_choice("convention", convention, get_args(Convention))
        self.every_n_steps, self.flush_every_n_steps = every_n_steps, flush_every_n_steps
        self.layers = checked_choice(layers)
        self.signals, self.epochs = several("signals", signals), several("epochs", epochs)
        for signal in self.signals:
            check_choice("signals", signal, SIGNALS)
        for epoch in self.epochs:
            check_integer("epochs", epoch, 0)
        self.convention, self.module, self.batchnorm = convention, module, batchnorm
        self.directory = None if directory is None else Path(directory).expanduser()
        self.run_id, self.config_hash = run_id, config_hash
        self.probe: SignalProbe | None = None
        self.batchnorm_probe: BatchNormProbe | None = None
        self._attached_to: list[nn.Module] = []
        # Of the run that was trained last, or whose checkpoint was loaded.
        self._last_id: str | None = None
        self._last_path: Path | None = None
        self._started = False  # in this call of fit
        self._forget()

    def _forget(self) -> None:
        """Forgets what belongs to an earlier training."""
        self._pending: list[Readings] = []
        self._batchnorm_pending: list[BatchNormReadings] = []
        self._history: RunHistory | None = None
        self._figures: RunFigures | None = None
        self._means: dict[int, pd.DataFrame] = {}  # of the epochs to draw, and of the last one
        self._drawn: int | None = None  # the last epoch with figures
        self._finished: int | None = None  # the step of the last figures
        self._watch = Watch()
        self._steps_done = 0
        self._epoch_start: int | None = None  # its first step, if this training saw it
        self._loss_scale: float | None = None  # in this step; None: no optimizer has stepped yet

    # -- attaching and detaching the probes ---------------------------------------------------------------------------

    # Callback.setup comes before LightningModule.setup, and so before a module that is compiled there is first called.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            with suppress(AttributeError, ValueError):  # the net may not be there yet: on_fit_start tries again
                self._attach(pl_module)

    # LightningModule.setup and configure_model may have made the net, or parts of it. Nothing has run yet.
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = False
        modules = list(pl_module.get_submodule(self.module).modules())
        if len(modules) != len(self._attached_to) or any(map(is_not, modules, self._attached_to)):
            self._attach(pl_module)

    def _attach(self, pl_module: LightningModule) -> None:
        self._detach()
        model = pl_module.get_submodule(self.module)
        self.probe = SignalProbe(model, self.layers, self.every_n_steps, self.signals)
        if self.batchnorm:
            probe = BatchNormProbe(model, self.every_n_steps)
            self.batchnorm_probe = probe if probe.layers else None
        self._attached_to = list(model.modules())

    def _detach(self) -> None:
        for probe in (self.probe, self.batchnorm_probe):
            if probe is not None:
                probe.close()
        self.probe, self.batchnorm_probe, self._attached_to = None, None, []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach()

    # -- while training -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        self._started = True
        self._steps_done = trainer.global_step
        self._count_steps(trainer)
        if getattr(trainer, "fast_dev_run", False):
            return
        # In every process, which log_dir asks for.
        directory = self.directory or Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            self._open(trainer, directory)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is resumed after its last step does not start to train, and its history must be looked at all the
        # same: it may have been lost meanwhile.
        if not self._started and trainer.global_step:
            self.on_train_start(trainer, pl_module)

    def _open(self, trainer: Trainer, directory: Path) -> None:
        """Begins the run's history, or goes on with it."""
        resume_at = trainer.global_step or None
        self._last_id = self.run_id or (self._last_id if resume_at else None) or uuid.uuid4().hex[:8]
        self._history = RunHistory(
            directory,
            Origin(self.every_n_steps, self._last_id, self.config_hash),
            resume_at=resume_at,
            earlier=self._last_path,
            batchnorm=self.batchnorm_probe is not None,
        )
        self._last_path = self._history.path
        self._figures = RunFigures(self._history.path, self.epochs, self.convention)
        if resume_at:
            past = {*self.epochs, trainer.current_epoch - 1}
            self._means = self._history.means([epoch for epoch in sorted(past) if 0 <= epoch < trainer.current_epoch])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is resumed may be in the middle of an epoch.
        resumed = self._history is not None and self._history.resume_at == trainer.global_step
        self._epoch_start = None if resumed else trainer.global_step

    def _count_steps(self, trainer: Trainer) -> None:
        # By the trainer's count: it is what a checkpoint restores, also where a batch makes several optimizer steps.
        for probe in (self.probe, self.batchnorm_probe):
            if probe is not None:
                probe.step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for probe in (self.probe, self.batchnorm_probe):
            if probe is not None:
                probe.epoch = trainer.current_epoch
        if self.probe is not None:
            self.probe.start_pass()

    # Before the step, and after the gradients were unscaled unless a fused optimizer does that itself, in its step. The
    # first one of a batch: each step may change the scale.
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.probe is not None:
            self.probe.read_parameters()
            if self._loss_scale is None:
                self._loss_scale = _loss_scale(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.probe is None or trainer.global_step == self._steps_done:
            return  # a part of an accumulated batch
        self._steps_done = trainer.global_step
        # In every process: they add up what they have recorded. Only the first one keeps it.
        readings = self.probe.readings(self._loss_scale if self._loss_scale is not None else 1.0)
        self._loss_scale = None
        gains = self.batchnorm_probe.readings() if self.batchnorm_probe is not None else None
        self._count_steps(trainer)
        if self._history is not None:
            self._pending += [readings] if readings is not None else []
            self._batchnorm_pending += [gains] if gains is not None else []
        if len(self._pending) >= self.flush_every_n_steps:
            self._flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._flush()  # what a checkpoint has seen is on disk
        if self._history is not None:
            # Not by state_dict: a run that goes on without this callback would be warned.
            where = str(self._history.path.absolute())
            checkpoint[_IN_CHECKPOINT] = {"run_id": self._history.run.run_id, "history": where}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get(_IN_CHECKPOINT, {})
        self._last_id, path = found.get("run_id"), found.get("history")
        self._last_path = Path(path) if path is not None else None

    def _flush(self) -> None:
        if self._history is None:
            return
        gains = batchnorm.to_frame(self._batchnorm_pending) if self._batchnorm_pending else None
        self._history.append_gains(gains, self._steps_done)
        self._batchnorm_pending = []
        rows = to_frame(self._pending) if self._pending else None
        self._history.append_signals(rows, self._steps_done)
        self._pending = []
        if rows is not None:
            self._watch.look(rows)

    # -- at the end of an epoch, and of training ----------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        epoch = trainer.current_epoch
        steps = None if self._epoch_start is None else range(self._epoch_start, self._steps_done)
        means = self._history.means([epoch], steps).get(epoch) if self._history is not None else None
        if means is None or self._history is None:  # another process, or no step of this epoch was recorded
            return
        self._means = {past: one for past, one in self._means.items() if past in self.epochs} | {epoch: means}
        # Not by `log`: that would be after the epoch's checkpoint, and a run resumed from it would lack them.
        scalars = {f"spp/{name}": value for name, value in summarize(means).items()}
        if (gains := self._history.gains(epoch, steps)) is not None:
            scalars |= {f"batchnorm/{name}": value for name, value in summarize_batchnorm(gains).items()}
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **scalars}, step=trainer.global_step - 1)
        if epoch in self.epochs:
            self._draw(trainer, epoch)
        if trainer.should_stop or epoch + 1 == trainer.max_epochs:
            self._draw_last(trainer)  # now: a run that is killed after its last checkpoint does not come back here

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        self._draw_last(trainer)  # of a run that was ended by something else, as the number of its steps

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        try:
            self._flush()
        except Exception as error:  # must not hide the exception
            log.warning(f"the last steps are not in {self._last_path}: {error}")
        self._detach()  # Lightning does not call teardown

    def _draw_last(self, trainer: Trainer) -> None:
        if not self._means or self._figures is None or self._finished == trainer.global_step:
            return
        self._finished = trainer.global_step
        last = max(self._means)
        if last != self._drawn:
            self._draw(trainer, last)
        self._figures.draw_heatmaps(trainer, set(self._means[last]["signal"]))

    def _draw(self, trainer: Trainer, epoch: int) -> None:
        self._drawn = epoch
        if self._figures is not None:
            self._figures.draw_epoch(trainer, pd.concat(self._means.values()), epoch)


def _loss_scale(trainer: Trainer) -> float:
    """What the precision plugin multiplied the loss with; 1 without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
