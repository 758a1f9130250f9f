"""The time of a run, by a few of its steps."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from sppbench.files import config_directory
from sppbench.run import few_steps
from sppbench.run.assembly import resolve


def config(*overrides: str) -> dict[str, Any]:
    small = ["model=ffnn_h100", "model.depth=1", "model.hidden_features=8", "data=digits", "name=x", "logger=csv"]
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return resolve(compose("train", [*small, "trainer=cpu", "spp=none", "output_dir=nowhere", *overrides]))


@pytest.fixture
def a_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by a second each time it is looked at, and it is looked at once a step."""
    seconds = itertools.count(0.0)

    class Time:
        monotonic = staticmethod(lambda: next(seconds))

    monkeypatch.setattr(few_steps, "time", Time)


# 1,200 training images in batches of 100 make 12 steps, 300 for validation 3 batches.
@pytest.mark.usefixtures("a_second_a_step")
@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        (("trainer.max_epochs=5",), 5 * (12 + 3 / 3)),
        (("trainer.max_epochs=5", "+trainer.max_steps=24"), 24 * (1 + 3 / 3 / 12)),
        (("trainer.max_epochs=2", "trainer.limit_train_batches=8"), 2 * (8 + 3 / 3)),
        (("trainer.max_epochs=2", "trainer.limit_train_batches=0.5", "trainer.limit_val_batches=1"), 2 * (6 + 1 / 3)),
    ],
)
def test_steps_and_validation_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], seconds: float
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert few_steps.seconds_of(config("data.batch_size=100", *overrides)) == pytest.approx(seconds)
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"], "nothing is left"


def test_what_cannot_be_measured_is_no_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert few_steps.seconds_of(config("data=cifar100", f"data.root={tmp_path}")) is None
    assert not list(tmp_path.iterdir()), "nothing is downloaded"
