"""Lightning callback: tells a recording where a training begins, its steps and epochs, and its end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from sppbench.checks import check_type
from sppbench.extras import need
from sppbench.spp.names import DEFAULT_SIGNALS
from sppbench.spp.plots.curves import Convention
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.layers import LayerChoice
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recording import Recording, loss_scale_of
from sppbench.spp.schedule import EveryNSteps
from sppbench.spp.settings import Settings

try:
    from lightning import LightningModule, Trainer
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
except ModuleNotFoundError:
    need("SPPCallback", "lightning")
    raise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IN_CHECKPOINT = "sppbench.spp"


class SPPCallback(Callback):
    """Records signal propagation through any LightningModule while it trains.

    It writes to ``directory``: ``spp.parquet``, the history of every recorded step (see ``read_history``); for a net
    with batch normalization also ``batchnorm.parquet``, the backward gains of these layers and their factors (see
    ``read_batchnorm``); at the end of the chosen epochs the figures ``spp_epoch=<e>.png`` and
    ``spp_gradient_epoch=<e>.png``; and at the end of training ``spp_heatmap_activation.png`` and
    ``spp_heatmap_gradient.png``. The same figures go to W&B (as images) and to TensorBoard under ``spp/panels``,
    ``spp/gradients``, ``spp/heatmap_activation`` and ``spp/heatmap_gradient``.

    Once an epoch it logs, through all loggers, from the epoch's means (``sppbench.spp.history.health.summarize``):
    ``spp/activation_gain``, ``spp/gradient_gain``, ``spp/activation_max``, ``spp/activation_max_depth``,
    ``spp/activation_min``, ``spp/activation_min_depth``, the same four for ``gradient``, ``spp/dead_layers`` and
    ``spp/nonfinite_layers``; for a net with batch normalization (``summarize_batchnorm``) also ``batchnorm/gain``, its
    factors ``batchnorm/gamma_squared``, ``batchnorm/inverse_variance`` and ``batchnorm/projection``, and
    ``batchnorm/gain_max``, ``batchnorm/gain_max_depth``, ``batchnorm/gain_min``, ``batchnorm/gain_min_depth``. It warns
    once, naming layer and step, when a signal dies, explodes or is not finite, and at the end of an epoch of all else
    that `diagnose` finds in its means.

    A step is what lies between two optimizer steps: the parts of an accumulated batch count as one. Its number is that
    of the optimizer steps before it, so where a batch makes several of them (manual optimization) not every number
    occurs. Gradients are those of the unscaled loss, also under fp16 with a scaler. Statistics stay on the device until
    they are fetched and written; the state is complete on disk whenever a checkpoint is written, so a resumed run
    continues without gaps or duplicates. With several processes the first one writes. With ``fast_dev_run`` nothing is
    written.

    A history of another run that is already in the directory stays as it is: this run then records in ``spp-2.parquet``
    and ``batchnorm-2.parquet``, and its figures begin with ``spp-2`` (or with 3, and so on). A run that is resumed from
    a checkpoint continues its own history; in another directory, a copy of it. If steps are missing from it, it warns
    once and goes on, and reading the history across the gap is an error. Steps that cannot be written (a full disk) and
    figures that cannot be drawn are warnings, too.

    Args:
        every_n_steps: Record every n-th step. Or a function ``step -> bool`` that chooses the steps, the same in all
            processes.
        layers, signals: As in ``SignalProbe``.
        module: Attribute of the LightningModule to record; by default the whole of it.
        epochs: Epochs, counted from 0, after which figures are drawn; the last one always is among them. By default
            after 1, 2, 4, 8, ... epochs.
        convention: None: figures show the second moment. ``definition`` or ``study``: they show its two parts, ACSM and
            ACV, as they are defined or as the study has them; see ``plot_spp``.
        flush_every_n_steps: Number of recorded steps after which they are fetched and written.
        directory: Where files go, created if missing; ``~`` is the home directory. By default ``trainer.log_dir``, that
            of the first logger, and without one ``trainer.default_root_dir``.
        batchnorm: Whether the gains of batch normalizations are recorded.
        run_id: Names the run in its history; by default a random id, which checkpoints keep. A run with the id of the
            history in the directory starts that anew, unless it is resumed.
        config_hash: Names the run's configuration in its history.
        start, stop: Record only steps from ``start`` on, and before ``stop``.
        log_layers: Names or globs of layers. Whenever steps are written, the second moments of these layers in the last
            of them go to W&B and TensorBoard as ``spp_<signal>/<layer>``, such as ``spp_gradient/net.0``.

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
        every_n_steps: EveryNSteps = 1,
        layers: LayerChoice = None,
        signals: Iterable[str] = DEFAULT_SIGNALS,
        module: str = "",
        epochs: Collection[int] | None = None,
        convention: Convention | None = None,
        flush_every_n_steps: int = 50,
        directory: str | Path | None = None,
        batchnorm: bool = True,
        run_id: str | None = None,
        config_hash: str | None = None,
        start: int = 0,
        stop: int | None = None,
        log_layers: str | Iterable[str] | None = None,
    ) -> None:
        check_type("module", module, str)
        check_type("directory", "" if directory is None else directory, str, Path)
        self.settings = Settings(
            every_n_steps=every_n_steps,
            start=start,
            stop=stop,
            layers=layers,
            signals=signals,
            epochs=epochs,
            convention=convention,
            flush_every_n_steps=flush_every_n_steps,
            batchnorm=batchnorm,
            run_id=run_id,
            config_hash=config_hash,
            log_layers=log_layers,
        )
        self.module = module
        self.directory = None if directory is None else Path(directory).expanduser()
        self._recording: Recording | None = None
        self._last: dict[str, str] = {}  # of the run that was trained last, or whose checkpoint was loaded
        self._started = False  # in this call of fit
        self._loss_scale: float | Tensor | None = None  # in this step; None: no optimizer has stepped yet

    @property
    def probe(self) -> SignalProbe | None:
        """The probe of signals, while training."""
        return self._recording.probe if self._recording is not None else None

    @property
    def batchnorm_probe(self) -> BatchNormProbe | None:
        """The probe of batch normalizations, while training; None if there are none."""
        return self._recording.batchnorm_probe if self._recording is not None else None

    # -- attaching and detaching the probes ---------------------------------------------------------------------------

    # Callback.setup comes before LightningModule.setup, and so before a module that is compiled there is first called.
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            with suppress(AttributeError, ValueError):  # the net may not be there yet: on_fit_start tries again
                self._attach(self._model(trainer, pl_module))

    # LightningModule.setup and configure_model may have made the net, or parts of it. Nothing has run yet.
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = False
        model = self._model(trainer, pl_module)
        if self._recording is None or not self._recording.is_of(model):
            self._attach(model)

    def _model(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        # Only the wrapper knows what FSDPStrategy has made of the weights that are in no other.
        wrapper = trainer.strategy.model
        if not self.module and type(wrapper).__name__ == "FullyShardedDataParallel":
            return cast(nn.Module, wrapper)
        return pl_module.get_submodule(self.module)

    def _attach(self, model: nn.Module) -> None:
        self._detach()
        self._recording = Recording(model, self.settings)

    def _detach(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._recording = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach()

    # -- while training -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._loss_scale = True, None
        if self._recording is None:
            return
        self._recording.begin(trainer.global_step, trainer.current_epoch)
        if getattr(trainer, "fast_dev_run", False):
            self._last = {}
            return
        # In every process, which log_dir asks for.
        directory = self.directory or Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            self._recording.open(directory, self._last, [_LightningLogger(logger) for logger in trainer.loggers])
            self._last = self._recording.in_checkpoint

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is resumed after its last step does not start to train, and its history must be looked at all the
        # same: it may have been lost meanwhile.
        if not self._started and trainer.global_step:
            self.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recording is not None:
            self._recording.start_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._recording is not None:
            self._recording.epoch = trainer.current_epoch
            self._recording.probe.start_pass()

    # Before the step, and after the gradients were unscaled unless a fused optimizer does that itself, in its step. The
    # first one of a batch: each step may change the scale.
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._recording is not None:
            self._recording.probe.read_parameters()
            if self._loss_scale is None:
                self._loss_scale = loss_scale_of(getattr(trainer.precision_plugin, "scaler", None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._recording is None or trainer.global_step == self._recording.steps_done:
            return  # a part of an accumulated batch
        self._recording.end_step(trainer.global_step, self._loss_scale if self._loss_scale is not None else 1.0)
        self._loss_scale = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._recording is not None:
            self._recording.flush()  # what a checkpoint has seen is on disk
        # Not by state_dict: a run that goes on without this callback would be warned.
        if self._last:
            checkpoint[_IN_CHECKPOINT] = self._last

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last = checkpoint.get(_IN_CHECKPOINT, {})

    # -- at the end of an epoch, and of training ----------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The scalars are not logged by `log`: that would be after the epoch's checkpoint, and a run resumed from it
        # would lack them.
        if self._recording is not None:
            self._recording.epoch = trainer.current_epoch
            self._recording.end_epoch(trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recording is not None:
            self._recording.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._recording is not None:
            self._recording.flush()
        self._detach()  # Lightning does not call teardown


class _LightningLogger:
    """A logger of Lightning. Of those that take images, W&B's and TensorBoard's, both get the figures."""

    def __init__(self, logger: Logger) -> None:
        self.name, self._logger = type(logger).__name__, logger

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(dict(values), step=step)

    def log_layers(self, values: Mapping[str, float], step: int) -> None:
        if isinstance(self._logger, WandbLogger | TensorBoardLogger):
            self._logger.log_metrics(dict(values), step=step)

    def log_figure(self, key: str, figure: Figure, path: Path, step: int) -> None:
        if isinstance(self._logger, WandbLogger):
            self._logger.log_image(key, [str(path)], step=step)
        elif isinstance(self._logger, TensorBoardLogger):
            self._logger.experiment.add_figure(key, figure, global_step=step, close=False)
