"""The checkpoint file: it names the run that wrote it, and is checked as a whole before it is used."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppbench.run.error_text import one_line
from sppbench.run.run_directory import RunDirectory, config_hash
from sppbench.run.validation import UsageError

log = logging.getLogger(__name__)

KEY = "sppbench"  # of the checkpoint's entry about its run


@dataclass(frozen=True)
class Saved:
    """How far a checkpoint is: the optimizer steps behind it, and the epochs that were trained to their last batch."""

    step: int
    epochs: int


def mark_of(run: RunDirectory) -> dict[str, str]:
    """What a checkpoint says about its run: the ``run_id`` and the ``config_hash``.

    Example:
        >>> mark_of(RunDirectory("outputs/run", config))
        {'run_id': '1f0c92ab', 'config_hash': '5d41402abc4b'}
    """
    return {"run_id": run.run_id, "config_hash": config_hash(run.config)}


def check_checkpoint(run: RunDirectory) -> Saved:
    """Reads the checkpoint that a run would resume from, so that a wrong one is found before anything is changed.

    A checkpoint of an older version, which does not name its run, is accepted with a warning: the configuration has
    already been compared with ``config.yaml``.

    Raises:
        UsageError: It is damaged, or another run's.
    """
    content = _read(run.checkpoint)
    mark = content.get(KEY)
    if mark is None:
        log.warning(f"{run.checkpoint} does not say which run it belongs to; it is taken for this run's")
    else:
        ours = mark_of(run)
        if mark["config_hash"] != ours["config_hash"]:
            raise _foreign(run, "has another configuration")
        if run.has_id and mark["run_id"] != ours["run_id"]:
            raise _foreign(run, f"is run {mark['run_id']}, and this one {ours['run_id']}")
    epochs = content["callbacks"].get("Stopwatch", {}).get("epochs", content["epoch"])
    return Saved(content["global_step"], epochs)


def _read(path: Path) -> dict[str, Any]:
    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} does not match")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"global_step", "epoch", "callbacks"} <= content.keys():
            raise ValueError("it is not a training checkpoint")
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} is damaged ({one_line(error)}): "
            "replace it with an intact one, or start over with overwrite=true"
        ) from error
    return content


def _foreign(run: RunDirectory, how: str) -> UsageError:
    return UsageError(
        f"checkpoint {run.checkpoint} is another run's, which {how}: "
        "replace it with this run's own, or start over with overwrite=true"
    )
