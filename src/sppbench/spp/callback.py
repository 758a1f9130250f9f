"""Lightning callback: arms the probe, flushes it, and hands figures to the loggers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from sppbench.spp.frame import to_frame
from sppbench.spp.history import HistoryWriter, epoch_mean, read_history
from sppbench.spp.layers import LayerChoice
from sppbench.spp.plots import plot_gradient, plot_heatmap, plot_spp
from sppbench.spp.probe import Readings, SignalProbe
from sppbench.spp.summary import Watch, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class SPPCallback(Callback):
    """Records signal propagation through any LightningModule while it trains.

    In ``directory`` it leaves ``spp.parquet``, the history of every recorded step (see ``read_history``), and at the end of
    the chosen epochs the figures ``spp_epoch=<e>.png`` and ``spp_gradient_epoch=<e>.png``; at the end of training
    ``spp_heatmap_activation.png`` and ``spp_heatmap_gradient.png``. The same figures go to W&B (as images) and to
    TensorBoard under ``spp/panels``, ``spp/gradients``, ``spp/heatmap_activation`` and ``spp/heatmap_gradient``.

    Logged once an epoch, through all loggers, of the epoch's means (``sppbench.spp.summary.summarize``):
    ``spp/activation_gain``, ``spp/gradient_gain``, ``spp/activation_max``, ``spp/activation_max_depth``,
    ``spp/activation_min``, ``spp/activation_min_depth``, the same four of ``gradient``, ``spp/dead_layers`` and
    ``spp/nonfinite_layers``. It warns once, naming layer and step, when a signal dies, explodes or is not finite.

    A step is an optimizer step: the parts of an accumulated batch count as one. Gradients are those of the unscaled
    loss, also under fp16 with a scaler. Statistics stay on the device and are fetched every ``flush_every_n_steps``
    steps; the state is complete on disk whenever a checkpoint is written, so a resumed run continues without gap or
    double.

    Args:
        every_n_steps: Record each n-th step.
        layers, signals: As of ``SignalProbe``.
        module: Attribute of the LightningModule that is looked into; the whole of it by default.
        epochs: At the end of which epochs, counted from 0, figures are drawn; the last one always is.
        convention: Of the figures: ``definition`` or the ``study``'s; see ``plot_spp``.
        flush_every_n_steps: How often statistics are fetched and written.
        directory: Where files go; ``trainer.default_root_dir`` by default.
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        layers: LayerChoice = None,
        signals: Iterable[str] = ("activation", "gradient", "parameter"),
        module: str = "",
        epochs: Collection[int] = (0, 9, 19),
        convention: Literal["definition", "study"] = "definition",
        flush_every_n_steps: int = 50,
        directory: str | Path | None = None,
    ) -> None:
        self.every_n_steps, self.layers, self.signals, self.module = every_n_steps, layers, tuple(signals), module
        self.epochs, self.convention = tuple(epochs), convention
        self.flush_every_n_steps = flush_every_n_steps
        self.directory = Path(directory) if directory is not None else None
        self.probe: SignalProbe | None = None
        self._pending: list[Readings] = []
        self._writer: HistoryWriter | None = None
        self._means: list[pd.DataFrame] = []
        self._watch = Watch()
        self._steps_done = 0
        self._loss_scale = 1.0

    # Callback.setup comes before LightningModule.setup, and so before a module that is compiled there is first called.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self.probe is None:
            model = pl_module.get_submodule(self.module)
            self.probe = SignalProbe(model, self.layers, self.every_n_steps, self.signals)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.probe is None:
            return
        self.probe.step = self._steps_done = trainer.global_step
        if self.directory is None:
            self.directory = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._writer = HistoryWriter(self._history, resume_at=trainer.global_step or None)
            self._means = self._read_means(range(trainer.current_epoch))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.probe is not None:
            self.probe.epoch = trainer.current_epoch
            self.probe.start_pass()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self.probe is not None:
            self.probe.read_parameters()
            self._loss_scale = _loss_scale(trainer)  # now: the step may change it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.probe is None or trainer.global_step == self._steps_done:
            return  # a part of an accumulated batch
        self._steps_done = trainer.global_step
        readings = self.probe.readings(self._loss_scale)
        if readings is not None:
            self._pending.append(readings)
        if len(self._pending) >= self.flush_every_n_steps:
            self._flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._flush()  # what a checkpoint has seen is on disk

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()
        if self._writer is None:
            return
        epoch = trainer.current_epoch
        self._means += self._read_means([epoch])
        if not self._means or epoch not in self._means[-1]["epoch"].to_numpy():
            return
        scalars = {f"spp/{name}": value for name, value in summarize(self._means[-1]).items()}
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epoch, **scalars}, step=trainer.global_step - 1)
        last = trainer.should_stop or epoch + 1 == trainer.max_epochs
        if epoch in self.epochs or last:
            self._draw(trainer, epoch)
        if last:
            self._draw_heatmaps(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.probe is not None:
            self.probe.close()
            self.probe = None

    @property
    def _history(self) -> Path:
        assert self.directory is not None
        return self.directory / "spp.parquet"

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending and self._writer is not None:
            frame = to_frame(pending)
            self._writer.append(frame)
            self._watch.look(frame)

    def _read_means(self, epochs: Iterable[int]) -> list[pd.DataFrame]:
        """The means of those epochs of which steps were recorded."""
        if self._writer is None or self._writer.last_step is None:
            return []
        frames = (read_history(self._history, epochs=[epoch]) for epoch in epochs)
        return [epoch_mean(frame) for frame in frames if not frame.empty]

    def _draw(self, trainer: Trainer, epoch: int) -> None:
        means = pd.concat(self._means)
        epochs = [e for e in self.epochs if e < epoch] + [epoch]
        panels = plot_spp(means, epochs=epochs, convention=self.convention)
        self._show(trainer, "spp/panels", panels, f"spp_epoch={epoch}.png")
        if "gradient" in self.signals:
            gradients = plot_gradient(means, epochs=epochs, convention=self.convention)
            self._show(trainer, "spp/gradients", gradients, f"spp_gradient_epoch={epoch}.png")

    def _draw_heatmaps(self, trainer: Trainer) -> None:
        for signal in ("activation", "gradient"):
            if signal in self.signals:
                figure = plot_heatmap(read_history(self._history, signals=[signal]), signal=signal)
                self._show(trainer, f"spp/heatmap_{signal}", figure, f"spp_heatmap_{signal}.png")

    def _show(self, trainer: Trainer, key: str, figure: Figure, file: str) -> None:
        assert self.directory is not None
        path = self.directory / file
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
