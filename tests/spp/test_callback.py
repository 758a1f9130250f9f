"""The callback in small trainings: what it leaves on disk and in loggers, and how it continues what was interrupted."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import MixedPrecision
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sppbench.spp import run_figures
from sppbench.spp.callback import SPPCallback
from sppbench.spp.history import run_history
from sppbench.spp.history.epoch_means import batchnorm_epoch_mean, epoch_mean
from sppbench.spp.history.health import summarize, summarize_batchnorm
from sppbench.spp.history.reader import check_end, read_batchnorm, read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter
from tests.processes import start

FIGURES = ("spp/panels", "spp/gradients", "spp/heatmap_activation", "spp/heatmap_gradient")
SCALARS = {
    *(f"spp/{signal}_gain" for signal in ("activation", "gradient")),
    *(f"spp/{signal}_{end}" for signal in ("activation", "gradient") for end in ("min", "max")),
    *(f"spp/{signal}_{end}_depth" for signal in ("activation", "gradient") for end in ("min", "max")),
    *("spp/dead_layers", "spp/nonfinite_layers"),
    *(f"batchnorm/{name}" for name in ("gain", "gamma_squared", "inverse_variance", "projection")),
    *(f"batchnorm/gain_{end}{depth}" for end in ("min", "max") for depth in ("", "_depth")),
}


class Module(LightningModule):
    """Generic: calls its net directly, and never itself."""

    def __init__(self, steps: dict[int, float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.factors = steps or {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self.net(x * self.factors.get(self.global_step, 1.0)), y)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.criterion(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def data(size: int = 22, batches: int = 1) -> DataLoader[Any]:
    """Three batches, the last a partial one, in the same order in each epoch; or so many times the same batches."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)
    return DataLoader(TensorDataset(x.repeat(batches, 1), y.repeat(batches)), 8)


def fit(
    path: Path,
    *callbacks: Callback,
    module: LightningModule | None = None,
    validate: bool = True,
    resume: Path | None = None,
    loader: DataLoader[Any] | None = None,
    **options: Any,
) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(
        **(defaults | options),
        default_root_dir=path,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = module if module is not None else Module()
    loaders = (loader or data(), data(8) if validate else None)
    trainer.fit(module, *loaders, ckpt_path=resume, weights_only=False)
    return trainer


def by_hand(epochs: int = 2, accumulate: int = 1) -> pd.DataFrame:
    """Second moments at every layer and gains of the BN, by tensors that are kept and autograd, in double precision."""
    module, rows = Module(), []
    optimizer = module.configure_optimizers()
    step = 0
    for epoch in range(epochs):
        batches = list(data())
        for first in range(0, len(batches), accumulate):
            group = batches[first : first + accumulate]
            weights = {name: p.detach().double() for name, p in module.named_parameters() if p.ndim > 1 or "1." in name}
            optimizer.zero_grad()
            kept: list[list[Tensor]] = []
            for x, y in group:
                outputs = [x]
                for layer in module.net:
                    outputs.append(layer(outputs[-1]))
                    outputs[-1].retain_grad()
                # Lightning divides by the setting also in the last group, which may be smaller.
                (module.criterion(outputs[-1], y) / accumulate).backward()
                kept.append(outputs[1:])
            for index in range(len(module.net)):
                name = f"net.{index}"
                values = torch.cat([outputs[index].detach() for outputs in kept]).double()
                gradients = torch.cat([outputs[index].grad for outputs in kept]).double()
                rows.append((step, epoch, name, "activation", values.square().mean().item()))
                rows.append((step, epoch, name, "gradient", gradients.square().mean().item()))
                if f"{name}.weight" in weights:
                    rows.append((step, epoch, name, "parameter", weights[f"{name}.weight"].square().mean().item()))
            inner, outer = (torch.cat([outputs[index].grad for outputs in kept]).double() for index in (0, 1))
            gain = inner.square().mean() / outer.square().mean()
            rows.append((step, epoch, "net.1", "gain", gain.item()))
            optimizer.step()
            step += 1
    return pd.DataFrame(rows, columns=["step", "epoch", "layer", "signal", "value"])


def check_by_hand(path: Path, expected: pd.DataFrame) -> None:
    keys = ["step", "epoch", "layer", "signal"]
    history = read_history(path / "spp.parquet")
    history = history[history["layer"] != "criterion"].rename(columns={"second_moment": "value"})[[*keys, "value"]]
    gains = read_batchnorm(path / "batchnorm.parquet").assign(signal="gain").rename(columns={"gain": "value"})
    found = pd.concat([history, gains[[*keys, "value"]]]).sort_values(keys, ignore_index=True)
    expected = expected.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, rtol=2e-5, check_dtype=False)
    gains = read_batchnorm(path / "batchnorm.parquet")
    product = gains["gamma_squared"] * gains["inverse_variance"] * gains["projection"]
    np.testing.assert_allclose(product, gains["gain"], rtol=1e-3)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|smaller than the logging|treespec|no `val_dataloader`|Be aware that)",
    "ignore:.*(your dataloader is not resumable|manual optimization and every_n_train_steps)",
)


@pytest.fixture
def _empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at them: they take a third of a second each."""
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))


empty_figures = pytest.mark.usefixtures("_empty_figures")


@empty_figures
@pytest.mark.parametrize(
    ("options", "accumulate"),
    [
        ({}, 1),
        ({"validate": False}, 1),
        ({"val_check_interval": 2}, 1),
        ({"accumulate_grad_batches": 2}, 2),
    ],
)
def test_the_history_of_every_step_by_hand(tmp_path: Path, options: dict[str, Any], accumulate: int) -> None:
    """Also without validation, with validation in the middle of an epoch, and with accumulated batches."""
    fit(tmp_path, SPPCallback(flush_every_n_steps=2), **options)
    check_by_hand(tmp_path, by_hand(accumulate=accumulate))


@empty_figures
@pytest.mark.parametrize("manual", [False, True])
def test_a_loss_that_a_scaler_multiplies(tmp_path: Path, manual: bool) -> None:
    """The scale doubles after each optimizer's step: it must be that of the backward pass before."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    plugin, module = MixedPrecision("16-mixed", "cpu", scaler), Manual() if manual else Module()
    fit(tmp_path, SPPCallback(module="net"), module=module, plugins=[plugin], max_epochs=1)
    assert scaler.get_scale() >= 2.0**11
    # With two optimizers the second one's gradients are already unscaled wrongly: the first step is what to compare.
    steps = range(1) if manual else range(3)
    found = read_history(tmp_path / "spp.parquet", signals="gradient", steps=steps)
    expected = by_hand(epochs=1).query("signal == 'gradient' and step in @steps")
    np.testing.assert_allclose(found["second_moment"], expected["value"], rtol=0.05)


class Manual(Module):
    """Two optimizers that step in turn in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, second = list(self.net[0].parameters()), list(self.net[1:].parameters())
        return [torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.SGD(second, 0.1, momentum=0.9)]


@empty_figures
def test_manual_optimization_counts_optimizer_steps_and_resumes(tmp_path: Path) -> None:
    expected = by_hand()
    expected["step"] *= 2
    fit(tmp_path / "whole", SPPCallback(), module=Manual())
    check_by_hand(tmp_path / "whole", expected)
    fit(tmp_path / "parts", SPPCallback(), module=Manual(), max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path / "parts", SPPCallback(), module=Manual(), resume=tmp_path / "last.ckpt")
    check_by_hand(tmp_path / "parts", expected)


@empty_figures
def test_some_steps_some_layers_some_signals(tmp_path: Path) -> None:
    callback = SPPCallback(every_n_steps=2, module="net", layers=["0", "2"], signals=["gradient"], batchnorm=False)
    fit(tmp_path, callback)
    history = read_history(tmp_path / "spp.parquet")
    keys = ["step", "layer", "signal"]
    assert history[keys].to_numpy().tolist() == [[step, layer, "gradient"] for step in (0, 2, 4) for layer in "02"]
    expected = by_hand().query("signal == 'gradient' and step % 2 == 0 and layer in ('net.0', 'net.2')")
    np.testing.assert_allclose(history["second_moment"], expected["value"], rtol=2e-5)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("spp.parquet", "spp_epoch=0.png", "spp_epoch=1.png", "spp_gradient_epoch=0.png", "spp_gradient_epoch=1.png"),
        "spp_heatmap_gradient.png",
    ]


@empty_figures
def test_nothing_is_changed_and_nothing_stays(tmp_path: Path) -> None:
    with_callback, without = Module(), Module()
    keys = list(with_callback.state_dict())
    fit(tmp_path / "with", SPPCallback(), module=with_callback)
    fit(tmp_path / "without", module=without)
    assert list(with_callback.state_dict()) == keys
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_callback.state_dict()[name])
    assert_no_hooks(with_callback)
    assert not (tmp_path / "without").exists()


def assert_no_hooks(module: nn.Module) -> None:
    for one in module.modules():
        assert not one._forward_hooks
        assert not one._forward_pre_hooks


class Stop(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.at:
            raise RuntimeError("stopped")


@empty_figures
@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, at: int) -> None:
    """In the middle of an epoch and at its end; the first part went two steps further than its checkpoint."""
    # The same batch again and again: a plain loader begins its epoch anew when a run is resumed in the middle of it.
    options: dict[str, Any] = {"max_epochs": 3, "validate": False, "loader": data(8, batches=3)}
    fit(tmp_path / "whole", SPPCallback(), **options)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=at, save_top_k=-1, filename="{step}")
    callback, module = SPPCallback(flush_every_n_steps=2), Module()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path / "parts", callback, checkpoint, Stop(at + 2), module=module, **options, enable_checkpointing=True)
    assert_no_hooks(module)
    assert read_history(tmp_path / "parts" / "spp.parquet")["step"].max() == at + 1
    fit(tmp_path / "parts", callback, resume=tmp_path / "checkpoints" / f"step={at}.ckpt", **options)
    for read, name in ((read_history, "spp.parquet"), (read_batchnorm, "batchnorm.parquet")):
        whole, parts = read(tmp_path / "whole" / name), read(tmp_path / "parts" / name)
        assert sorted(set(whole["step"])) == list(range(9))
        pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    names = {part: {file.name for file in (tmp_path / part).glob("*.png")} for part in ("whole", "parts")}
    assert names["whole"] == names["parts"]


@empty_figures
def test_fit_again_continues_and_another_training_starts_anew(tmp_path: Path) -> None:
    callback, module = SPPCallback(), Module()
    trainer = fit(tmp_path / "first", callback, module=module, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data(), data(8))
    first = read_history(tmp_path / "first" / "spp.parquet")
    assert sorted(set(first["step"])) == list(range(6))
    fit(tmp_path / "second", callback, max_epochs=1)
    check_by_hand(tmp_path / "second", by_hand(epochs=1))
    pd.testing.assert_frame_equal(read_history(tmp_path / "first" / "spp.parquet"), first)
    second = read_history(tmp_path / "second" / "spp.parquet")
    pd.testing.assert_frame_equal(first[first["epoch"] == 0], second)


@empty_figures
def test_a_fast_dev_run_leaves_the_files_of_a_run_alone(tmp_path: Path) -> None:
    fit(tmp_path, SPPCallback())
    files = sorted(tmp_path.rglob("*"))
    fit(tmp_path, SPPCallback(), fast_dev_run=True)
    assert sorted(tmp_path.rglob("*")) == files
    check_by_hand(tmp_path, by_hand())


class MadeLate(Module):
    """Makes its net, or what is missing of it, only after ``Callback.setup``."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.made = [self.net]
        self.net = None if whole else self.net[:2]

    def setup(self, stage: str) -> None:
        self.net = self.made[0]


@empty_figures
@pytest.mark.parametrize("whole", [True, False])
def test_a_net_that_is_made_in_setup(tmp_path: Path, whole: bool) -> None:
    fit(tmp_path, SPPCallback(module="net"), module=MadeLate(whole))
    found = read_history(tmp_path / "spp.parquet", signals=["gradient"], steps=0)
    assert found["layer"].tolist() == ["0", "1", "2", "3"]


@empty_figures
def test_what_is_refused_when_training_begins(tmp_path: Path) -> None:
    for callback, error in ((SPPCallback(module="nett"), AttributeError), (SPPCallback(layers="nothing"), ValueError)):
        with pytest.raises(error):
            fit(tmp_path, callback)
    assert not list(tmp_path.glob("spp*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer of at least 1; got 0"),
        ({"every_n_steps": "abc"}, "every_n_steps must be an integer of at least 1; got 'abc'"),
        ({"every_n_steps": 1.5}, "every_n_steps must be an integer of at least 1; got 1.5"),
        ({"every_n_steps": True}, "every_n_steps must be an integer of at least 1; got True"),
        ({"flush_every_n_steps": None}, "flush_every_n_steps must be an integer of at least 1; got None"),
        ({"layers": 5}, "layers must be a list; got 5"),
        ({"layers": ["0", 5]}, "layers must be of type str or type; got 5"),
        ({"layers": []}, "layers must name at least one; null (None) stands for all leaves"),
        ({"signals": None}, "signals must be a list; got None"),
        (
            {"signals": "grad"},
            "signals must be one of 'activation', 'gradient', 'parameter', 'parameter_gradient', 'update'; got 'grad'",
        ),
        (
            {"signals": [1]},
            "signals must be one of 'activation', 'gradient', 'parameter', 'parameter_gradient', 'update'; got 1",
        ),
        ({"epochs": 5}, "epochs must be a list; got 5"),
        ({"epochs": [0, -1]}, "epochs must be an integer of at least 0; got -1"),
        ({"convention": "mine"}, "convention must be one of 'definition', 'study'; got 'mine'"),
        ({"module": None}, "module must be of type str; got None"),
        ({"batchnorm": "yes"}, "batchnorm must be of type bool; got 'yes'"),
        ({"directory": 5}, "directory must be of type str or Path; got 5"),
        ({"run_id": 5}, "run_id must be of type str; got 5"),
    ],
)
def test_what_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SPPCallback(**arguments)


def test_what_is_accepted() -> None:
    from omegaconf import OmegaConf

    lists = OmegaConf.create({"layers": ["a", "b.*"], "signals": ["update"], "epochs": [1, 2]})
    settings = SPPCallback(layers=lists.layers, signals=lists.signals, epochs=lists.epochs).settings
    assert (settings.layers, settings.signals, settings.epochs) == (("a", "b.*"), ("update",), (1, 2))
    assert SPPCallback(layers=[nn.Linear, "a"], signals="gradient").settings.signals == ("gradient",)
    settings = SPPCallback(epochs=range(3), every_n_steps=np.int64(2)).settings  # type: ignore[arg-type]
    assert settings.epochs == (0, 1, 2)
    assert SPPCallback(directory="~/runs").directory == Path.home() / "runs"


# -- whose history it is, and what is missing --------------------------------------------------------------------------


def log_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@empty_figures
def test_another_run_in_the_same_folder_leaves_the_first_one_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, SPPCallback(), max_epochs=1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert log_of(caplog) == []
    fit(tmp_path, SPPCallback(), validate=False, module=Module({0: 2.0}), max_epochs=1)
    [warning] = log_of(caplog)
    assert warning == (
        f"{tmp_path / 'spp.parquet'} belongs to another run and stays as it is: this run records in "
        f"{tmp_path / 'spp-2.parquet'}"
    )
    assert {file: file.read_bytes() for file in before} == before
    first, second = (read_history(tmp_path / name) for name in ("spp.parquet", "spp-2.parquet"))
    assert first["acsm"].iloc[0] != second["acsm"].iloc[0]
    assert {file.name for file in tmp_path.glob("*-2*")} == {
        *("spp-2.parquet", "batchnorm-2.parquet", "spp-2_epoch=0.png", "spp-2_gradient_epoch=0.png"),
        *("spp-2_heatmap_activation.png", "spp-2_heatmap_gradient.png"),
    }
    # Both are resumed where they are.
    (tmp_path / "spp-3.parquet").write_text("not ours")
    trainer = fit(tmp_path, SPPCallback(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "fourth.ckpt")
    fit(tmp_path, SPPCallback(), max_epochs=2, resume=tmp_path / "fourth.ckpt")
    check_by_hand_of(tmp_path / "spp-4.parquet", by_hand())
    assert (tmp_path / "spp-3.parquet").read_text() == "not ours"
    assert {file: file.read_bytes() for file in before} == before


def check_by_hand_of(path: Path, expected: pd.DataFrame) -> None:
    """The gradients only."""
    found = read_history(path, signals="gradient")
    expected = expected[expected["signal"] == "gradient"]
    np.testing.assert_allclose(found["second_moment"], expected["value"], rtol=2e-5)


@empty_figures
def test_a_run_with_an_id_starts_its_own_history_anew(tmp_path: Path) -> None:
    for run_id, name in (("one", "spp"), ("one", "spp"), ("two", "spp-2"), ("one", "spp")):
        fit(tmp_path, SPPCallback(run_id=run_id, config_hash="abc"), max_epochs=1)
        origin = check_end(tmp_path / f"{name}.parquet", 3)
        assert origin is not None
        assert (origin.run_id, origin.config_hash) == (run_id, "abc")
    assert not (tmp_path / "spp-3.parquet").exists()


@empty_figures
def test_the_directory_is_that_of_the_first_logger(tmp_path: Path) -> None:
    """A resumed run, whose logger begins another directory, takes its history along."""
    checkpoint = tmp_path / "last.ckpt"
    fit(tmp_path, SPPCallback(), logger=CSVLogger(tmp_path), max_epochs=1).save_checkpoint(checkpoint)
    logs = tmp_path / "lightning_logs"
    first = read_history(logs / "version_0" / "spp.parquet")
    assert not list(tmp_path.glob("*.parquet"))
    fit(tmp_path, SPPCallback(), logger=CSVLogger(tmp_path), max_epochs=2, resume=checkpoint)
    check_by_hand(logs / "version_1", by_hand())
    pd.testing.assert_frame_equal(read_history(logs / "version_0" / "spp.parquet"), first)


@empty_figures
def test_a_resume_without_the_history_warns_and_stays_incomplete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, recorder = tmp_path / "last.ckpt", Recorder()
    fit(tmp_path, SPPCallback(), max_epochs=1).save_checkpoint(checkpoint)
    shutil.rmtree(tmp_path / "spp.parquet")
    trainer = fit(tmp_path, SPPCallback(epochs=(0, 1)), max_epochs=3, resume=checkpoint, logger=recorder)
    assert trainer.global_step == 9
    lacking = [message for message in log_of(caplog) if "The run goes on at step 3" in message]
    assert len(lacking) == 1
    assert lacking[0].startswith(f"{tmp_path / 'spp.parquet'} lacks the steps 0 to 2")
    with pytest.raises(HistoryError, match="lacks the steps 0 to 2"):
        read_history(tmp_path / "spp.parquet")
    # Of epoch 1 it is not known whether it began at step 3; the mean of epoch 2 is whole.
    logged = [metrics["epoch"] for _, metrics in recorder.logged if "spp/dead_layers" in metrics]
    assert logged == [2]
    assert len(read_batchnorm(tmp_path / "batchnorm.parquet")) == 9


@empty_figures
def test_a_run_that_is_resumed_after_its_last_step_misses_its_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "last.ckpt"
    fit(tmp_path, SPPCallback(), max_epochs=1).save_checkpoint(checkpoint)
    fit(tmp_path, SPPCallback(), max_epochs=1, resume=checkpoint)
    assert not [message for message in log_of(caplog) if "lacks the steps" in message]
    shutil.rmtree(tmp_path / "spp.parquet")
    trainer = fit(tmp_path, SPPCallback(), max_epochs=1, resume=checkpoint)
    assert trainer.global_step == 3
    assert len([message for message in log_of(caplog) if "spp.parquet lacks the steps 0 to 2" in message]) == 1


class StopEarly(Callback):
    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.global_step >= 4


@empty_figures
@pytest.mark.parametrize(
    ("options", "manual", "every"),
    [
        ({}, False, 1),
        ({}, False, 4),
        ({"max_epochs": -1, "max_steps": 5}, False, 3),
        ({}, True, 1),
        ({}, True, 3),
        ({"callbacks": True}, False, 1),
        ({"accumulate_grad_batches": 2}, False, 3),
    ],
)
def test_the_history_reaches_the_last_step_and_each_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], manual: bool, every: int
) -> None:
    """Of a run that ends early, records few steps, or makes several optimizer steps in a batch."""
    more = [StopEarly()] if options.pop("callbacks", False) else []
    each = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    parts = (SPPCallback(every, flush_every_n_steps=2), each, *more)
    trainer = fit(tmp_path, *parts, module=Manual() if manual else None, enable_checkpointing=True, **options)
    for name in ("spp", "batchnorm"):
        check_end(tmp_path / f"{name}.parquet", trainer.global_step)
        with pytest.raises(HistoryError):
            check_end(tmp_path / f"{name}.parquet", trainer.global_step + every)
    checkpoints = {torch.load(file, weights_only=True)["global_step"]: file for file in tmp_path.glob("*.ckpt")}
    for at, file in sorted(checkpoints.items(), reverse=True):
        run_id = torch.load(file, weights_only=True)["sppbench.spp"]["run_id"]
        for name, writer in (("spp", HistoryWriter), ("batchnorm", BatchNormWriter)):
            writer(tmp_path / f"{name}.parquet", resume_at=at, every_n_steps=every, run_id=run_id)
    assert log_of(caplog) == []


class Frozen(Module):
    """Its batch normalization is in evaluation mode in the first epochs, and so has no gain there."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.net[1].train(self.current_epoch >= self.epochs)


@empty_figures
def test_the_history_says_whether_there_are_gains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So a table of gains that was lost is known from one that never was, also after the run was resumed."""
    path, gains, last = tmp_path / "spp.parquet", tmp_path / "batchnorm.parquet", tmp_path / "last.ckpt"

    def train(epochs: int, frozen: int, **options: Any) -> bool | None:
        resume = last if epochs > 1 else None
        trainer = fit(tmp_path, SPPCallback(**options), module=Frozen(frozen), max_epochs=epochs, resume=resume)
        trainer.save_checkpoint(last)
        origin = check_end(path, trainer.global_step)
        return origin.batchnorm if origin is not None else None

    assert train(1, frozen=2) is False
    assert train(2, frozen=2) is False
    assert not gains.exists()
    assert train(3, frozen=2) is True
    check_end(gains, 9)
    assert sorted(set(read_batchnorm(gains)["step"])) == [6, 7, 8]
    assert log_of(caplog) == []
    assert train(4, frozen=0, batchnorm=False) is True
    shutil.rmtree(gains)
    assert train(5, frozen=0) is True
    assert log_of(caplog)[0].startswith(f"{gains} lacks the steps 0 to 11. The run goes on")


@empty_figures
def test_the_end_of_an_epoch_reads_only_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[tuple[int, ...], Any]] = []

    def watched(path: Path, **arguments: Any) -> pd.DataFrame:
        read.append((tuple(arguments["epochs"]), arguments["steps"]))
        return read_history(path, **arguments)

    monkeypatch.setattr(run_history, "read_history", watched)
    fit(tmp_path, SPPCallback(epochs=(0, 2)), max_epochs=4).save_checkpoint(tmp_path / "last.ckpt")
    assert read == [((epoch,), range(3 * epoch, 3 * epoch + 3)) for epoch in range(4)]
    read.clear()
    fit(tmp_path, SPPCallback(epochs=(0, 2)), max_epochs=6, resume=tmp_path / "last.ckpt")
    assert read == [((0, 2, 3), None), ((4,), None), ((5,), range(15, 18))]


# -- figures that fail -------------------------------------------------------------------------------------------------


def test_a_figure_that_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("latex could not be found\nlong story")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", fails)
        trainer = fit(tmp_path, SPPCallback(epochs=[0]))
    assert trainer.global_step == 6
    warnings = log_of(caplog)
    files = [f"spp_{kind}epoch={epoch}.png" for epoch in (0, 1) for kind in ("", "gradient_")]
    files += [f"spp_heatmap_{signal}.png" for signal in ("activation", "gradient")]
    assert len(warnings) == 6
    assert not list(tmp_path.glob("*.png"))
    for file, warning in zip(files, warnings, strict=True):
        assert warning.startswith(f"{tmp_path / file} was not drawn (RuntimeError: latex could not be found). To draw")
    # The commands draw what was to be drawn.
    for file, warning in list(zip(files, warnings, strict=True))[2:5]:
        exec(shlex.split(warning.partition("later: ")[2])[2], {})
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


@empty_figures
def test_a_logger_that_fails_to_take_figures_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the server is gone")

    board = TensorBoardLogger(tmp_path, name="board")
    monkeypatch.setattr(type(board.experiment), "add_figure", fails)
    trainer = fit(tmp_path, SPPCallback(directory=tmp_path), logger=board)
    assert trainer.global_step == 6
    [warning] = log_of(caplog)
    assert warning.startswith(
        f"TensorBoardLogger did not accept {tmp_path / 'spp_epoch=0.png'} (ConnectionError: the s"
    )
    assert len(list(tmp_path.glob("*.png"))) == 6


@empty_figures
def test_a_run_that_is_ended_by_its_number_of_steps_has_its_figures(tmp_path: Path) -> None:
    fit(tmp_path, SPPCallback(epochs=()), max_epochs=-1, max_steps=5)
    assert {file.name for file in tmp_path.glob("*.png")} == {
        *("spp_epoch=1.png", "spp_gradient_epoch=1.png"),
        *("spp_heatmap_activation.png", "spp_heatmap_gradient.png"),
    }


class Kill(Callback):
    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(path: Path) -> None:
    fit(path, SPPCallback(flush_every_n_steps=2, epochs=()), Kill(), validate=False, max_epochs=3)


def test_a_killed_run_loses_the_steps_that_were_not_flushed(tmp_path: Path) -> None:
    """Flushed at steps 2, 3 (end of the epoch) and 5; the kill comes before or after that of step 5."""
    process = start(killed, tmp_path)
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    for found in (read_history(tmp_path / "spp.parquet"), read_batchnorm(tmp_path / "batchnorm.parquet")):
        assert sorted(set(found["step"])) in ([0, 1, 2], [0, 1, 2, 3, 4])


class Share(Sampler[int]):
    """Each process gets every second batch of 8."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.arange(64).view(4, 2, 8)[:, torch.distributed.get_rank()].flatten().tolist())

    def __len__(self) -> int:
        return 32


def in_two(path: Path) -> None:
    loader = DataLoader(data(64).dataset, 8, sampler=Share())
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    fit(path, SPPCallback(flush_every_n_steps=3, epochs=()), loader=loader, validate=False, max_epochs=1, **options)


@empty_figures
def test_two_processes_record_what_one_does_with_their_batches(tmp_path: Path) -> None:
    """Two processes with batches of 8 are one that accumulates two such batches; only the first one writes."""
    process = start(in_two, tmp_path / "two")
    process.join(100)
    assert process.exitcode == 0
    fit(tmp_path / "one", SPPCallback(), validate=False, max_epochs=1, accumulate_grad_batches=2, loader=data(64))
    for read, name in ((read_history, "spp.parquet"), (read_batchnorm, "batchnorm.parquet")):
        one, two = read(tmp_path / "one" / name), read(tmp_path / "two" / name)
        assert sorted(set(one["step"])) == list(range(4))
        pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-7)
    assert (tmp_path / "two" / "spp_heatmap_gradient.png").exists()


# -- warnings ----------------------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "sppbench.spp.history.health"]


@empty_figures
def test_a_dead_net_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Module()
    nn.init.constant_(module.net[1].bias, -1e6)
    fit(tmp_path, SPPCallback(flush_every_n_steps=1), module=module)
    messages = warnings_of(caplog)
    assert len(messages) == 2
    assert messages[0].startswith("the gradient at net.0 (layer 0, Linear) is dead in step 0")
    assert messages[1].startswith("the activation at net.2 (layer 2, ReLU) is dead in step 0")


@empty_figures
@pytest.mark.parametrize(("factor", "trouble"), [(1e12, "has exploded"), (float("nan"), "is not finite")])
def test_the_step_in_which_it_happened_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factor: float, trouble: str
) -> None:
    fit(tmp_path, SPPCallback(flush_every_n_steps=3), module=Module({4: factor, 5: factor}), max_epochs=3)
    messages = [message for message in warnings_of(caplog) if message.startswith("the activation")]
    assert len(messages) == 1
    assert messages[0].startswith(f"the activation at net.0 (layer 0, Linear) {trouble} in step 4: second moment")


# -- loggers -----------------------------------------------------------------------------------------------------------


class Recorder(Logger):
    name, version = "recorder", "0"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def log_hyperparams(self, *arguments: Any, **_: Any) -> None:
        pass


def test_scalars_and_figures_reach_every_logger(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder, board = Recorder(), TensorBoardLogger(tmp_path, name="board")
    callback = SPPCallback(epochs=[0], log_layers="net.[03]")
    fit(tmp_path, callback, logger=[recorder, board, CSVLogger(tmp_path, name="csv")], log_every_n_steps=1)
    history = read_history(tmp_path / "spp.parquet")
    expected = {}
    for epoch in (0, 1):
        means = epoch_mean(history[history["epoch"] == epoch])
        gains = batchnorm_epoch_mean(read_batchnorm(tmp_path / "batchnorm.parquet", epochs=epoch))
        scalars = {f"batchnorm/{name}": value for name, value in summarize_batchnorm(gains).items()}
        scalars |= {f"spp/{name}": value for name, value in summarize(means).items()}
        expected[3 * epoch + 2] = scalars | {"epoch": epoch}
    assert {step: metrics for step, metrics in recorder.logged if "spp/dead_layers" in metrics} == expected
    assert set(expected[2]) == {*SCALARS, "epoch"}
    events = EventAccumulator(str(board.log_dir)).Reload()
    for name in SCALARS:
        assert [event.step for event in events.Scalars(name)] == [2, 5]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([expected[2][name], expected[5][name]])
    assert [[image.step for image in events.Images(name)] for name in FIGURES] == [[2, 5], [2, 5], [5], [5]]
    # Of the last step of each flush; and not into a table with a column for each.
    for name in ("gradient/net.0", "parameter/net.3"):
        rows = history[(history["signal"] + "/" + history["layer"] == name) & history["step"].isin([2, 5])]
        expected = [(step, pytest.approx(value)) for step, value in zip(rows.step, rows.second_moment, strict=True)]
        assert [(event.step, event.value) for event in events.Scalars(f"spp_{name}")] == expected
    assert not [name for _, metrics in recorder.logged for name in metrics if name.startswith("spp_")]
    written = pd.read_csv(Path(tmp_path, "csv", "version_0", "metrics.csv"))
    assert set(written.columns) >= SCALARS
    for name in ("spp_epoch=0", "spp_epoch=1", "spp_gradient_epoch=1", "spp_heatmap_activation"):
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def records(content: bytes) -> Iterator[bytes]:
    """What a .wandb file holds: 7 bytes of header, then a log as LevelDB writes it, in blocks of 32 KiB."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        if (left := -position % 32768) and left < 7:  # of this block: too short for a record
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def read_wandb(file: Path) -> list[dict[str, Any]]:
    """The rows of the history in a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@empty_figures
def test_an_offline_wandb_run_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, mode="offline")
    try:
        fit(tmp_path, SPPCallback(epochs=[0]), logger=logger)
    finally:
        wandb.finish()
        wandb.teardown()  # only then is all on disk
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [file] = run.glob("run-*.wandb")
    rows = read_wandb(file)
    [first, second] = [row for row in rows if "spp/dead_layers" in row]
    assert first.keys() >= SCALARS
    assert (first["trainer/global_step"], second["trainer/global_step"]) == (2, 5)
    means = epoch_mean(read_history(tmp_path / "spp.parquet", epochs=1))
    for name, value in summarize(means).items():
        assert second[f"spp/{name}"] == pytest.approx(value)
    for key, number in zip(FIGURES, (2, 2, 1, 1), strict=True):
        logged = [row[f"{key}.filenames"] for row in rows if f"{key}.filenames" in row]
        assert len(logged) == number
        for names in logged:
            for name in names:
                assert (run / "files" / name).parent == run / "files" / "media" / "images" / "spp"
                assert (run / "files" / name).read_bytes().startswith(b"\x89PNG")
