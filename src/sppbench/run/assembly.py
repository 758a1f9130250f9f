"""Builds the parts of a run from its configuration, and refuses what does not fit before anything is written.

Heavy packages are imported inside functions, as in train.py, the only user of this file.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sppbench.errors import UserError
from sppbench.run.checkpoint import check_checkpoint, mark_of
from sppbench.run.error_text import explained, one_line
from sppbench.run.run_directory import RunDirectory
from sppbench.run.validation import (
    UsageError,
    check_batches,
    check_cuda_graphs,
    check_fit,
    check_learning_rate,
    check_values,
    how_to_compile,
)
from sppbench.wandb_modes import WANDB_MODES

if TYPE_CHECKING:
    from lightning import LightningDataModule, Trainer
    from lightning.pytorch import Callback
    from torch import nn

    from sppbench.run.callbacks import Checkpointing, StopOnNonFiniteLoss, Stopwatch, WeightAverage
    from sppbench.run.classifier import Classifier


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: dict[str, Any]
    classifier: Classifier
    data: LightningDataModule
    trainer: Trainer
    stopwatch: Stopwatch
    divergence: StopOnNonFiniteLoss
    average: WeightAverage
    checkpointing: Checkpointing


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Returns the configuration as plain values; checks those that no part of the run checks.

    A ``~`` at the beginning of ``output_dir`` or ``data.root`` becomes the home directory, also in ``cfg``.

    Raises:
        UsageError: A value is missing or bad.
    """
    try:
        _expand_home(cfg, "output_dir")
        _expand_home(cfg, "data.root")
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise UsageError(one_line(error)) from error
    assert isinstance(config, dict)
    values = {str(key): value for key, value in config.items()}
    check_values(values)
    if cfg.get("logger"):  # unresolved: loggers' files follow output_dir where the saved configuration is run again
        values["logger"] = OmegaConf.to_container(cfg.logger)
    return values


def _expand_home(cfg: DictConfig, key: str) -> None:
    value = OmegaConf.select(cfg, key)
    if isinstance(value, str) and value.startswith("~"):
        OmegaConf.update(cfg, key, str(Path(value).expanduser()))


def build(cfg: DictConfig, run: RunDirectory) -> Parts:
    """Builds the parts and prepares the data; writes nothing to the run directory.

    Raises:
        UsageError: A part refuses its configuration, the data is not available, or the checkpoint is damaged or another
            run's.
    """
    from sppbench.data import DataError

    try:
        return _build(cfg, run)
    except UserError:
        raise
    except DataError as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        raise UsageError(explained(error)) from error


def _build(cfg: DictConfig, run: RunDirectory) -> Parts:
    if "wandb" in (cfg.get("logger") or {}):
        _prepare_wandb(cfg.logger.wandb)
    import torch

    from sppbench.run.callbacks import Checkpointing, Progress, StopOnNonFiniteLoss, Stopwatch, WeightAverage
    from sppbench.run.classifier import Classifier
    from sppbench.run.csv_logger import CSVLogger
    from sppbench.run.memory import prepare_memory

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # between Lightning and torch
    torch.set_float32_matmul_precision("highest")
    # Threads that PyTorch starts from here on do the same; it starts them when it first needs several.
    torch.set_flush_denormal(run.config.get("flush_denormal", False))
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")

    data, net = make_data_and_net(cfg)
    check_learning_rate(run.config)
    make_optimizer = _make_optimizer(cfg, net)
    classifier = Classifier(net, make_optimizer, cfg.data.num_classes)
    loggers = [_make_logger(name, node, run) for name, node in (cfg.get("logger") or {}).items()]
    stopwatch, divergence, average = Stopwatch(), StopOnNonFiniteLoss(), WeightAverage()
    checkpointing = Checkpointing(run.checkpoint, mark_of(run))
    probes = _make_probes(cfg, run)
    alone = not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN
    progress = Progress(stopwatch, bar=alone)
    callbacks = [stopwatch, divergence, average, *probes, progress, *_users_callbacks(cfg), checkpointing]
    trainer = _make_trainer(cfg, run, loggers, callbacks)
    if trainer.strategy.root_device.type == "cpu":
        prepare_memory()
    data.prepare_data()
    check_fit(net, data)
    check_batches(trainer, net, data)
    for probe in probes:  # only when they are attached do they see which layers there are
        probe.on_fit_start(trainer, classifier)
        probe.teardown(trainer, classifier, "fit")
    if run.config["compile"]:
        how = how_to_compile(run.config["compile"])
        check_cuda_graphs(how, trainer.accumulate_grad_batches, trainer.strategy.root_device.type)
        classifier.compile_training(**how)
    if run.resumable:
        saved = check_checkpoint(run)
        for logger in loggers:
            if isinstance(logger, CSVLogger):
                logger.resume(saved.step, saved.epochs)
    return Parts(run.config, classifier, data, trainer, stopwatch, divergence, average, checkpointing)


def make_data_and_net(cfg: DictConfig) -> tuple[Any, Any]:
    """Seeds all random numbers, then makes the data module and the net; equal configurations give equal weights."""
    import lightning
    import torch
    from hydra.utils import instantiate

    lightning.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data)
    return data, instantiate(cfg.model).to(memory_format=torch.channels_last)


def _make_optimizer(cfg: DictConfig, net: nn.Module) -> Any:
    from hydra.utils import instantiate

    make_optimizer = instantiate(cfg.optimizer)
    if str(cfg.trainer.get("precision")).startswith("16") and cfg.optimizer.get("fused"):
        # Fused, they take the scale of the loss out themselves, where neither clipping nor the probe sees it.
        make_optimizer = partial(make_optimizer, fused=False)
    make_optimizer(net.parameters())  # so that a bad value is refused now
    return make_optimizer


def _make_probes(cfg: DictConfig, run: RunDirectory) -> list[Callback]:
    """The callback that records signals, if there is one; its histories name their run, as checkpoints do."""
    from hydra.utils import instantiate

    return [instantiate(cfg.spp, directory=str(run.path), **mark_of(run))] if cfg.spp._target_ else []


def _users_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks in ``trainer.callbacks``: one, or a list."""
    from hydra.utils import instantiate
    from lightning.pytorch import Callback

    found = instantiate(cfg.trainer.get("callbacks") or [])
    callbacks = [found] if isinstance(found, Callback) else list(found)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(f"trainer.callbacks must be a list of Lightning callbacks, got {callback!r}")
    return callbacks


def _make_trainer(cfg: DictConfig, run: RunDirectory, loggers: list[Any], callbacks: list[Callback]) -> Trainer:
    """The keys that are set here are `sppbench.run.validation.OWN_TRAINER_KEYS`, and the callbacks."""
    from hydra.utils import instantiate
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=loggers or False,
        callbacks=callbacks,
        default_root_dir=str(run.path),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module gives each process its share
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )
    # In a job of Slurm, Lightning would write a checkpoint of its own on SIGUSR1, have the job run again, and load that
    # checkpoint wherever it is given none, for a test and in a run begun anew, too. Ours is the only one.
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    trainer._checkpoint_connector._parse_ckpt_path = _given_checkpoint  # type: ignore[method-assign]
    return trainer


def _given_checkpoint(state_fn: Any, ckpt_path: Any, model_provided: bool, model_connected: bool) -> Any:
    """Returns the checkpoint that Lightning is given, if any; Lightning is not to look for one itself."""
    return ckpt_path


def _make_logger(name: str, node: DictConfig, run: RunDirectory) -> Any:
    from hydra.utils import instantiate

    make = instantiate(node, _partial_=True)
    if name != "wandb":
        return make()
    # Online, W&B adds what a resumed run logs to the run of the same id. Offline it cannot know how far that run is:
    # `wandb sync` would send the new part over the old one, from its first line on.
    parts = Path(str(node.get("save_dir") or ".")) / "wandb"
    own_run = run.resumable and (node.mode == "offline" or any(parts.glob(f"offline-run-*-{run.run_id}")))
    logger = make(id=f"{run.run_id}-{uuid.uuid4().hex[:6]}" if own_run else run.run_id, config=run.config)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns of it always
    return logger


def _prepare_wandb(node: DictConfig) -> None:
    import wandb
    from wandb.errors import UsageError as WandbUsageError

    os.environ.setdefault("WANDB_SILENT", "true")
    if node.mode not in WANDB_MODES:
        raise UsageError(f"logger.wandb.mode (or WANDB_MODE) must be online, offline or disabled, got {node.mode!r}")
    if node.mode == "online":
        try:
            known = wandb.login()
        except WandbUsageError:
            known = False
        if not known:
            raise UsageError("W&B cannot go online: there is no API key (run wandb login), or WANDB_MODE forbids it")
