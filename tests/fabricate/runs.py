"""Runs that never took place: what they would have left on disk."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir

from sppbench.files import config_directory
from sppbench.run.assembly import resolve
from sppbench.run.results import Result, read_result
from sppbench.run.run_directory import config_hash

SEEDS = (868, 67, 472, 362, 970)
MODELS = ("efficientnet_nobn", "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp")
VERSIONS = {"python": "3.11.7", "torch": "2.15.0"}


@cache
def composed(model: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return resolve(compose("train", [f"model={model}", f"name={model}", *overrides]))


def configuration(model: str, lr: float, seed: int, *overrides: str) -> dict[str, Any]:
    """The configuration of a real run, which records no signals unless an override ``spp=`` says so."""
    config = copy.deepcopy(composed(model, overrides))
    if not any(override.startswith("spp=") for override in overrides):
        config["spp"] = {"_target_": None}
    config["seed"] = config["data"]["seed"] = seed
    config["optimizer"]["lr"] = lr
    return config


def write_run(
    directory: Path,
    model: str,
    lr: float,
    seed: int,
    accuracy: float | None = None,
    status: str | None = "completed",
    curve: Sequence[float] = (),
    test: dict[str, Any] | None = None,
    overrides: Iterable[str] = (),
    name: str | None = None,
    **fields: Any,
) -> Path:
    """Writes config.yaml, metrics.csv and, unless `status` is None, result.json; returns the run's directory."""
    config = configuration(model, lr, seed, *overrides)
    config["name"] = name or model
    path = directory / model / f"lr={lr:g}" / f"seed={seed}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
    rows = [f"{epoch},{79 * epoch + 78},{value}," for epoch, value in enumerate(curve)]
    rows.append(f"{len(curve)},1580,,{accuracy}")
    (path / "metrics.csv").write_text("\n".join(["epoch,step,val/accuracy,test/accuracy", *rows]) + "\n")
    if status is not None:
        result = {
            "status": status,
            "model": config["name"],
            "data": config["data"]["_target_"].rpartition(".")[2],
            "optimizer": "Adam",
            "lr": lr,
            "seed": seed,
            "epochs": len(curve),
            "steps": 1580,
            "test": {"accuracy": accuracy, **(test or {})} if accuracy is not None else None,
            "val": None,
            "diverged_at": 3 if status == "diverged" else None,
            "error": "RuntimeError: out of memory" if status == "failed" else None,
            "images_per_second": 1000.0,
            "wall_seconds": 10.0,
            "device": "cpu",
            "threads": 2,
            "versions": VERSIONS,
            "git": None,
            "config_hash": config_hash(config),
        }
        Result(**result | fields).write(path / "result.json")
    return path


def reconfigure(run: Path, old: str, new: str) -> None:
    """Changes the text of a run's configuration, and its hash in the result."""
    file = run / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    result = read_result(run / "result.json")
    dataclasses.replace(result, config_hash=config_hash(yaml.safe_load(file.read_text()))).write(run / "result.json")


def write_cell(directory: Path, model: str, lr: float, accuracies: Sequence[float], **arguments: Any) -> None:
    """A run for each accuracy, with the study's seeds and then others."""
    seeds = (*SEEDS, *range(1, 100))
    for seed, accuracy in zip(seeds, accuracies, strict=False):
        write_run(directory, model, lr, seed, accuracy, **arguments)
