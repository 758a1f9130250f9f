"""Configurations of stored runs can be run again: all parts that they name are still there, and take their values."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import LightningDataModule
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from sppbench.aliases import MOVED
from sppbench.run.run_directory import flatten

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("model", "data", "optimizer", "logger", "spp")


def distinct_configurations() -> dict[str, Path]:
    """A file of each kind: configurations that differ in seeds, learning rates and places name the same parts."""
    found: dict[str, Path] = {}
    for file in sorted(RESULTS.rglob("config.yaml")):
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
        flat = flatten({part: config[part] for part in PARTS})
        kind = {key: value for key, value in flat.items() if key not in ("data.seed", "data.root", "optimizer.lr")}
        found.setdefault(repr(sorted(kind.items(), key=str)), file)
    return {str(file.parent.relative_to(RESULTS)): file for file in found.values()}


CONFIGURATIONS = distinct_configurations()


def test_there_are_configurations() -> None:
    assert len(CONFIGURATIONS) >= 10


@pytest.mark.parametrize("place", CONFIGURATIONS)
def test_the_parts_of_a_stored_run_are_made_again(place: str, tmp_path: Path) -> None:
    cfg = OmegaConf.load(CONFIGURATIONS[place])
    assert isinstance(cfg, DictConfig)
    cfg.output_dir = str(tmp_path)
    net = instantiate(cfg.model)
    assert isinstance(net, torch.nn.Module)
    assert isinstance(instantiate(cfg.data), LightningDataModule)
    optimizer = instantiate(cfg.optimizer)(net.parameters())
    assert optimizer.defaults["lr"] == cfg.optimizer.lr
    for logger in (cfg.logger or {}).values():
        assert isinstance(instantiate(logger), Logger)
    if cfg.spp._target_ is not None:
        assert isinstance(instantiate(cfg.spp, directory=str(tmp_path)), Callback)
    assert not list(tmp_path.iterdir()), "nothing is written before training"


@pytest.mark.parametrize(
    ("old", "name"), [("sppbench.loggers", "CSVLogger"), ("sppbench.sync_batchnorm", "SyncBatchNorm")]
)
def test_old_names_are_the_new_ones(old: str, name: str) -> None:
    assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(MOVED[old]), name)


def test_old_names_can_be_imported() -> None:
    from sppbench.loggers import CSVLogger  # type: ignore[import-not-found]
    from sppbench.sync_batchnorm import SyncBatchNorm  # type: ignore[import-not-found]

    assert (CSVLogger.__name__, SyncBatchNorm.__name__) == ("CSVLogger", "SyncBatchNorm")


def test_an_old_module_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = importlib.import_module("sppbench.loggers").Nothing
