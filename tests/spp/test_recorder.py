"""The recorder in plain loops: what it leaves, how it is resumed, and that nothing it cannot do ends the loop."""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sppbench.spp import run_figures
from sppbench.spp.history import parts
from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.health import summarize
from sppbench.spp.history.reader import check_end, read_batchnorm, read_history
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recorder import Recorder
from sppbench.spp.recording import _KEPT
from tests.processes import in_processes

STEPS = 3  # of an epoch


@pytest.fixture(autouse=True)
def _empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))


class Loop:
    """A training as people write it. Its batches follow from the number of the step."""

    def __init__(self, scaler: torch.amp.GradScaler | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.scaler = scaler
        self.steps = 0

    def batch(self, part: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(10 * self.steps + part)
        return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)

    def backward(self, part: int = 0, parts: int = 1) -> None:
        x, y = self.batch(part)
        loss = nn.functional.cross_entropy(self.model(x), y) / parts
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def step(self, parts: int = 1) -> None:
        self.optimizer.zero_grad()
        for part in range(parts):
            self.backward(part, parts)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.steps += 1

    def train(self, recorder: Recorder | None, steps: int = STEPS, parts: int = 1) -> None:
        for _ in range(steps):
            self.step(parts)
            if recorder is not None:
                recorder.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def recorded(steps: int, parts: int = 1) -> pd.DataFrame:
    """What a probe reads in the same loop."""
    loop, frames = Loop(), []
    with SignalProbe(loop.model) as probe:
        for _ in range(steps):
            loop.step(parts)
            frames.append(probe.collect())
    return pd.concat(frames, ignore_index=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    keys = ["step", "layer", "signal"]
    assert found[keys].to_numpy().tolist() == expected[keys].to_numpy().tolist()
    for name in ("acsm", "acv", "second_moment", "mean"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-12)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loop_leaves_history_gains_and_figures(tmp_path: Path, accumulated: int) -> None:
    loop = Loop()
    with Recorder(loop.model, tmp_path / "run", epochs=[0], flush_every_n_steps=2) as recorder:
        for epoch in range(2):
            assert recorder.epoch == epoch
            loop.train(recorder, parts=accumulated)
            scalars = recorder.end_epoch()
    history = read_history(tmp_path / "run" / "spp.parquet")
    assert_same(history, recorded(2 * STEPS, accumulated))
    assert set(history["samples"]) == {8 * accumulated}
    assert (history["epoch"] == history["step"] // STEPS).all()
    expected = {f"spp/{name}": value for name, value in summarize(epoch_mean(history[history["epoch"] == 1])).items()}
    assert {name: scalars[name] for name in expected} == expected
    assert scalars["batchnorm/gain"] > 0
    assert read_batchnorm(tmp_path / "run" / "batchnorm.parquet")["step"].tolist() == list(range(2 * STEPS))
    check_end(tmp_path / "run" / "spp.parquet", 2 * STEPS)
    assert {file.name for file in (tmp_path / "run").glob("*.png")} == {
        *("spp_epoch=0.png", "spp_gradient_epoch=0.png", "spp_epoch=1.png", "spp_gradient_epoch=1.png"),
        *("spp_heatmap_activation.png", "spp_heatmap_gradient.png"),
    }
    for module in loop.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_loop_is_not_changed(tmp_path: Path) -> None:
    plain, watched = Loop(), Loop()
    plain.train(None)
    with Recorder(watched.model, tmp_path) as recorder:
        watched.train(recorder)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, watched.model.state_dict()[name])


def test_a_loop_without_epochs_has_its_last_figures(tmp_path: Path) -> None:
    loop = Loop()
    recorder = Recorder(loop.model, str(tmp_path), epochs=(), every_n_steps=2, layers="3", signals=["gradient"])
    loop.train(recorder, steps=5)
    recorder.close()
    recorder.close()
    history = read_history(tmp_path / "spp.parquet")
    assert history[["step", "layer", "signal"]].to_numpy().tolist() == [[step, "3", "gradient"] for step in (0, 2, 4)]
    assert {file.name for file in tmp_path.glob("*.png")} == {
        *("spp_epoch=0.png", "spp_gradient_epoch=0.png", "spp_heatmap_gradient.png"),
    }


@pytest.mark.parametrize("at", [2, STEPS, 4])
def test_a_resumed_loop_equals_an_undisturbed_one(tmp_path: Path, at: int) -> None:
    """In the middle of an epoch and at its end; the first part went further than its checkpoint."""

    def train(path: Path, until: int, resume: Path | None = None) -> Path:
        loop = Loop()
        with Recorder(loop.model, path, epochs=(0, 1)) as recorder:
            if resume is not None:
                checkpoint = torch.load(resume, weights_only=True)
                loop.load(checkpoint["loop"])
                recorder.load_state_dict(checkpoint["recorder"])
            while loop.steps < until:
                loop.train(recorder, steps=1)
                if loop.steps % STEPS == 0:
                    recorder.end_epoch()
                if loop.steps == at:
                    torch.save({"loop": loop.state(), "recorder": recorder.state_dict()}, path / "checkpoint")
        return path / "checkpoint"

    train(tmp_path / "whole", 2 * STEPS)
    checkpoint = train(tmp_path / "parts", at + 1)
    train(tmp_path / "parts", 2 * STEPS, checkpoint)
    for read, name in ((read_history, "spp.parquet"), (read_batchnorm, "batchnorm.parquet")):
        whole, parts = read(tmp_path / "whole" / name), read(tmp_path / "parts" / name)
        pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    assert not (tmp_path / "parts" / "spp-2.parquet").exists()
    # In another directory it goes on with a copy.
    train(tmp_path / "moved", 2 * STEPS, checkpoint)
    pd.testing.assert_frame_equal(
        read_history(tmp_path / "moved" / "spp.parquet"), read_history(tmp_path / "whole" / "spp.parquet")
    )


def test_a_state_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    loop = Loop()
    with Recorder(loop.model, tmp_path) as recorder:
        loop.train(recorder, steps=1)
        with pytest.raises(RuntimeError, match="before the first step"):
            recorder.load_state_dict(recorder.state_dict())


def test_the_history_of_another_run_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        loop = Loop()
        with Recorder(loop.model, tmp_path) as recorder:
            loop.train(recorder)
    assert_same(read_history(tmp_path / "spp.parquet"), recorded(STEPS))
    assert_same(read_history(tmp_path / "spp-2.parquet"), recorded(STEPS))
    [warning] = warnings_of(caplog)
    assert "belongs to another run and stays" in warning


def test_after_an_exception_the_steps_are_there(tmp_path: Path) -> None:
    loop = Loop()
    with suppress(KeyboardInterrupt), Recorder(loop.model, tmp_path) as recorder:
        loop.train(recorder)
        raise KeyboardInterrupt
    assert_same(read_history(tmp_path / "spp.parquet"), recorded(STEPS))
    assert not list(tmp_path.glob("*.png"))
    assert not loop.model[0]._forward_hooks


def test_a_scaled_loss(tmp_path: Path) -> None:
    """The scale doubles after each step; in step 1 the scaler skips the optimizer's step, and halves it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    plain, loop = Loop(), Loop(scaler)
    expected = []
    with Recorder(loop.model, tmp_path, scaler=scaler) as recorder, SignalProbe(plain.model) as probe:
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})  # as a resumed loop does it
        for step in range(4):
            plain.model.load_state_dict(loop.model.state_dict())
            for one in (plain, loop):
                one.optimizer.zero_grad()
                one.backward()
            expected.append(probe.collect())
            if step == 1:
                loop.model[0].bias.grad[0] = torch.inf
            scaler.step(loop.optimizer)
            scaler.update()
            plain.steps = loop.steps = step + 1
            recorder.step()
    assert scaler.get_scale() == 2.0**12
    history = read_history(tmp_path / "spp.parquet", signals="gradient")
    frame = pd.concat(expected)
    wanted = frame[frame["signal"] == "gradient"]
    np.testing.assert_allclose(history["second_moment"], wanted["second_moment"], rtol=1e-5)


# -- what cannot be written --------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said_once_at_the_end_of_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    loop.model.insert(2, nn.Tanh())
    with torch.no_grad():
        loop.model[1].weight[:] = 30.0  # the tanh behind it is at its bounds
    with Recorder(loop.model, tmp_path) as recorder:
        for _ in range(2):
            loop.train(recorder, 2)
            assert recorder.end_epoch()
        [warning] = warnings_of(caplog)
        assert warning.startswith("saturated: the mean slope of Tanh at 2 is ")
        assert warning.endswith("(Glorot & Bengio 2010, section 3)")
        # A diagnosis that fails ends nothing.
        monkeypatch.setattr("sppbench.spp.recording.diagnose", lambda *arguments, **options: full_disk())
        loop.train(recorder, 2)
        assert recorder.end_epoch()
        assert warnings_of(caplog)[1:] == ["epoch 2 was not diagnosed (OSError: [Errno 28] No space left on device)"]


def test_a_directory_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    loop = Loop()
    with Recorder(loop.model, tmp_path / "file" / "run") as recorder:
        loop.train(recorder)
        assert recorder.end_epoch() == {}
        assert recorder.state_dict()["step"] == STEPS
        loop.train(recorder)
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"signals are not recorded: {tmp_path / 'file' / 'run'} cannot be written (NotADirectory")
    assert loop.steps == 2 * STEPS


def test_steps_that_a_full_disk_does_not_take_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    with Recorder(loop.model, tmp_path, flush_every_n_steps=1) as recorder:
        loop.train(recorder, steps=1)
        with monkeypatch.context() as patch:
            patch.setattr(parts, "write_part", full_disk)
            loop.train(recorder, steps=2)
        loop.train(recorder, steps=1)
    assert_same(read_history(tmp_path / "spp.parquet"), recorded(4))
    assert read_batchnorm(tmp_path / "batchnorm.parquet")["step"].tolist() == list(range(4))
    [warning] = warnings_of(caplog)
    assert "the steps up to 1 could not be written" in warning
    assert "No space left on device" in warning


def full_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_stays_full_ends_the_history_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(2, 2)
    with Recorder(model, tmp_path, signals=["activation"], flush_every_n_steps=100) as recorder:
        for step in range(_KEPT + 200):
            if step == 100:
                monkeypatch.setattr(parts, "write_part", full_disk)
            model(torch.ones(1, 2))
            recorder.step()
        assert len(recorder._recording._pending) == 0
    first, last = warnings_of(caplog)
    assert "up to 1000 recorded steps are kept" in first
    assert last.startswith(f"{tmp_path / 'spp.parquet'} ends here, because its steps could not be written")
    assert read_history(tmp_path / "spp.parquet")["step"].max() == 99


def test_a_directory_that_vanishes_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    with Recorder(loop.model, tmp_path / "run") as recorder:
        loop.train(recorder)
        recorder.end_epoch()
        shutil.rmtree(tmp_path / "run")
        loop.train(recorder)
    assert "could not be written" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer of at least 1; got 0"),
        ({"layers": "nothing"}, "no module matches 'nothing'"),
        ({"signals": "grad"}, "signals must be one of"),
        ({"directory": 5}, "directory must be of type str or Path; got 5"),
        ({"loggers": [5]}, "loggers must be W&B runs or TensorBoard writers"),
    ],
)
def test_what_is_refused_at_once(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        Recorder(model, **({"directory": tmp_path} | arguments))
    assert not model._forward_hooks


# -- processes ---------------------------------------------------------------------------------------------------------


def _process(rank: int, number: int, path: Path) -> bool:
    run_figures.RunFigures.draw_epoch = run_figures.RunFigures.draw_heatmaps = lambda *_: None  # type: ignore[assignment]
    loop = Loop()
    model = nn.parallel.DistributedDataParallel(loop.model)
    with Recorder(model, path, batchnorm=False) as recorder:
        for _ in range(STEPS):
            x, y = loop.batch(rank)
            loop.optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            loop.optimizer.step()
            loop.steps += 1
            recorder.step()
        return bool(recorder.end_epoch())


def test_two_processes_write_one_history(tmp_path: Path) -> None:
    """With batches of 8 they are one that accumulates two such batches."""
    assert in_processes(partial(_process, path=tmp_path / "run"), 2, tmp_path) == [True, False]
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"spp.parquet"}
    found, expected = read_history(tmp_path / "run" / "spp.parquet"), recorded(STEPS, parts=2)
    np.testing.assert_allclose(found["second_moment"], expected["second_moment"], rtol=1e-4)


# -- loggers -----------------------------------------------------------------------------------------------------------


def test_a_tensorboard_writer_is_given_scalars_and_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    loop, scalars = Loop(), []
    with SummaryWriter(str(tmp_path / "board")) as writer, Recorder(loop.model, tmp_path, loggers=[writer]) as recorder:
        for _ in range(2):
            loop.train(recorder)
            scalars.append(recorder.end_epoch())
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for name, value in scalars[1].items():
        assert [(event.step, event.value) for event in events.Scalars(name)][1] == (5, pytest.approx(value))
    for name, steps in (("panels", [2, 5]), ("gradients", [2, 5]), ("heatmap_activation", [5])):
        assert [image.step for image in events.Images(f"spp/{name}")] == steps


def test_layers_are_logged_whenever_steps_are_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    loop, run = Loop(), WandbLike()
    with SummaryWriter(str(tmp_path / "board")) as writer:
        options: dict[str, Any] = {
            "loggers": [writer, run],
            "flush_every_n_steps": 2,
            "log_layers": ["[03]", "nothing"],
        }
        with Recorder(loop.model, tmp_path, **options) as recorder:
            loop.train(recorder, steps=5)
    history = read_history(tmp_path / "spp.parquet", layers=["0", "3"], steps=(1, 3, 4))
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for (signal, layer), rows in history.groupby(["signal", "layer"]):
        name = f"spp_{signal}/{layer}"
        expected = [(step, pytest.approx(value)) for step, value in zip(rows.step, rows.second_moment, strict=True)]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
        assert [(row["spp/step"], row[name]) for row in run.rows if name in row] == expected
    layers = {name for name in events.Tags()["scalars"] if name.startswith("spp_")}
    assert layers == {f"spp_{signal}/{layer}" for signal in ("activation", "gradient", "parameter") for layer in "03"}


def test_layers_that_are_not_there_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    with Recorder(loop.model, tmp_path, flush_every_n_steps=1, log_layers="blocks.*") as recorder:
        loop.train(recorder)
    assert warnings_of(caplog) == ["no layer that is recorded matches log_layers, 'blocks.*'"]


class WandbLike:
    """Rows as W&B counts them: a call without ``commit=False`` ends one."""

    def __init__(self) -> None:
        self.step, self.rows = 0, [{}]

    def define_metric(self, *arguments: Any) -> None:
        pass

    def log(self, values: dict[str, Any], commit: bool = True) -> None:
        self.rows[-1].update(values)
        if commit:
            self.step += 1
            self.rows.append({})


@pytest.mark.parametrize("own", [False, True])
def test_a_wandb_run_keeps_its_own_count(tmp_path: Path, own: bool) -> None:
    """Each epoch has its row, whether or not the user logs, too."""
    loop, run, scalars = Loop(), WandbLike(), []
    with Recorder(loop.model, tmp_path, loggers=[run], epochs=()) as recorder:
        for _ in range(2):
            for _ in range(STEPS):
                loop.train(recorder, steps=1)
                if own:
                    run.log({"loss": loop.steps})
            scalars.append(recorder.end_epoch())
    rows = [row for row in run.rows if "spp/dead_layers" in row]
    assert [row["spp/step"] for row in rows] == [2, 5]
    assert [row["epoch"] for row in rows] == [0, 1]
    for row, expected in zip(rows, scalars, strict=True):
        assert expected.items() <= row.items()
    if own:
        assert [row["loss"] for row in run.rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
        assert run.step == 2 * STEPS


def test_matplotlib_that_cannot_be_imported_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A settings file in an old encoding raises in the import."""

    def fails(name: str) -> None:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid continuation byte")

    monkeypatch.setattr(run_figures, "find_plot", fails)
    loop = Loop()
    with Recorder(loop.model, tmp_path) as recorder:
        loop.train(recorder)
    assert read_history(tmp_path / "spp.parquet")["step"].nunique() == STEPS
    assert "was not drawn (UnicodeDecodeError: " in caplog.text


def test_it_is_imported_without_matplotlib() -> None:
    code = "import sys, sppbench.spp.recorder; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
