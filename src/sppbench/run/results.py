"""result.json: what one run leaves, and how it is read back."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sppbench.errors import UserError
from sppbench.files import write_text
from sppbench.stored_files import is_number, read_text

Status = Literal["completed", "diverged", "stopped_early", "failed", "interrupted"]
FINAL: tuple[Status, ...] = ("completed", "diverged", "stopped_early")  # such a run is not run again
_SCORES = ("accuracy", "top5", "loss", "classes_predicted", "logit_std", "images")


class ResultError(UserError):
    """A result.json that cannot be read."""


@dataclass(frozen=True)
class Result:
    """One run. Accuracies in percent, losses in nats; a number that is not finite is None.

    Attributes:
        status: ``completed``; ``diverged`` (ended early on a loss that is not finite, and was tested as it was);
            ``stopped_early`` (it was tested, too, but ended before ``max_epochs`` or ``max_steps``: by
            ``trainer.max_time``, ``trainer.fast_dev_run`` or a user's callback; such a run never counts);
            ``failed`` (an exception: see ``error`` and the run's traceback.txt); ``interrupted`` (can be resumed).
        model: Name of the net: the choice in the group ``model``, or what ``name=`` gave.
        data, optimizer: Class names.
        epochs: Epochs that were trained to their end.
        steps: Optimizer steps taken.
        test: ``accuracy``, ``top5``, ``loss``, ``per_class``, ``classes_predicted``, ``logit_std``, ``logits_finite``
            of the last weights; None where there was no test.
        val: ``accuracy``, ``top5``, ``loss`` after the last epoch.
        train: ``accuracy``, ``loss``, ``images`` of the last weights on the first 10,000 training images, without
            augmentation and in evaluation mode; None where there was no test, and in results of older versions.
        averaged: ``val`` and ``test`` of the average of the weights, see `WeightAverage`, each with ``accuracy``,
            ``loss`` and ``images``; None where ``train`` is, and where there is no average.
        diverged_at: The step, counted from 1, whose loss was the first that was not finite.
        images_per_second: Training images over the time spent in training epochs, without validation.
        wall_seconds: From the start of the run to its end, the parts of an interrupted run added up.
        threads: Threads of PyTorch's CPU operators; results are bitwise repeatable for equal numbers only.
        git: ``commit`` and ``dirty`` of the source checkout, None for an installed package.
        config_hash: Hash of the configuration without what only says where and by which kernels it is run.
    """

    status: Status
    model: str
    data: str
    optimizer: str
    lr: float
    seed: int
    epochs: int
    steps: int
    test: dict[str, Any] | None
    val: dict[str, Any] | None
    diverged_at: int | None
    error: str | None
    images_per_second: float | None
    wall_seconds: float
    device: str
    threads: int
    versions: dict[str, str]
    git: dict[str, Any] | None
    config_hash: str
    train: dict[str, Any] | None = None
    averaged: dict[str, dict[str, float | int | None]] | None = None

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n")


def read_result(path: Path) -> Result:
    """Reads a result.json.

    Raises:
        ResultError: It is not JSON, or lacks fields, has others, or values of other types.

    Example:
        >>> read_result(Path("outputs/runs/ffnn/lr=0.001/seed=868/result.json")).test["accuracy"]
        25.1
    """
    try:
        result = Result(**json.loads(read_text(path)))
        _check_types(result)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ResultError(f"cannot read {path}: {error}") from error
    return result


def _check_types(result: Result) -> None:
    """Refuses values that do not have the types of the fields, and bad scores and commits inside them."""
    for name, hint in get_type_hints(Result).items():
        if not _fits(value := getattr(result, name), hint):
            raise ValueError(f"{name} is {value!r}")
    parts = {part: getattr(result, part) or {} for part in ("test", "val", "train")}
    parts |= {f"averaged.{part}": scores for part, scores in (result.averaged or {}).items()}
    for part, scores in parts.items():
        for name, value in scores.items():
            if name in _SCORES and not _fits(value, float | None):
                raise ValueError(f"{part}.{name} is {value!r}")
    if result.git is not None and not _fits(result.git.get("commit", ""), str):
        raise ValueError(f"git.commit is {result.git['commit']!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of a type: a plain one, or made of Literal, dict and | as those above."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if arguments:
        return any(_fits(value, one) for one in arguments)
    if hint is float:
        return is_number(value)
    return hint is Any or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("sppbench", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this file is imported from; None where it is not one of sppbench."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
