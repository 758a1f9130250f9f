"""Lightning callback: arms the probe, flushes it, and hands figures to the loggers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from contextlib import suppress
from operator import is_not
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import nn

from sppbench.spp.history.epoch_means import batchnorm_epoch_mean, epoch_mean
from sppbench.spp.history.health import Watch, summarize, summarize_batchnorm
from sppbench.spp.history.reader import read_batchnorm, read_history
from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter
from sppbench.spp.names import DEFAULT_SIGNALS, OF_BATCH
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.panels import plot_gradient, plot_spp
from sppbench.spp.probe import batchnorm
from sppbench.spp.probe.batchnorm import BatchNormProbe, BatchNormReadings
from sppbench.spp.probe.layers import LayerChoice
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.readings import Readings, to_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


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

    Args:
        every_n_steps: Record each n-th step.
        layers, signals: As of ``SignalProbe``.
        module: Attribute of the LightningModule that is looked into; the whole of it by default.
        epochs: At the end of which epochs, counted from 0, figures are drawn; the last one always is.
        convention: Of the figures: ``definition`` or the ``study``'s; see ``plot_spp``.
        flush_every_n_steps: After how many recorded steps they are fetched and written.
        directory: Where files go; ``trainer.default_root_dir`` by default.
        batchnorm: Whether the gains of batch normalizations are recorded.

    Attributes:
        probe, batchnorm_probe: The probes, while training; None if there is nothing to record.

    Raises:
        ValueError: When training begins: ``layers``, ``signals`` or ``every_n_steps`` are refused by ``SignalProbe``.
        AttributeError: When training begins: there is no ``module``.

    Example:
        >>> callback = SPPCallback(epochs=(0, 9), directory="run")
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback])
        >>> trainer.fit(module, train_dataloaders=loader)
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        layers: LayerChoice = None,
        signals: Iterable[str] = DEFAULT_SIGNALS,
        module: str = "",
        epochs: Collection[int] = (0, 9, 19),
        convention: Literal["definition", "study"] = "definition",
        flush_every_n_steps: int = 50,
        directory: str | Path | None = None,
        batchnorm: bool = True,
    ) -> None:
        self.every_n_steps, self.layers, self.signals, self.module = every_n_steps, layers, tuple(signals), module
        self.epochs, self.convention = tuple(epochs), convention
        self.flush_every_n_steps = flush_every_n_steps
        self.directory = Path(directory) if directory is not None else None
        self.batchnorm = batchnorm
        self.probe: SignalProbe | None = None
        self.batchnorm_probe: BatchNormProbe | None = None
        self._attached_to: list[nn.Module] = []
        self._start(Path())

    def _start(self, directory: Path) -> None:
        """Forgets what belongs to an earlier training."""
        self._directory = directory
        self._pending: list[Readings] = []
        self._batchnorm_pending: list[BatchNormReadings] = []
        self._writer: HistoryWriter | None = None
        self._batchnorm_writer: BatchNormWriter | None = None
        self._means: list[pd.DataFrame] = []
        self._drawn: int | None = None  # the last epoch with figures
        self._finished: int | None = None  # the step of the last figures
        self._watch = Watch()
        self._steps_done = 0
        self._loss_scale: float | None = None  # in this step; None: no optimizer has stepped yet

    # -- attaching and detaching the probes ---------------------------------------------------------------------------

    # Callback.setup comes before LightningModule.setup, and so before a module that is compiled there is first called.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            with suppress(AttributeError, ValueError):  # the net may not be there yet: on_fit_start tries again
                self._attach(pl_module)

    # LightningModule.setup and configure_model may have made the net, or parts of it. Nothing has run yet.
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
        self._start(self.directory if self.directory is not None else Path(trainer.default_root_dir))
        self._steps_done = trainer.global_step
        self._count_steps(trainer)
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            self._directory.mkdir(parents=True, exist_ok=True)
            resume_at = trainer.global_step or None
            self._writer = HistoryWriter(self._history, resume_at=resume_at)
            if self.batchnorm_probe is not None:
                self._batchnorm_writer = BatchNormWriter(self._directory / "batchnorm.parquet", resume_at=resume_at)
            # A run that is resumed in the middle of an epoch reads that epoch when it is complete.
            self._means = self._read_means(range(trainer.current_epoch))

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
        if self._writer is not None:
            self._pending += [readings] if readings is not None else []
            self._batchnorm_pending += [gains] if gains is not None else []
        if len(self._pending) >= self.flush_every_n_steps:
            self._flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._flush()  # what a checkpoint has seen is on disk

    def _flush(self) -> None:
        if self._writer is not None and self._pending:
            rows = to_frame(self._pending)
            self._writer.append(rows)
            self._pending = []
            self._watch.look(rows)
        if self._batchnorm_writer is not None and self._batchnorm_pending:
            self._batchnorm_writer.append(batchnorm.to_frame(self._batchnorm_pending))
            self._batchnorm_pending = []

    # -- at the end of an epoch, and of training ----------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        epoch = trainer.current_epoch
        means = self._read_means([epoch])
        if not means:  # another process, or no step of this epoch was recorded
            return
        self._means += means
        # Not by `log`: that would be after the epoch's checkpoint, and a run resumed from it would lack them.
        scalars = {f"spp/{name}": value for name, value in summarize(means[0]).items()}
        scalars |= {f"batchnorm/{name}": value for name, value in self._summarize_batchnorm(epoch).items()}
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
            log.warning(f"the last steps are not in {self._history}: {error}")
        self._detach()  # Lightning does not call teardown

    @property
    def _history(self) -> Path:
        return self._directory / "spp.parquet"

    def _read_means(self, epochs: Iterable[int]) -> list[pd.DataFrame]:
        """The means of those epochs of which steps were recorded."""
        if self._writer is None or self._writer.last_step is None:
            return []
        histories = (read_history(self._history, epochs=[epoch]) for epoch in epochs)
        return [epoch_mean(history) for history in histories if not history.empty]

    def _summarize_batchnorm(self, epoch: int) -> dict[str, float]:
        if self._batchnorm_writer is None or self._batchnorm_writer.last_step is None:
            return {}
        return summarize_batchnorm(batchnorm_epoch_mean(read_batchnorm(self._batchnorm_writer.path, epochs=[epoch])))

    def _draw_last(self, trainer: Trainer) -> None:
        if not self._means or self._finished == trainer.global_step:
            return
        self._finished = trainer.global_step
        last = int(self._means[-1]["epoch"].iloc[0])
        if last != self._drawn:
            self._draw(trainer, last)
        self._draw_heatmaps(trainer)

    def _draw(self, trainer: Trainer, epoch: int) -> None:
        self._drawn = epoch
        means = pd.concat(self._means)
        epochs = [e for e in self.epochs if e < epoch] + [epoch]
        panels = plot_spp(means, epochs=epochs, convention=self.convention)
        self._show(trainer, "spp/panels", panels, f"spp_epoch={epoch}.png")
        if "gradient" in set(means["signal"]):
            gradients = plot_gradient(means, epochs=epochs, convention=self.convention)
            self._show(trainer, "spp/gradients", gradients, f"spp_gradient_epoch={epoch}.png")

    def _draw_heatmaps(self, trainer: Trainer) -> None:
        for signal in OF_BATCH:
            history = read_history(self._history, signals=[signal])
            if not history.empty:
                figure = plot_heatmap(history, signal=signal)
                self._show(trainer, f"spp/heatmap_{signal}", figure, f"spp_heatmap_{signal}.png")

    def _show(self, trainer: Trainer, key: str, figure: Figure, file: str) -> None:
        path = self._directory / file
        figure.savefig(path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(key, [str(path)], step=trainer.global_step - 1)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(key, figure, global_step=trainer.global_step - 1, close=False)


def _loss_scale(trainer: Trainer) -> float:
    """What the precision plugin multiplied the loss with; 1 without a scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
