"""What is refused before a run begins: values of the configuration, and parts that do not fit each other.

Packages as heavy as torch are imported inside functions.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from sppbench.errors import UserError
from sppbench.run.error_text import explained

if TYPE_CHECKING:
    from lightning import Trainer
    from torch import nn

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Arguments of Lightning's Trainer that a run sets itself. A value of the configuration would be recorded, and ignored.
OWN_TRAINER_KEYS = (
    *("logger", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
)
_NAME_BYTES = 255  # of a folder's name, on nearly all file systems


class UsageError(UserError):
    """A configuration, data or a checkpoint that the user must fix; the message says how, in a line."""


def check_values(config: dict[str, Any]) -> None:
    """Checks the values that no part of a run checks.

    Raises:
        UsageError: One is bad.
    """
    seed, overwrite, mode = config["seed"], config["overwrite"], config["compile"]
    flush = config.get("flush_denormal", False)  # saved configurations of earlier versions lack it
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    if not isinstance(overwrite, bool):
        raise UsageError(f"overwrite must be true or false, got {overwrite!r}")
    if not isinstance(flush, bool):
        raise UsageError(f"flush_denormal must be true or false, got {flush!r}")
    if not isinstance(mode, bool | dict) and mode not in COMPILE_MODES:
        modes = ", ".join(COMPILE_MODES)
        raise UsageError(f"compile must be true, false, one of {modes}, or a mapping of options, got {mode!r}")
    if not isinstance(config.get("logger") or {}, dict):
        raise UsageError(f"logger must be a group of loggers, got {config['logger']!r}")
    _check_name(str(config["name"]))
    _check_trainer(config["trainer"])


def _check_name(name: str) -> None:
    """It is one or several folders of the output directory."""
    parts = name.split("/")
    if not name.isprintable() or {"", ".", ".."} & {*parts}:
        raise UsageError(f"name must be a folder name, got {name!r}")
    if max(len(part.encode()) for part in parts) > _NAME_BYTES:
        raise UsageError(f"name must have at most {_NAME_BYTES} bytes, got {name[:20]!r}… of {len(name)} characters")


def _check_trainer(trainer: dict[str, Any]) -> None:
    for key in OWN_TRAINER_KEYS:
        if key in trainer:
            instead = "choose loggers with logger=" if key == "logger" else "remove it"
            raise UsageError(f"trainer.{key} cannot be set, because every run sets it itself: {instead}")
    for stage, verb in (("train", "train on"), ("test", "test")):
        if trainer.get(f"limit_{stage}_batches") == 0:
            raise UsageError(f"trainer.limit_{stage}_batches=0 leaves nothing to {verb}")
    for key in ("max_epochs", "max_steps"):
        value = trainer.get(key)
        if value is not None and (not _is_integer(value) or value < -1):
            raise UsageError(f"trainer.{key} must be an integer, or -1 for no limit, got {value!r}")
    accumulated = trainer.get("accumulate_grad_batches", 1)
    if not _is_integer(accumulated) or accumulated < 1:
        raise UsageError(f"trainer.accumulate_grad_batches must be an integer of at least 1, got {accumulated!r}")


def check_learning_rate(config: dict[str, Any]) -> None:
    """Refuses a learning rate that is missing, negative or not finite: optimizers accept infinity.

    Raises:
        UsageError: The learning rate is bad.
    """
    lr = config["optimizer"].get("lr")
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not (lr >= 0 and math.isfinite(lr)):
        raise UsageError(f"optimizer.lr must be a finite number of at least 0, got {lr!r}")


def check_fit(net: nn.Module, data: Any) -> None:
    """Passes two images through the net, without leaving a trace in it, to check that net and data fit.

    Raises:
        UsageError: They do not.
    """
    import torch

    shape = (2, data.in_channels, data.image_size, data.image_size)
    with torch.no_grad():
        try:
            logits = net.eval()(torch.zeros(shape))
        except RuntimeError as error:
            raise UsageError(f"model and data do not fit: images {shape} give: {explained(error)}") from error
        finally:
            net.train()
    if logits.shape != (2, data.num_classes):
        raise UsageError(f"model and data do not fit: logits {tuple(logits.shape)} for {data.num_classes} classes")


def check_batches(trainer: Trainer, net: nn.Module, data: Any) -> None:
    """Checks the batches that training, validation and test would have; sets up the data.

    Raises:
        UsageError: A share of them (``limit_train_batches=0.001``) is less than one batch, or the last batch of an
            epoch is a single image, with which the net cannot be trained.
    """
    data.setup("fit")
    data.setup("test")
    for stage in ("train", "val", "test"):
        batches = _length(getattr(data, f"{stage}_dataloader")())
        limit = getattr(trainer, f"limit_{stage}_batches")
        if batches and isinstance(limit, float) and limit > 0 and int(batches * limit) == 0:
            raise UsageError(f"trainer.limit_{stage}_batches={limit} leaves none of {batches} batches")
    if trainer.world_size == 1 and trainer.limit_train_batches == 1.0:
        _check_last_batch(net, data)


def _length(loader: Any) -> int:
    """The number of batches; 0 if it is not known."""
    try:
        return len(loader)
    except TypeError:
        return 0


def _check_last_batch(net: nn.Module, data: Any) -> None:
    import torch

    loader = data.train_dataloader()
    sampler = getattr(loader, "sampler", None)
    if _length(sampler) - (_length(loader) - 1) * data.batch_size != 1:
        return
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws from it
            copy.deepcopy(net).train()(torch.zeros(1, data.in_channels, data.image_size, data.image_size))
    except ValueError as error:
        raise UsageError(
            f"data.batch_size={data.batch_size} leaves a single image of {_length(sampler)} for the last batch, with "
            f"which the net cannot be trained: {explained(error)}"
        ) from error


def how_to_compile(value: Any) -> dict[str, Any]:
    """Arguments of ``torch.compile`` from true, a mode or a mapping of options.

    Raises:
        UsageError: ``torch.compile`` does not have such an option.

    Example:
        >>> how_to_compile("reduce-overhead")
        {'mode': 'reduce-overhead'}
    """
    if not isinstance(value, dict):
        return {} if value is True else {"mode": value}
    import torch._inductor

    if unknown := set(value) - set(torch._inductor.list_options()):
        raise UsageError(f"compile: torch.compile has no option {unknown.pop()}")
    return {"options": value}


def check_cuda_graphs(how: dict[str, Any], accumulated: int, device: str) -> None:
    """Refuses to accumulate gradients in CUDA graphs, where those of a batch would overwrite those of the one before
    (PyTorch's issue 169545).

    Args:
        how: As `how_to_compile` returns it.
        accumulated: Batches that make one optimizer step.
        device: Type of the device.

    Raises:
        UsageError: The configuration asks for it.
    """
    import torch._inductor

    options = how.get("options") or torch._inductor.list_mode_options().get(how.get("mode", ""), {})
    if device == "cuda" and accumulated > 1 and options.get("triton.cudagraphs"):
        raise UsageError("compile: CUDA graphs cannot accumulate gradients; trainer.accumulate_grad_batches must be 1")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
