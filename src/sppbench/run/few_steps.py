"""How long a run would take, by a few of its steps, measured now."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sppbench.run.assembly import build
from sppbench.run.run_directory import RunDirectory

log = logging.getLogger(__name__)

STEPS = 6
WARM_UP = 2  # of them, which are not counted
FORWARD = 1 / 3  # of a step: what an image of the validation set takes of one for training


def seconds_of(config: dict[str, Any]) -> float | None:
    """Estimated seconds of a run, without its start; None if its steps cannot be run here.

    A few steps are taken with all that the run has: net, data, probe, precision and device. What they leave is deleted,
    nothing is downloaded, and no logger hears of them.

    Args:
        config: The resolved configuration of the run.
    """
    short = copy.deepcopy(config)
    short["logger"] = {}
    short["trainer"] |= {"limit_train_batches": STEPS, "limit_val_batches": 1, "max_epochs": 1}
    if "download" in short["data"]:
        short["data"]["download"] = False
    try:
        with tempfile.TemporaryDirectory(prefix="sppbench-") as folder:
            short["output_dir"] = str(Path(folder, "run"))
            return _measured(short, config["trainer"])
    except Exception as error:  # an estimate that cannot be had is none
        log.debug("no steps were measured: %s", error)
        return None


def _measured(short: dict[str, Any], whole: dict[str, Any]) -> float:
    from lightning.pytorch import Callback

    class Clock(Callback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.strategy.root_device.type == "cuda":
                import torch

                torch.cuda.synchronize()
            self.ends.append(time.monotonic())

    run = RunDirectory(short["output_dir"], short)
    with run.locked():
        parts, clock = build(OmegaConf.create(short), run), Clock()
        run.begin()
        parts.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        parts.trainer.fit(parts.classifier, datamodule=parts.data)
    step = statistics.median(end - start for start, end in pairwise(clock.ends[WARM_UP - 1 :]))
    batches = {name: len(getattr(parts.data, f"{name}_dataloader")()) for name in ("train", "val")}
    limits = {name: whole.get(f"limit_{name}_batches") for name in batches}
    batches = {name: _limited(number, limits[name]) for name, number in batches.items()}
    steps, most = (whole.get("max_epochs") or 1) * batches["train"], whole.get("max_steps", -1)
    steps = min(steps, most) if most >= 0 else steps
    return step * steps * (1 + FORWARD * batches["val"] / batches["train"])


def _limited(number: int, limit: int | float | None) -> int:
    """Of so many batches those that Lightning's limit leaves: a number of them, or a share."""
    if limit is None:
        return number
    return min(number, limit) if isinstance(limit, int) else max(1, math.floor(number * limit))
