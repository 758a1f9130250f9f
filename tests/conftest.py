"""What the tests of whole runs share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

from sppbench import models
from sppbench.files import config_directory
from sppbench.train import main
from tests.compositions import kept_compositions

# The nets are small, and the tests run in several processes.
torch.set_num_threads(1)

# pytest listens to every logger that does not propagate. Heard, this one is given the text of all that is compiled.
logging.getLogger("torch.__trace").propagate = True

# A run of a second: 3 epochs of 3 steps (the last batch is a partial one) on random images.
FFNN = ("name=ffnn", "model=ffnn", "model.hidden_features=16", "model.depth=2")
EFFICIENTNET = (
    *("name=efficientnet_bn", "model=efficientnet_bn", "model.width_mult=0.1", "model.depth_mult=0.1"),
    *("model.dropout=0.5", "data.image_size=16"),
)
# With dropout and batch normalization: it resumes bitwise only if random states and buffers are restored, too.
DROPOUT = ("name=dropout", "model=ffnn_bn", "model._target_=tests.conftest.FFNNWithDropout", *FFNN[2:])
SMALL = [
    "data=synthetic",
    "data.train_size=40",
    "data.val_size=20",  # in two batches
    "data.test_size=20",
    "data.batch_size=16",
    "data.image_size=8",
    "data.num_classes=10",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=2",
    "logger=csv",
]


class FFNNWithDropout(models.FFNN):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.classifier = nn.Sequential(nn.Dropout(0.5), self.classifier)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs whose figures are not looked at: they would take most of the time."""
    for name in ("draw_epoch", "draw_heatmaps"):
        monkeypatch.setattr(f"sppbench.spp.run_figures.RunFigures.{name}", lambda *arguments: None)


@pytest.fixture(scope="session", autouse=True)
def _kept_compositions() -> Iterator[None]:
    with kept_compositions():
        yield


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for key in [key for key in os.environ if key.startswith("WANDB_") and key != "WANDB_MODE"]:
        monkeypatch.delenv(key)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes the configuration of a small run in ``tmp_path / "run"``; overrides as on the command line."""

    def make(*overrides: str, net: tuple[str, ...] = FFNN, spp: str = "none") -> DictConfig:
        places = [override for override in overrides if override.startswith("output_dir=")]
        others = [override for override in overrides if override not in places]
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = compose("train", [*SMALL, *net, f"spp={spp}", *others])
        cfg.output_dir = [f"output_dir={tmp_path}/run", *places][-1].partition("=")[2]
        return cfg

    return make


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command in this process and returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        flags = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if argument not in flags]
        chosen = {argument.partition("=")[0] for argument in overrides}
        small = ["logger=csv"] if "data" in chosen else [*SMALL, "spp=none"]
        monkeypatch.setattr(sys, "argv", ["sppbench.train", *flags, *small, *FFNN, *overrides])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
