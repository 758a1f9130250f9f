"""Makes the parts of a run from its configuration, and refuses what does not fit before anything is written.

Heavy packages are imported inside functions, as in train, which alone uses this file.
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
from sppbench.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from lightning import LightningDataModule, Trainer

    from sppbench.run.callbacks import Checkpointing, StopOnNonFiniteLoss, Stopwatch
    from sppbench.run.classifier import Classifier

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class UsageError(UserError):
    """Something that the user must mend; the message says what, in a line."""


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: dict[str, Any]
    classifier: Classifier
    data: LightningDataModule
    trainer: Trainer
    stopwatch: Stopwatch
    divergence: StopOnNonFiniteLoss
    checkpointing: Checkpointing


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, with what no part looks at checked.

    Raises:
        UsageError: A value is missing or bad.
    """
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise UsageError(one_line(error)) from error
    assert isinstance(config, dict)
    values = {str(key): value for key, value in config.items()}
    _check(values)
    if cfg.get("logger"):  # unresolved: loggers' files follow output_dir where the saved configuration is run again
        values["logger"] = OmegaConf.to_container(cfg.logger)
    return values


def _check(config: dict[str, Any]) -> None:
    seed, overwrite, mode = config["seed"], config["overwrite"], config["compile"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    if not isinstance(overwrite, bool):
        raise UsageError(f"overwrite must be true or false, got {overwrite!r}")
    if not isinstance(mode, bool | dict) and mode not in COMPILE_MODES:
        modes = ", ".join(COMPILE_MODES)
        raise UsageError(f"compile must be true, false, one of {modes}, or a mapping of options, got {mode!r}")
    if config["trainer"].get("limit_test_batches") == 0:
        raise UsageError("trainer.limit_test_batches=0 leaves nothing to test")
    if not isinstance(config.get("logger") or {}, dict):
        raise UsageError(f"logger must be a group of loggers, got {config['logger']!r}")


def build(cfg: DictConfig, run: RunDirectory) -> Parts:
    """Makes the parts and gets the data ready, and writes nothing to the run directory.

    Raises:
        UsageError: A part refuses its configuration, or the data cannot be had.
    """
    if "wandb" in (cfg.get("logger") or {}):
        _prepare_wandb(cfg.logger.wandb)
    import torch
    from hydra.utils import instantiate

    from sppbench.data import DataError
    from sppbench.run.callbacks import Checkpointing, Progress, StopOnNonFiniteLoss, Stopwatch
    from sppbench.run.classifier import Classifier
    from sppbench.run.csv_logger import CSVLogger
    from sppbench.run.memory import keep_freed_memory

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # between Lightning and torch
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    try:
        data, net = make_data_and_net(cfg)
        make_optimizer = instantiate(cfg.optimizer)
        if str(cfg.trainer.get("precision")).startswith("16") and cfg.optimizer.get("fused"):
            # Fused, they take the scale of the loss out themselves, where neither clipping nor the probe sees it.
            make_optimizer = partial(make_optimizer, fused=False)
        make_optimizer(net.parameters())  # so that a bad value is refused now
        loggers = [_make_logger(name, node, run) for name, node in (cfg.get("logger") or {}).items()]
        stopwatch, divergence = Stopwatch(), StopOnNonFiniteLoss()
        probes = [instantiate(cfg.spp, directory=str(run.path))] if cfg.spp._target_ else []
        checkpointing = Checkpointing(run.checkpoint)
        alone = not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN
        trainer = instantiate(
            cfg.trainer,
            logger=loggers or False,
            callbacks=[stopwatch, divergence, *probes, Progress(stopwatch, bar=alone), checkpointing],
            default_root_dir=str(run.path),
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module gives each process its share
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
        )
        if trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        data.prepare_data()
        _check_fit(net, data)
        classifier = Classifier(net, make_optimizer, cfg.data.num_classes)
        if run.config["compile"]:
            how = _how_to_compile(run.config["compile"])
            _check_cuda_graphs(how, trainer.accumulate_grad_batches, trainer.strategy.root_device.type)
            classifier.compile_training(**how)
        if run.resumable:
            step = _check_checkpoint(run.checkpoint)
            for logger in loggers:
                if isinstance(logger, CSVLogger):
                    logger.resume(step)
    except (UsageError, DataError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        raise UsageError(one_line(error)) from error
    return Parts(run.config, classifier, data, trainer, stopwatch, divergence, checkpointing)


def _how_to_compile(value: Any) -> dict[str, Any]:
    """Arguments of ``torch.compile`` from true, a mode or a mapping of options."""
    if not isinstance(value, dict):
        return {} if value is True else {"mode": value}
    import torch._inductor

    if unknown := set(value) - set(torch._inductor.list_options()):
        raise UsageError(f"compile: torch.compile has no option {unknown.pop()}")
    return {"options": value}


def _check_cuda_graphs(how: dict[str, Any], accumulated: int, device: str) -> None:
    import torch._inductor

    options = how.get("options") or torch._inductor.list_mode_options().get(how.get("mode", ""), {})
    if device == "cuda" and accumulated > 1 and options.get("triton.cudagraphs"):
        # The memory of the first part's gradients is that of the second part's (PyTorch's issue 169545).
        raise UsageError("compile: CUDA graphs cannot accumulate gradients; trainer.accumulate_grad_batches must be 1")


def make_data_and_net(cfg: DictConfig) -> tuple[Any, Any]:
    """Seeds all random numbers, then makes the data module and the net; equal configurations give equal weights."""
    import lightning
    import torch
    from hydra.utils import instantiate

    lightning.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data)
    return data, instantiate(cfg.model).to(memory_format=torch.channels_last)


def _check_fit(net: Any, data: Any) -> None:
    """Lets two images through, without gradients or any other trace, to see that net and data fit."""
    import torch

    shape = (2, data.in_channels, data.image_size, data.image_size)
    with torch.no_grad():
        try:
            logits = net.eval()(torch.zeros(shape))
        except RuntimeError as error:
            raise UsageError(f"model and data do not fit: images {shape} give: {one_line(error)}") from error
        finally:
            net.train()
    if logits.shape != (2, data.num_classes):
        raise UsageError(f"model and data do not fit: logits {tuple(logits.shape)} for {data.num_classes} classes")


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
    if node.mode not in ("online", "offline", "disabled", "shared"):
        raise UsageError(f"logger.wandb.mode (or WANDB_MODE) must be online, offline or disabled, got {node.mode!r}")
    if node.mode == "online":
        try:
            known = wandb.login()
        except WandbUsageError:
            known = False
        if not known:
            raise UsageError("W&B cannot go online: no API key is known (wandb login), or WANDB_MODE forbids it")


def _check_checkpoint(path: Path) -> int:
    """Reads a checkpoint through and returns its step, so that a damaged one is found before anything is changed.

    Raises:
        UsageError: It is damaged.
    """
    import zipfile

    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} does not match")
        step: int = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} is damaged ({one_line(error)}): "
            "put a whole one in its place, or begin anew with overwrite=true"
        ) from error
    return step


def one_line(error: BaseException) -> str:
    """The message that names the cause, without the lines that Hydra puts around it."""
    from hydra.errors import InstantiationException

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return one_line(error.__cause__)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
