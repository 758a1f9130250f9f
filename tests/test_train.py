"""Whole runs, in this process, of a second each."""

from __future__ import annotations

import csv
import errno
import json
import logging
import math
import os
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from sppbench.evidence.runs import read_run
from sppbench.run import assembly, memory
from sppbench.run.assembly import build, make_data_and_net, resolve
from sppbench.run.classifier import Classifier
from sppbench.run.results import read_result
from sppbench.run.run_directory import RunDirectory, RunDirectoryError
from sppbench.spp import read_batchnorm, read_history
from sppbench.train import UsageError, _logging_to, train
from tests.conftest import DROPOUT, EFFICIENTNET, FFNN
from tests.spp.test_callback import read_wandb, records

Make = Callable[..., DictConfig]
STEPS = 3 * 3  # epochs x batches: 40 training images in batches of 16


def weights(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return state


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None], stage: str = "training") -> None:
    """Calls ``act`` once, in the middle of a step (counted from 0) of the given stage."""
    original = getattr(Classifier, f"{stage}_step")
    calls = []

    def wrapped(self: Classifier, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == step + 1:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Classifier, f"{stage}_step", wrapped)


def crash() -> None:
    raise RuntimeError("power cut")


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


def test_a_run_leaves_everything_that_it_should(config: Make, tmp_path: Path) -> None:
    cfg = config("trainer.max_epochs=2")
    accuracy = train(cfg)
    run = tmp_path / "run"
    result = read_result(run / "result.json")
    assert (result.status, result.epochs, result.steps) == ("completed", 2, 6)
    assert (result.model, result.data, result.optimizer, result.lr, result.seed) == (
        ("ffnn", "Synthetic", "Adam", 0.001, 868)
    )
    assert result.test is not None
    assert result.test["accuracy"] == accuracy
    assert len(result.test["per_class"]) == 10
    assert (result.device, result.threads) == ("cpu", torch.get_num_threads())
    assert result.versions["torch"] == torch.__version__.split("+")[0]
    assert result.images_per_second is not None
    assert result.images_per_second > 0
    assert "test accuracy" in (run / "train.log").read_text()
    assert "epoch 2/2" in (run / "train.log").read_text()
    first, second, test = metrics(run)
    assert (first["epoch"], first["step"], second["epoch"], second["step"]) == ("0", "2", "1", "5")
    assert float(second["val/accuracy"]) == pytest.approx(result.val["accuracy"])  # type: ignore[index]
    assert float(test["test/accuracy"]) == pytest.approx(accuracy)
    assert not {path.name for path in run.iterdir()} - {
        *("config.yaml", "metrics.csv", "result.json", "last.ckpt", "train.log", ".lock", ".run_id")
    }


def test_memory_is_prepared_for_a_training_on_the_cpu(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("keep_freed_memory", "map_constants"):
        monkeypatch.setattr(memory, name, partial(done.append, name))
    train(config("trainer.max_epochs=1"))
    assert done == ["keep_freed_memory", "map_constants"]


@pytest.mark.parametrize(
    ("override", "flush"),
    # A saved configuration of before that setting lacks it, and is run as it was.
    [("flush_denormal=true", True), ("flush_denormal=false", False), ("~flush_denormal", False)],
)
def test_tiny_numbers_count_as_zero_during_a_run_if_that_is_asked_for(
    override: str, flush: bool, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    products: list[Tensor] = []
    at_step(monkeypatch, 0, lambda: products.append(torch.tensor(1e-30) * 1e-10))
    train(config(override, "trainer.max_epochs=1"))
    [during] = products
    # As integers: before they are compared as numbers, both would count as 0.
    assert (during.view(torch.int32) == 0) == flush
    assert torch.tensor(1e-30) * 1e-10 > 0


def test_the_last_weights_are_the_ones_that_are_tested(config: Make, tmp_path: Path) -> None:
    from hydra.utils import instantiate

    cfg = config()
    accuracy = train(cfg)
    data, net = instantiate(cfg.data), instantiate(cfg.model).eval()
    data.prepare_data()
    data.setup()
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights(tmp_path / "run").items()})
    predicted = torch.cat([net(images).argmax(1) for images, _ in data.test_dataloader()])
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert 100 * (predicted == labels).double().mean().item() == pytest.approx(accuracy)


def test_losses_are_means_over_images_where_a_batch_is_a_partial_one(config: Make, tmp_path: Path) -> None:
    cfg = config("trainer.max_epochs=1")
    train(cfg)
    data, net = make_data_and_net(cfg)
    data.prepare_data()
    data.setup()
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights(tmp_path / "run").items()})
    for loader, key in ((data.val_dataloader(), "val/loss"), (data.test_dataloader(), "test/loss")):
        batches = list(loader)
        assert len({len(labels) for _, labels in batches}) == 2
        logits, labels = net.eval()(torch.cat([images for images, _ in batches])), torch.cat([y for _, y in batches])
        [logged] = [float(row[key]) for row in metrics(tmp_path / "run") if row.get(key)]
        assert logged == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.usefixtures("no_figures")
def test_a_compiled_run_is_the_same_and_takes_one_graph(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=backend, dynamic=False))
    runs = {"eager": "false", "compiled": "true"}
    for name, compiled in runs.items():
        overrides = [f"output_dir={tmp_path / name}", f"compile={compiled}", "trainer.max_epochs=2"]
        train(config(*overrides, "model.normalization=batch_norm", spp="every_step"))
    assert len(graphs) == 1  # not also for the batch of 8, validation and test
    left, right = (read_history(tmp_path / name / "spp.parquet") for name in runs)
    keys = ["step", "epoch", "depth", "layer", "kind", "signal", "ndim"]
    pd.testing.assert_frame_equal(left[keys], right[keys])
    first = left["step"] == 0  # later ones take over the rounding of those before
    np.testing.assert_allclose(left["acv"][first], right["acv"][first], rtol=1e-3, atol=1e-12)
    gains = [read_batchnorm(tmp_path / name / "batchnorm.parquet") for name in runs]
    first = gains[0]["step"] == 0
    np.testing.assert_allclose(gains[0]["gain"][first], gains[1]["gain"][first], rtol=1e-3)
    assert weights(tmp_path / "eager").keys() == weights(tmp_path / "compiled").keys()


def test_every_run_of_a_long_sweep_is_compiled() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    for _ in range(torch._dynamo.config.recompile_limit + 2):
        classifier = Classifier(nn.Linear(2, 2), torch.optim.SGD, num_classes=2)
        classifier.compile_training(backend=backend)
        classifier(torch.ones(3, 2))
    assert len(graphs) == torch._dynamo.config.recompile_limit + 2


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_is_resumed_with_the_kernels_that_it_asks_for(fused: bool) -> None:
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    written = torch.optim.Adam(net.parameters(), fused=not fused)
    written.step()
    checkpoint = {"random_state": {}, "val_scores": None, "train_metrics": {}}
    checkpoint["optimizer_states"] = [written.state_dict()]
    resumed = Classifier(net, partial(torch.optim.Adam, fused=fused), num_classes=2)
    resumed.on_load_checkpoint(checkpoint)
    optimizer = resumed.configure_optimizers()
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
    optimizer.step()


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("16-mixed", False), ("bf16-mixed", True)])
def test_a_scaled_loss_keeps_optimizers_from_being_fused(
    precision: str, fused: bool, config: Make, tmp_path: Path
) -> None:
    cfg = config(f"trainer.precision={precision}")
    parts = build(cfg, RunDirectory(tmp_path / "run", resolve(cfg)))
    assert parts.classifier.make_optimizer(parts.classifier.parameters()).defaults["fused"] is fused


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config: Make, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("first", "again", "other")]
    for run, seed in zip(runs, (1, 1, 2), strict=True):
        train(config(f"seed={seed}", f"output_dir={run}", "trainer.max_epochs=2", net=EFFICIENTNET))
    assert metrics(runs[0]) == metrics(runs[1])
    assert same_weights(weights(runs[0]), weights(runs[1]))
    assert metrics(runs[0]) != metrics(runs[2])
    assert not same_weights(weights(runs[0]), weights(runs[2]))


def test_a_complete_run_is_not_run_again(config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accuracy = train(config())
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert train(config()) == accuracy
    assert "already completed" in caplog.text
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_and_overwrite_replaces_it(config: Make, tmp_path: Path) -> None:
    train(config("trainer.max_epochs=1"))
    with pytest.raises(RunDirectoryError, match=r"trainer\.max_epochs \(1 there, 2 now\)"):
        train(config("trainer.max_epochs=2"))
    assert read_result(tmp_path / "run" / "result.json").epochs == 1
    train(config("trainer.max_epochs=2", "overwrite=true"))
    assert read_result(tmp_path / "run" / "result.json").epochs == 2
    assert len(metrics(tmp_path / "run")) == 3


# What stops the run, where (steps from 0; an epoch has 3 of training and 2 of validation), how many optimizer steps the
# checkpoint then holds, and how many epochs are whole.
STOPS = {
    "crash in epoch 0": (crash, "training", 1, None, 0),
    "crash in the middle of epoch 1": (crash, "training", 4, 3, 1),
    "crash in the validation of epoch 1": (crash, "validation", 2, 3, 2),
    "crash in the test": (crash, "test", 0, 9, 3),
    "SIGTERM in epoch 0": (send(signal.SIGTERM), "training", 0, 1, 0),
    "SIGTERM in the middle of epoch 1": (send(signal.SIGTERM), "training", 4, 5, 1),
    "SIGUSR1 in the middle of epoch 2": (send(signal.SIGUSR1), "training", 7, 8, 2),
    "SIGINT in the last step of epoch 1": (send(signal.SIGINT), "training", 5, 6, 2),
    "SIGTERM in the validation of epoch 1": (send(signal.SIGTERM), "validation", 2, 6, 2),
    "SIGINT in the last step": (send(signal.SIGINT), "training", 8, 9, 3),
    "SIGINT in the test": (send(signal.SIGINT), "test", 1, 9, 3),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(
    stop: str,
    config: Make,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    act, stage, step, kept, epochs = STOPS[stop]
    train(
        config(f"output_dir={undisturbed}", net=DROPOUT, spp="every_step")
    )  # the first time only: then it is complete
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, step, act, stage)
        with pytest.raises((RuntimeError, SystemExit)) as ended:
            train(config(net=DROPOUT, spp="every_step"))
    left = read_result(run / "result.json")
    assert left.epochs == epochs
    if act is crash:
        assert left.status == "failed"
        assert str(left.error).startswith("power cut (RuntimeError in ")
        assert "power cut" in (run / "traceback.txt").read_text()
        assert (run / "last.ckpt").exists() == (kept is not None)
    else:
        assert left.status == "interrupted"
        assert isinstance(ended.value, SystemExit)
        assert ended.value.code == 128 + getattr(signal, stop.split()[0])
    if kept is not None:
        assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == kept

    caplog.clear()
    train(config(net=DROPOUT, spp="every_step"))
    assert "is gone" not in caplog.text, "metrics.csv has no row before the end of the first epoch"
    result, expected = read_result(run / "result.json"), read_result(undisturbed / "result.json")
    assert same_weights(weights(run), weights(undisturbed))
    assert metrics(run) == metrics(undisturbed)
    assert (result.status, result.steps, result.epochs) == ("completed", STEPS, 3)
    assert result.averaged is not None
    scores = [(one.test, one.val, one.train, one.averaged) for one in (result, expected)]
    assert scores[0] == scores[1]
    assert read_history(run / "spp.parquet").equals(read_history(undisturbed / "spp.parquet"))
    assert not (run / "traceback.txt").exists()


@pytest.mark.parametrize("net", [FFNN, EFFICIENTNET], ids=["ffnn", "efficientnet"])
def test_the_probe_does_not_change_training(
    net: tuple[str, ...], config: Make, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if net is not FFNN:  # whose figures do not change it either
        request.getfixturevalue("no_figures")
    for spp in ("none", "every_step"):
        train(config(f"output_dir={tmp_path}/{spp}", net=net, spp=spp))
    without, probed = tmp_path / "none", tmp_path / "every_step"
    assert same_weights(weights(without), weights(probed))
    for left, right in zip(metrics(without), metrics(probed), strict=True):
        assert left.items() <= right.items()
    assert len(read_history(probed / "spp.parquet")["step"].unique()) == STEPS


def test_signals_are_as_before_after_a_run(config: Make) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    train(config("trainer.max_epochs=1"))
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(
    value: float, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Classifier.training_step

    def poisoned(self: Classifier, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        outputs = original(self, batch, batch_idx)
        if self.global_step == 4:
            outputs["loss"] = outputs["loss"] * value
        return outputs

    monkeypatch.setattr(Classifier, "training_step", poisoned)
    accuracy = train(config())
    result = read_result(tmp_path / "run" / "result.json")
    assert (result.status, result.diverged_at, result.steps, result.epochs) == ("diverged", 5, 5, 1)
    assert result.test is not None
    assert not result.test["logits_finite"]
    assert (result.test["loss"], result.test["classes_predicted"]) == (None, 1)
    assert result.test["accuracy"] == accuracy
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["logit_std"] is None
    # The argmax of logits that are no numbers is class 0.
    assert [score > 0 for score in result.test["per_class"]] == [True] + 9 * [False]
    assert train(config()) == accuracy, "a diverged run is complete"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_restarted(
    damage: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 4, crash)
        with pytest.raises(RuntimeError):
            train(config())
    checkpoint = tmp_path / "run" / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    if damage == "flipped":  # a bit inside of the largest tensor, which torch.load does not notice
        with zipfile.ZipFile(checkpoint) as archive:
            largest = max(archive.infolist(), key=lambda item: item.file_size)
        content[largest.header_offset + 200] ^= 1
    damaged = bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    checkpoint.write_bytes(damaged)
    with pytest.raises(UsageError, match=r"checkpoint .*last\.ckpt is damaged .*overwrite=true"):
        train(config())
    assert checkpoint.read_bytes() == damaged
    train(config("overwrite=true"))
    assert read_result(tmp_path / "run" / "result.json").status == "completed"


def test_nothing_is_resumed_without_a_configuration(config: Make, tmp_path: Path) -> None:
    train(config("trainer.max_epochs=1"))
    run = tmp_path / "run"
    (run / "config.yaml").unlink()
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    for overrides in (["seed=1", "optimizer.lr=0.1"], [], ["overwrite=true"]):
        with pytest.raises(RunDirectoryError, match=r"but not a run, which would have a config\.yaml"):
            train(config("trainer.max_epochs=1", *overrides))
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def interrupt(config: Make, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train(config(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["seed=1"], r"another run's, which has another configuration"), ([], r"another run's, which is run \w{8}, and")],
)
def test_a_checkpoint_of_another_run_is_refused(
    overrides: list[str], message: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(config, monkeypatch)
    interrupt(config, monkeypatch, f"output_dir={tmp_path}/other", *overrides)
    shutil.copy(tmp_path / "other" / "last.ckpt", tmp_path / "run" / "last.ckpt")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError, match=message):
        train(config())
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    train(config("overwrite=true"))


@pytest.mark.parametrize("lost", ["mark", "id"])
def test_a_checkpoint_that_cannot_be_told_apart_is_this_run_s(
    lost: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That of an older version, and where the run's id is gone; the configuration is this one's."""
    interrupt(config, monkeypatch)
    checkpoint = tmp_path / "run" / "last.ckpt"
    if lost == "mark":
        content = torch.load(checkpoint, weights_only=True)
        assert content.pop("sppbench")["run_id"] == (tmp_path / "run" / ".run_id").read_text()
        torch.save(content, checkpoint)
    else:
        (tmp_path / "run" / ".run_id").unlink()
    train(config())
    assert ("does not say which run it belongs to" in caplog.text) == (lost == "mark")
    train(config(f"output_dir={tmp_path}/whole"))
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_in_a_job_of_slurm_only_our_own_checkpoint_counts(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning writes hpc_ckpt_<n>.ckpt there, and loads it wherever it is given none."""
    expected = train(config(f"output_dir={tmp_path}/outside"))
    train(config("seed=3", "trainer.max_epochs=2"))
    planted = tmp_path / "run" / "hpc_ckpt_1.ckpt"
    shutil.copy(tmp_path / "run" / "last.ckpt", planted)
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "a"}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        at_step(patch, 4, send(signal.SIGUSR1))
        with pytest.raises(SystemExit) as ended:
            train(config("overwrite=true"))
    assert ended.value.code == 128 + signal.SIGUSR1
    assert read_result(tmp_path / "run" / "result.json").status == "interrupted"
    assert train(config()) == expected
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "outside"))
    assert [file.name for file in (tmp_path / "run").glob("*.ckpt")].count("hpc_ckpt_1.ckpt") == 1
    assert not list((tmp_path / "run").glob("hpc_ckpt_2*"))
    cfg = config("output_dir=elsewhere")
    parts = build(cfg, RunDirectory("elsewhere", resolve(cfg)))
    environment: Any = parts.trainer._accelerator_connector.cluster_environment
    assert not environment.auto_requeue


class StopAfter(Callback):
    """A user's callback, which ends training in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


STOP_AFTER = "+trainer.callbacks=[{_target_:tests.test_train.StopAfter,step:%d}]"


@pytest.mark.parametrize(
    "overrides",
    [
        ["+trainer.max_time=00:00:00:00"],
        ["+trainer.fast_dev_run=true", "trainer.max_epochs=1"],
        [STOP_AFTER % 4],
        ["trainer.max_epochs=-1", "+trainer.max_steps=7", STOP_AFTER % 4],
    ],
)
def test_a_run_that_is_cut_short_is_final_and_counts_nowhere(
    overrides: list[str], config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accuracy = train(config(*overrides))
    file = tmp_path / "run" / "result.json"
    result = read_result(file)
    assert result.status == "stopped_early"
    assert result.test is not None
    assert result.test["accuracy"] == accuracy
    assert "no table counts this run" in caplog.text
    before = file.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert train(config(*overrides)) == accuracy
    assert "is already stopped_early" in caplog.text
    assert file.stat().st_mtime_ns == before
    read = read_run(tmp_path / "run")
    assert (read.state, read.accuracy) == ("stopped_early", None)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["trainer.max_epochs=-1", "+trainer.max_steps=4"], 4),
        (["+trainer.max_steps=4"], 4),
        (["trainer.max_epochs=2", "trainer.limit_train_batches=2"], 4),
        (["trainer.max_epochs=2", STOP_AFTER % 6], 6),
        (["trainer.max_epochs=1", "trainer.log_every_n_steps=0"], 3),
    ],
)
def test_a_run_that_reaches_its_limit_is_complete(
    overrides: list[str], steps: int, config: Make, tmp_path: Path
) -> None:
    train(config(*overrides))
    result = read_result(tmp_path / "run" / "result.json")
    assert (result.status, result.steps) == ("completed", steps)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_log_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with _logging_to(Path("/dev/full")):
        for step in range(3):
            logging.getLogger("sppbench.train").warning(f"step {step}")
    assert capsys.readouterr().err == "sppbench: cannot write /dev/full: No space left on device\n"


def test_a_full_disk_is_named_and_nothing_of_ours_stays_on_it(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if self.name == ".last.ckpt.tmp":
            write(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RuntimeError, match=f"the disk is full: {tmp_path}/run cannot be written to"):
        train(config())
    result = read_result(tmp_path / "run" / "result.json")
    assert (result.status, result.steps) == ("failed", 3)
    assert f"the disk is full: {tmp_path}/run" in str(result.error)
    assert "No space left on device" in (tmp_path / "run" / "traceback.txt").read_text()
    assert not list(tmp_path.rglob("*ckpt*"))
    assert not list((tmp_path / "temporary").iterdir())


BAD = {
    "seed=true": "seed must be an integer from 0",
    "name=..": "name must be a folder name, got",
    "name=a/../b": "name must be a folder name, got",
    f"name={'x' * 300}": "name must have at most 255 bytes",
    "optimizer.lr=inf": r"optimizer\.lr must be a finite number of at least 0, got inf",
    "optimizer.lr=null": r"optimizer\.lr must be a finite number of at least 0, got None",
    "trainer.max_epochs=1.5": "trainer.max_epochs must be an integer, or -1 for no limit, got 1.5",
    "+trainer.max_steps=abc": "trainer.max_steps must be an integer, or -1 for no limit, got 'abc'",
    "trainer.accumulate_grad_batches=0": "accumulate_grad_batches must be an integer of at least 1, got 0",
    "trainer.accumulate_grad_batches=1.5": "accumulate_grad_batches must be an integer of at least 1, got 1.5",
    "trainer.limit_train_batches=0": "leaves nothing to train on",
    "trainer.limit_train_batches=0.001": r"limit_train_batches=0\.001 leaves none of 3 batches",
    "trainer.limit_val_batches=0.001": r"limit_val_batches=0\.001 leaves none of 2 batches",
    "trainer.limit_test_batches=0.001": r"limit_test_batches=0\.001 leaves none of 2 batches",
    "model.normalization=batch_norm data.batch_size=13": r"data\.batch_size=13 leaves a single image of 40",
    "spp=every_step spp.every_n_steps=0": "every_n_steps",
    "spp=every_step spp.every_n_steps=abc": "every_n_steps|'<'",
    "spp=every_step spp.layers=nothing": "nothing",
    "spp=every_step spp.signals=[weights]": "weights",
    "spp=every_step spp.module=nothing": "nothing",
    "+trainer.logger=true": r"trainer\.logger cannot be set, .* choose loggers with logger=",
    "+trainer.default_root_dir=x": r"trainer\.default_root_dir cannot be set",
    "+trainer.num_sanity_val_steps=2": r"trainer\.num_sanity_val_steps cannot be set",
    "+trainer.enable_progress_bar=true": r"trainer\.enable_progress_bar cannot be set",
    "+trainer.enable_model_summary=true": r"trainer\.enable_model_summary cannot be set",
    "+trainer.enable_checkpointing=false": r"trainer\.enable_checkpointing cannot be set",
    "+trainer.callbacks=[1]": r"trainer\.callbacks must be a list of Lightning callbacks",
    "+trainer.callbacks=[{_target_:nowhere.Callback}]": "No module named 'nowhere'",
    "optimizer.lr=-1": "at least 0, got -1",
    "data.batch_size=0": r"data\.batch_size must be at least 1, got 0",
    "seed=-1": "seed must be an integer from 0",
    "seed=99999999999": "seed must be an integer from 0",
    "seed=abc": "seed must be an integer from 0",
    "overwrite=maybe": "overwrite must be true or false, got 'maybe'",
    "flush_denormal=maybe": "flush_denormal must be true or false, got 'maybe'",
    "compile=nonsense": "compile must be true, false, one of",
    "compile={nonsense:1}": "compile: torch.compile has no option nonsense",
    "trainer.limit_test_batches=0": "leaves nothing to test",
    "data.batch_size=1.5": r"data\.batch_size must be an integer, got 1\.5",
    "data.batch_size=many": r"data\.batch_size must be an integer, got 'many'",
    "model.image_size=16": "model and data do not fit",
    "model.num_classes=9": r"logits \(2, 9\) for 10 classes",
    "model.depth=-1": "depth must be an integer of at least 0; got -1",
    "model.activation=relu": "activation must be one of",
    "model.normalization=layer": "normalization must be one of",
    "+model.unknown=1": "unknown",
    "data.val_size=-1": r"data\.val_size must be at least 0, got -1",
    "+trainer.unknown=1": "unknown",
    "trainer.precision=7": "7",
    "trainer.max_epochs=-2": "max_epochs",
    "seed=???": "seed",
    "logger=wandb logger.wandb.mode=sometimes": "must be online, offline or disabled",
    "logger=wandb logger.wandb.mode=online": "W&B cannot go online",
}


@pytest.mark.parametrize("overrides", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(overrides: str, config: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=BAD[overrides]) as refusal:
        train(config(*overrides.split()))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_refused(config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="cannot write"):
        train(config(f"output_dir={tmp_path}/file/run"))


def test_wandb_gets_the_run_offline(config: Make, tmp_path: Path) -> None:
    import wandb

    train(config("logger=[csv,wandb]", "trainer.max_epochs=1"))
    assert wandb.run is None, "the next job of a multirun must not write into this one"
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert (tmp_path / "run" / ".run_id").read_text() in files[0].name


def test_a_resumed_offline_run_is_two_wandb_runs_of_one_group(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``wandb sync`` sends each folder from its first line on: with one id the second would replace the first."""
    cfg = config("logger=[csv,wandb]")
    at_step(monkeypatch, 4, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cfg)
    train(cfg)
    found = [_wandb_run(folder) for folder in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    (first, early), (second, late) = sorted(found, key=lambda part: part[0].start_time.ToNanoseconds())
    assert first.run_id == (tmp_path / "run" / ".run_id").read_text()
    assert second.run_id.startswith(f"{first.run_id}-")
    assert (second.display_name, second.run_group) == (first.display_name, first.run_group)
    assert first.run_group == "ffnn/lr=0.001"
    assert list(second.tags) == list(first.tags) == ["runs"]
    shown = [
        {item.key: item.value_json for item in run.config.update if item.key != "_wandb"} for run in (first, second)
    ]
    assert shown[0] == shown[1]
    assert "model" in shown[0]
    steps = [[row["trainer/global_step"] for row in rows if "val/loss" in row] for rows in (early, late)]
    assert steps == [[2], [5, 8]], "each epoch once, in one of the two"
    assert [row for row in late if "test/accuracy" in row]


def test_a_resumed_online_run_goes_on_in_the_same_wandb_run(config: Make, tmp_path: Path) -> None:
    cfg = config("logger=wandb", "logger.wandb.mode=online")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run_id").write_text("abcd1234")

    def wandb_id() -> str:
        logger = assembly._make_logger("wandb", cfg.logger.wandb, RunDirectory(folder, resolve(cfg)))
        assert logger._wandb_init["resume"] == "allow"
        return str(logger._wandb_init["id"])

    assert wandb_id() == "abcd1234"
    for name in ("last.ckpt", "config.yaml"):
        (folder / name).touch()
    assert wandb_id() == "abcd1234"
    (folder / "wandb" / "offline-run-20260101_000000-abcd1234").mkdir(parents=True)
    assert wandb_id().startswith("abcd1234-"), "the server may not know yet what an offline part has logged"


def _wandb_run(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The run's record and the rows in an offline folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 30
    while True:  # W&B's own process writes the file, sometimes after wandb.finish() has returned
        found = [Record.FromString(content) for content in records(file.read_bytes())]
        if any(record.HasField("exit") for record in found):
            return next(record.run for record in found if record.HasField("run")), read_wandb(file)
        assert time.monotonic() < deadline, "W&B has not written the end of its run"
        time.sleep(0.05)


def test_tensorboard_gets_the_run(config: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config("logger=[csv,tensorboard]", "trainer.max_epochs=2"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("val/loss")]
    assert logged == pytest.approx([float(row["val/loss"]) for row in metrics(tmp_path / "run")[:2]])


def test_no_logger_at_all(config: Make, tmp_path: Path) -> None:
    train(config("logger=none", "trainer.max_epochs=1"))
    assert read_result(tmp_path / "run" / "result.json").status == "completed"
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_no_validation(config: Make, tmp_path: Path) -> None:
    train(config("data.val_size=0", "trainer.max_epochs=2"))
    result = read_result(tmp_path / "run" / "result.json")
    assert result.val is None
    assert [row["train/loss"] != "" for row in metrics(tmp_path / "run")] == [True, True, False]


def test_the_saved_configuration_is_the_one_that_ran(config: Make, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    accuracy = train(config())
    saved = tmp_path / "saved"
    saved.mkdir()
    shutil.copy(tmp_path / "run" / "config.yaml", saved)
    with initialize_config_dir(str(saved), version_base="1.3"):
        cfg = compose("config", [f"output_dir={tmp_path}/again"])
    assert train(cfg) == accuracy
    assert metrics(tmp_path / "run") == metrics(tmp_path / "again")
    assert same_weights(weights(tmp_path / "run"), weights(tmp_path / "again"))
