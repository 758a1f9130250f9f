"""Many runs: which are run, in what order, what is said about them, and what becomes of them when something breaks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.plugins import Plugins

import sppbench.run.results
from sppbench.evidence.selection import read_evidence
from sppbench.files import config_directory
from sppbench.run.callbacks import Checkpointing
from sppbench.run.classifier import Classifier
from sppbench.run.results import Result, read_result
from sppbench.run.run_directory import RunDirectory, RunDirectoryBusy
from sppbench.run.sweep import (
    Look,
    SweepCell,
    SweepError,
    as_time,
    distinct,
    dry_run,
    look_at,
    progress_line,
    seconds_left,
    unfinished_kinds,
)
from sppbench.study.table.cells import read_table
from sppbench.train import main
from tests.conftest import FFNN, SMALL
from tests.run.forked_sweeps import in_fork, kill_five_times, two_at_once
from tests.test_train import at_step, crash, metrics, same_weights, send, weights

Command = Callable[..., int]
Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
CELLS = Path("outputs/runs/ffnn/lr=0.001")


def seeds(*wanted: int) -> list[Path]:
    return [CELLS / f"seed={seed}" for seed in wanted]


def statuses(cells: list[Path]) -> list[str]:
    return [read_result(cell / "result.json").status for cell in cells]


def fail_in(monkeypatch: pytest.MonkeyPatch, seed: int, act: Callable[[], None]) -> None:
    original = Classifier.training_step

    def training_step(self: Classifier, *arguments: Any) -> Any:
        if self.trainer.default_root_dir.endswith(f"seed={seed}"):
            act()
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", training_step)


def test_a_sweep_runs_every_cell_once(command: Command, capfd: Output) -> None:
    assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 0
    shown = capfd.readouterr()
    assert "runs: 2 cells: 2 completed" in shown.out
    assert shown.err.splitlines()[-1].startswith("runs: 2/2 cells done")
    before = [(cell / "result.json").stat().st_mtime_ns for cell in seeds(1, 2)]
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 0
    assert [(cell / "result.json").stat().st_mtime_ns for cell in seeds(1, 2)] == before
    assert statuses(seeds(3)) == ["completed"]
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1", "overwrite=true") == 0
    assert [(cell / "result.json").stat().st_mtime_ns for cell in seeds(1, 2)] != before


def test_a_cell_can_be_repeated_from_its_directory(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("-m", "seed=1,2") == 0
    for cell in seeds(1, 2):
        again = f"output_dir=again/{cell.name.partition('=')[2]}"
        arguments = ["--config-path", str(tmp_path / cell), "--config-name", "config", again]
        monkeypatch.setattr(sys, "argv", ["sppbench.train", *arguments])
        main()
        repeated = Path(again.partition("=")[2])
        assert metrics(cell) == metrics(repeated)
        assert same_weights(weights(cell), weights(repeated))
        left, right = read_result(cell / "result.json"), read_result(repeated / "result.json")
        assert (left.test, left.config_hash) == (right.test, right.config_hash)


def test_a_failing_cell_does_not_stop_the_others_and_is_tried_again(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        fail_in(broken, 2, crash)
        assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 1
    assert statuses(seeds(1, 2, 3)) == ["completed", "failed", "completed"]
    shown = capfd.readouterr()
    assert "ffnn lr=0.001 seed=2 failed: power cut (RuntimeError in " in shown.out
    assert f"; see {CELLS}/seed=2/traceback.txt" in shown.out
    assert "3 cells: 2 completed, 1 failed" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 0
    assert statuses(seeds(2)) == ["completed"]


def test_bad_values_of_one_cell_are_told_and_the_others_run(command: Command, capfd: Output) -> None:
    assert command("-m", "optimizer.lr=-1,0.001", "trainer.max_epochs=1") == 1
    assert (
        "ffnn lr=-1 seed=868 failed: optimizer.lr must be a finite number of at least 0, got -1"
        in capfd.readouterr().out
    )
    assert statuses(seeds(868)) == ["completed"]


def test_a_stopped_sweep_goes_on(command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        at_step(stopped, 10, send(signal.SIGINT))  # the second step of the second cell
        assert command("-m", "seed=1,2,3") == 130
    assert "interrupted; the same command continues from here" in capfd.readouterr().err
    assert statuses(seeds(1, 2)) == ["completed", "interrupted"]
    assert not seeds(3)[0].exists()
    assert command("-m", "seed=1,2,3") == 0
    assert statuses(seeds(1, 2, 3)) == ["completed"] * 3
    assert "resuming" in (CELLS / "seed=2" / "train.log").read_text()


def test_a_dry_run_tells_every_state_and_runs_nothing(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("seed=1", "trainer.max_epochs=1") == 0
    assert command("seed=2", "trainer.max_epochs=1", "optimizer.lr=0.5") == 0
    with monkeypatch.context() as broken:
        at_step(broken, 1, crash)
        assert command("seed=3", "trainer.max_epochs=1") == 1
    with monkeypatch.context() as stopped:
        at_step(stopped, 1, send(signal.SIGTERM))
        assert command("seed=4", "trainer.max_epochs=1") == 143
    assert command("seed=5", "trainer.max_epochs=2") == 0
    assert command("seed=6", "trainer.max_epochs=1") == 0
    diverged = json.loads((CELLS / "seed=6" / "result.json").read_text()) | {"status": "diverged"}
    (CELLS / "seed=6" / "result.json").write_text(json.dumps(diverged))
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")}
    capfd.readouterr()
    assert command("-m", "seed=1,3,4,5,6,7", "trainer.max_epochs=1", "sweeps.dry_run=true") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == (
        ["completed", "failed", "interrupted", "refused", "diverged", "missing"]
    )
    assert "power cut" in lines[1]
    assert "trainer.max_epochs (2 there, 1 now)" in lines[3]
    assert lines[6].endswith("3 to run")
    seconds, elapsed = (read_result(CELLS / f"seed={seed}" / "result.json").wall_seconds for seed in (1, 4))
    left = 2 * seconds + max(seconds - elapsed, 0.0)  # the interrupted one goes on from where it was
    assert lines[7].startswith(f"estimated time: {as_time(left)}, ")
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*")} == before


def test_sweeps_without_m_are_refused(command: Command, capfd: Output) -> None:
    assert command("sweeps=smoke") == 2
    assert command("sweeps.dry_run=true") == 2
    assert capfd.readouterr().err.count("python -m sppbench.train -m sweeps=") == 2
    assert not Path("outputs").exists()


@pytest.mark.parametrize("devices", ["2", "auto", "-1", "[0,1]"])
def test_several_devices_are_refused(devices: str, command: Command, capfd: Output) -> None:
    assert command("-m", "seed=1,2", f"trainer.devices={devices}") == 2
    assert "a multirun cannot use trainer.devices=" in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_cells_that_share_a_directory_are_refused(command: Command, capfd: Output) -> None:
    assert command("-m", "trainer.max_epochs=1,2", "output_dir=outputs/one") == 2
    assert "cells that differ in trainer.max_epochs share outputs/one: output_dir must" in capfd.readouterr().err
    assert command("-m", "seed=1,1", "trainer.max_epochs=1") == 0, "asked for twice is done once"


def sweeper() -> Any:
    """The class that Hydra uses: while it looks for plugins it makes those that were imported before anew."""
    return Plugins.instance().class_name_to_class["hydra_plugins.sppbench_sweeper.SppbenchSweeper"]


WHOLE: dict[tuple[str, ...], list[SweepCell]] = {}  # sweeps of the repository: a second each


def cells_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[SweepCell]:
    """The cells of a command line, which is not run."""
    if arguments in WHOLE:
        return WHOLE[arguments]
    found: list[SweepCell] = []
    monkeypatch.setattr(sweeper(), "_run", lambda self, cells: found.extend(cells))
    monkeypatch.setattr(sys, "argv", ["sppbench.train", "-m", *arguments])
    main()
    if all(argument.startswith("sweeps=") for argument in arguments):
        WHOLE[arguments] = found
    return found


def test_table1_is_the_study_s(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(monkeypatch, "sweeps=table1")
    keys = [(cell.config["optimizer"]["lr"], cell.config["seed"], cell.model) for cell in cells]
    models = ["efficientnet_nobn", "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp"]
    assert keys == [
        (lr, seed, model) for lr in (0.001, 0.01, 0.1) for seed in (868, 67, 472, 362, 970) for model in models
    ]
    for cell, (lr, seed, model) in zip(cells, keys, strict=True):
        assert cell.run.path == Path(f"outputs/table1/{model}/lr={lr}/seed={seed}")
        assert (cell.config["data"]["_target_"], cell.config["data"]["batch_size"]) == ("sppbench.data.CIFAR100", 512)
        assert (cell.config["trainer"]["max_epochs"], cell.config["data"]["seed"]) == (20, seed)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "sweeps").glob("*.yaml")))
def test_cells_are_what_hydra_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain values are set without composing anew; nothing else may come of it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from sppbench.run.assembly import resolve

    cells = cells_of(monkeypatch, f"sweeps={name}")
    assert len({cell.run.path for cell in cells}) == len(cells) >= 9
    for cell in (cells[0], cells[len(cells) // 2], cells[-1]):
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            config = compose("train", list(cell.overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        del config._content["hydra"]  # type: ignore[union-attr]
        assert resolve(config) == cell.config


def test_the_command_line_replaces_values_in_every_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(monkeypatch, "sweeps=figures", "seed=1", "model=ffnn,efficientnet_bn", "trainer.max_epochs=3")
    assert [(cell.model, cell.config["seed"]) for cell in cells] == [("ffnn", 1), ("efficientnet_bn", 1)]
    assert {cell.config["trainer"]["max_epochs"] for cell in cells} == {3}


def test_what_is_added_on_the_command_line_replaces_values_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(monkeypatch, "sweeps=smoke", "++seed=5", "++optimizer.lr=0.5", "model=efficientnet_bn")
    assert [(cell.config["seed"], cell.config["optimizer"]["lr"]) for cell in cells] == [(5, 0.5)]
    assert cells[0].run.path == Path("outputs/smoke/efficientnet_bn/lr=0.5/seed=5")


def test_names_can_be_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # as in a process of its own
    cells = cells_of(monkeypatch, "model=ffnn", "name=a,b")
    assert [cell.run.path.parts[:3] for cell in cells] == [("outputs", "runs", "a"), ("outputs", "runs", "b")]


def places_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    return [cell.run.path.as_posix().removeprefix("outputs/runs/") for cell in cells_of(monkeypatch, *arguments)]


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        # As ever, where net, learning rate and seed are all that there is to tell.
        (("model=ffnn", "optimizer.lr=0.1,0.01"), ["ffnn/lr=0.1/seed=868", "ffnn/lr=0.01/seed=868"]),
        (
            ("model=ffnn,ffnn_bn", "model.hidden_features=50,100"),
            [f"{net}/model.hidden_features={h}/lr=0.001/seed=868" for net in ("ffnn", "ffnn_bn") for h in (50, 100)],
        ),
        (
            ("model=ffnn", "optimizer=adam,sgd", "data=digits,synthetic", "seed=1,2"),
            [
                f"ffnn/data={data}/optimizer={optimizer}/lr={lr}/seed={seed}"
                for optimizer, lr in (("adam", 0.001), ("sgd", 0.1))
                for data in ("digits", "synthetic")
                for seed in (1, 2)
            ],
        ),
        (
            ("model=ffnn", "spp=none,every_step"),
            [f"ffnn/spp={spp}/lr=0.001/seed=868" for spp in ("none", "every_step")],
        ),
        (("model=ffnn,ffnn_bn", "name=x"), [f"x/model={net}/lr=0.001/seed=868" for net in ("ffnn", "ffnn_bn")]),
        (
            ("model=ffnn", "data.root=a/b,'a b'", "+trainer.max_steps=1"),
            ["ffnn/data.root=a%2Fb/lr=0.001/seed=868", "ffnn/data.root=a%20b/lr=0.001/seed=868"],
        ),
        (
            ("model=ffnn", "+optimizer.betas=[0.9,0.99],[0.8,0.9]", "+trainer.max_steps=1,2"),
            [
                f"ffnn/optimizer.betas=%5B{betas}%5D/trainer.max_steps={steps}/lr=0.001/seed=868"
                for betas in ("0.9,0.99", "0.8,0.9")
                for steps in (1, 2)
            ],
        ),
        (("model=ffnn", "model.init=he_fan_in", "data.seed=5"), ["ffnn/lr=0.001/seed=868"]),
    ],
)
def test_what_is_swept_has_a_place(
    arguments: tuple[str, ...], places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places_of(monkeypatch, *arguments) == places


def test_places_do_not_depend_on_how_a_value_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    [place] = places_of(monkeypatch, "model=ffnn", "optimizer.eps=1e-8,0.00000001")
    assert place == "ffnn/optimizer.eps=1e-08/lr=0.001/seed=868"
    one, other = (
        places_of(monkeypatch, *arguments)
        for arguments in (
            ("model=ffnn", "model.depth=1,2", "data.val_size=1,2"),
            ("data.val_size=1,2", "model.depth=1,2", "model=ffnn"),
        )
    )
    assert sorted(one) == sorted(other)


def test_the_places_of_the_study_s_sweeps_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs are resumed, and found among those that are kept."""
    for sweep in ("figures", "lab"):
        for cell in cells_of(monkeypatch, f"sweeps={sweep}"):
            config = cell.config
            place = (config["sweeps"]["name"], cell.model, f"lr={config['optimizer']['lr']}", f"seed={config['seed']}")
            assert cell.run.path == Path("outputs", *place)
            assert not cell.kept or cell.kept[0].path == Path("results", *place)


def test_a_place_names_what_its_grid_says_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of a net changed alone is found under its own name; what the default is, is said or not."""
    net = "nf_efficientnet"
    cells = [cell for cell in cells_of(monkeypatch, "sweeps=nf_efficientnet") if cell.model == net]
    places = {cell.run.path.relative_to("outputs/nf").as_posix() for cell in cells}
    assert f"{net}/lr=0.001/seed=868" in places
    assert f"{net}/model.bias=true/model.calibrate=false/trainer.max_epochs=5/lr=0.001/seed=868" in places
    grids = "hydra.sweeper.grids=[{model: ffnn_bn}, {model: ffnn_bn, model.hidden_features: [512, 100]}]"
    widths = ("", "model.hidden_features=100/")
    assert places_of(monkeypatch, grids) == [f"ffnn_bn/{width}lr=0.001/seed=868" for width in widths]


def test_a_sweep_over_anything_runs_and_its_table_groups_by_it(command: Command, capfd: Output) -> None:
    overrides = ("-m", "model.hidden_features=8,16", "optimizer=sgd", "trainer.max_epochs=1")
    assert command(*overrides) == 0
    assert "runs: 2 cells: 2 completed" in capfd.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("result.json")}
    assert command(*overrides) == 0, "they are found again"
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("result.json")} == before
    capfd.readouterr()
    table = read_table("outputs/runs")
    assert list(table.titles) == ["ffnn model.hidden_features=16", "ffnn model.hidden_features=8"]
    assert [cell.n for cell in table.cells] == [1, 1]
    assert len(read_evidence("outputs").runs) == 2
    assert command(*overrides, "sweeps.dry_run=true") == 0
    assert "ffnn model.hidden_features=8 lr=0.1 seed=868" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sweeps=table1,smoke", "one sweep at a time"),
        ("seed=range(1,1)", "there is nothing to run"),
        ("seed=interval(1,5)", "does not support sweep type"),
        ("trainer.num_nodes=2", "cannot use trainer.num_nodes=2"),
    ],
)
def test_what_is_no_sweep_is_refused(argument: str, message: str, command: Command, capfd: Output) -> None:
    assert command("-m", argument) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_overwriting_a_sweep_counts_only_what_is_new(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 0
    assert command("-m", "seed=1,2", "trainer.max_epochs=1", "overwrite=true", "sweeps.dry_run=true") == 0
    assert "2 to run" in capfd.readouterr().out
    with monkeypatch.context() as broken:
        fail_in(broken, 2, crash)
        assert command("-m", "seed=1,2", "trainer.max_epochs=1", "overwrite=true") == 1
    assert "1 completed, 1 failed" in capfd.readouterr().out
    assert command("-m", "seed=1,2", "trainer.max_epochs=1", "overwrite=true", "data.batch_size=0") == 1
    assert "seed=1 failed: data.batch_size must be" in capfd.readouterr().out


def test_the_file_server_s_clock_may_differ(command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 0
    before = (seeds(1)[0] / "result.json").stat().st_mtime_ns
    now = time.time
    for ahead in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: now() + ahead)
        assert command("-m", "seed=1", "trainer.max_epochs=1", "overwrite=true") == 0
        assert "1 cells: 1 completed" in capfd.readouterr().out
        after = (seeds(1)[0] / "result.json").stat().st_mtime_ns
        assert before < after
        before = after
    assert sorted(path.name for path in CELLS.iterdir()) == ["seed=1"], "the clock's file is gone"


def test_a_job_that_leaves_nothing_where_it_should_is_a_failure(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppbench.train.train", lambda cfg: 50.0)  # as on another machine, without a common file system
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 1
    assert f"it ended, but left no result in {CELLS}/seed=1" in capfd.readouterr().out


def test_a_launcher_that_breaks_down_hits_only_what_it_was_at_work_on(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("seed=1", "trainer.max_epochs=1") == 0
    (CELLS / "seed=1" / "result.json").unlink()  # as a worker leaves it that is killed
    original, calls = sweeper().setup, []

    def setup(self: Any, **arguments: Any) -> None:
        original(self, **arguments)
        launch = self._launcher.launch

        def breaking(overrides: Any, initial_job_idx: int) -> Any:
            calls.append(len(overrides))
            if len(calls) == 1:
                raise RuntimeError("a worker was killed")
            return launch(overrides, initial_job_idx=initial_job_idx)

        monkeypatch.setattr(self._launcher, "launch", breaking)

    monkeypatch.setattr(sweeper(), "setup", setup)
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 1
    shown = capfd.readouterr().out
    assert calls == [3, 2]
    assert "ffnn lr=0.001 seed=1 failed: a worker was killed" in shown
    assert statuses(seeds(2, 3)) == ["completed", "completed"]


def test_a_directory_that_is_in_use_tells_by_whom(command: Command, capfd: Output) -> None:
    assert command("seed=1", "trainer.max_epochs=1") == 0
    cell = RunDirectory(CELLS / "seed=1", {"overwrite": False})
    with cell.locked():
        assert not cell.is_free()
        owner = cell.owner
        assert owner is not None
        assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
        assert owner.started == pytest.approx(time.time(), abs=10)
        with pytest.raises(RunDirectoryBusy, match=f"process {os.getpid()} on {socket.gethostname()}, since 2"):
            cell.locked().__enter__()
    assert cell.is_free()
    assert cell.owner is None


def test_a_dead_owner_is_taken_over(command: Command, capfd: Output) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert command("seed=1", "trainer.max_epochs=1") == 0
    owner = CELLS / "seed=1" / ".owner"
    owner.write_text(json.dumps({"host": socket.gethostname(), "pid": gone.pid, "started": 0}))
    assert RunDirectory(CELLS / "seed=1", {}).owner is None
    (CELLS / "seed=1" / "result.json").unlink()  # as if it had been killed before its end
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 0
    assert "1 completed" in capfd.readouterr().out
    assert not owner.exists()


def test_a_sweep_waits_for_what_another_process_is_at_work_on(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one gives up in the end: its cell is taken over."""
    from hydra_plugins import sppbench_sweeper

    cell = seeds(1)[0]
    cell.mkdir(parents=True)
    lock = FileLock(cell / ".lock")
    lock.acquire()
    (cell / ".owner").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": time.time()}))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.release()

    monkeypatch.setattr(sppbench_sweeper.time, "sleep", sleep)
    assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 0
    assert len(waits) == 3
    assert statuses(seeds(1, 2)) == ["completed", "completed"]
    assert (seeds(2)[0] / "result.json").stat().st_mtime_ns < (cell / "result.json").stat().st_mtime_ns
    assert "running: ffnn lr=0.001 seed=1" in capfd.readouterr().err


def test_a_damaged_result_is_told_and_harms_nothing(command: Command, capfd: Output) -> None:
    assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 0
    (CELLS / "seed=1" / "result.json").write_text("{")
    kept = (CELLS / "seed=1" / "last.ckpt").read_bytes()
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 1
    shown = capfd.readouterr().out
    assert f"seed=1 failed: cannot read {CELLS}/seed=1/result.json" in shown
    assert statuses(seeds(2, 3)) == ["completed", "completed"]
    assert (CELLS / "seed=1" / "last.ckpt").read_bytes() == kept
    (CELLS / "seed=1" / "result.json").unlink()
    assert command("-m", "seed=1,2,3", "trainer.max_epochs=1") == 0


def no_space(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_harms_nothing(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 0
    before = (CELLS / "seed=1" / "result.json").read_bytes()
    with monkeypatch.context() as full:
        full.setattr(Checkpointing, "_save", no_space)
        full.setattr(sppbench.run.results, "write_text", no_space)
        assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 1
    assert f"seed=2 failed: the disk is full: {CELLS}/seed=2 cannot be written to" in capfd.readouterr().out
    assert (CELLS / "seed=1" / "result.json").read_bytes() == before
    assert command("-m", "seed=1,2", "trainer.max_epochs=1") == 0


def test_a_read_only_directory_is_told(command: Command, capfd: Output) -> None:
    # Not by permissions, which do not bind root.
    assert command("-m", "seed=1,2", "output_dir=/proc/${seed}x") == 1
    assert "seed=1 failed: cannot write to output_dir=/proc/1x" in capfd.readouterr().out


def fabricated(seed: int, state: str, seconds: float = 0.0, model: str = "ffnn") -> Look:
    config: dict[str, Any] = {"name": model, "optimizer": {"lr": 0.1}, "seed": seed, "overwrite": False}
    config["output_dir"] = f"nowhere/{model}/{seed}"
    made: dict[str, Any] = dict.fromkeys(Result.__dataclass_fields__)
    result = Result(**made | {"status": state, "wall_seconds": seconds}) if seconds else None
    return Look(SweepCell((), config | {"trainer": {"devices": 1}}), state, result)  # type: ignore[arg-type]


def test_time_left_is_by_the_cells_of_the_same_model() -> None:
    looks = [fabricated(1, "completed", 10), fabricated(2, "completed", 20), fabricated(3, "missing")]
    looks += [fabricated(1, "completed", 100, "bn"), fabricated(2, "interrupted", 7, "bn"), fabricated(3, "failed")]
    assert seconds_left(looks) == (15 + (100 - 7) + 15, 0)
    assert seconds_left([*looks, fabricated(1, "missing", 0, "new")]) == (123 + 130 / 3, 0), "the mean of all"
    looks.append(fabricated(4, "diverged", 1))
    assert seconds_left(looks) == (123, 0), "a diverged run ended early and tells nothing"
    assert seconds_left([fabricated(1, "missing"), fabricated(2, "running")]) == (0, 2)


def test_kinds_of_which_none_has_finished_are_measured(
    command: Command, capfd: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def seconds_of(config: dict[str, Any]) -> float | None:
        asked.append(config)
        return 100.0 if config["model"]["depth"] == 1 else None

    monkeypatch.setattr("sppbench.run.few_steps.seconds_of", seconds_of)
    assert command("-m", "model.depth=1,2", "seed=1,2", "sweeps.dry_run=true") == 0
    captured = capfd.readouterr()
    assert [config["model"]["depth"] for config in asked] == [1, 2], "one cell of each"
    assert "measuring a few steps of ffnn/model.depth=2\n" in captured.err
    # Of the other nothing is known: it is taken for granted neither long nor short.
    assert captured.out.splitlines()[-1] == "estimated time: unknown, as no cell has finished yet"
    assert command("-m", "model.depth=1", "seed=1,2", "sweeps.dry_run=true") == 0
    assert capfd.readouterr().out.splitlines()[-1] == (
        "estimated time: 0:03:20, one cell after another, from a few steps of ffnn measured just now"
    )
    assert not Path("outputs").exists()


def test_measured_kinds_do_not_take_the_time_of_others() -> None:
    looks = [fabricated(1, "completed", 10), fabricated(2, "missing"), fabricated(1, "missing", 0, "bn")]
    assert set(unfinished_kinds(looks)) == {"bn"}
    assert seconds_left(looks, {"bn": 70}) == (80, 0)
    how = "from a few steps of bn measured just now and from the cells that have finished"
    assert dry_run("x", looks, {"bn": 70}).endswith(f"0:01:20, one cell after another, {how}")


def test_time_left_is_by_the_cells_of_this_machine() -> None:
    looks = [replace(fabricated(1, "completed", 1000), kept=True), fabricated(2, "missing")]
    assert seconds_left(looks) == (1000, 0), "nothing else is known"
    assert set(unfinished_kinds(looks)) == {"ffnn"}, "so a few steps are measured"
    assert seconds_left(looks, {"ffnn": 20}) == (20, 0)
    how = "from a few steps of ffnn measured just now"
    assert dry_run("x", looks, {"ffnn": 20}).endswith(f"0:00:20, one cell after another, {how}")
    looks.append(fabricated(3, "completed", 10))
    assert seconds_left(looks) == (10, 0)
    assert seconds_left([*looks, fabricated(1, "missing", 0, "bn")]) == (20, 0), "of a new kind, the mean of its own"


def test_lines_about_a_sweep() -> None:
    looks = [fabricated(1, "completed", 3600), fabricated(2, "running"), fabricated(3, "missing")]
    looks += [fabricated(4, "failed"), fabricated(5, "interrupted"), fabricated(6, "diverged", 1)]
    line = progress_line("table1", looks)
    assert line == "table1: 2/6 cells done | 1 failed | running: ffnn lr=0.1 seed=2 | 2 left | 3:00:00 left"
    assert progress_line("table1", looks, jobs=3).endswith("1:00:00 left")
    assert progress_line("x", looks[1:3]) == "x: 0/2 cells done | running: ffnn lr=0.1 seed=2 | 1 left"
    assert dry_run("x", looks[1:3]).endswith("estimated time: unknown, as no cell has finished yet")


def test_cells_are_looked_at_without_changing_them(tmp_path: Path) -> None:
    cell = SweepCell((), fabricated(1, "missing").cell.config | {"output_dir": str(tmp_path / "cell")})
    assert look_at(cell).state == "missing"
    assert not (tmp_path / "cell").exists()
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "thesis.tex").write_text("")
    assert look_at(cell).state == "refused"
    with pytest.raises(SweepError, match="differ in seed"):
        distinct([cell, SweepCell((), cell.config | {"seed": 2})])


def test_a_sweep_that_is_killed_five_times_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    from sppbench.spp.history.reader import read_history

    arguments = ("data.train_size=120", "seed=1,2", "trainer.max_epochs=5", "spp.epochs=[]")
    in_fork(tmp_path, kill_five_times, *SMALL, *FFNN, *arguments)
    begun = [line.split() for line in (tmp_path / "begun.txt").read_text().splitlines()]
    assert any(line[1].startswith("outputs/killed") and line[2] == "True" for line in begun), "nothing was resumed"
    for seed in (1, 2):
        whole, killed = (tmp_path / f"outputs/{name}/ffnn/lr=0.001/seed={seed}" for name in ("whole", "killed"))
        assert metrics(whole) == metrics(killed)
        assert same_weights(weights(whole), weights(killed))
        assert read_history(whole / "spp.parquet").equals(read_history(killed / "spp.parquet"))
        left, right = read_result(whole / "result.json"), read_result(killed / "result.json")
        assert (left.test, left.val, left.steps, left.config_hash) == (
            (right.test, right.val, right.steps, right.config_hash)
        )


def test_two_sweeps_share_the_work(tmp_path: Path) -> None:
    in_fork(tmp_path, two_at_once, *SMALL, *FFNN, "seed=1,2,3,4,5,6", "spp=none", "data.train_size=200")
    begun = [line.split() for line in (tmp_path / "begun.txt").read_text().splitlines()]
    assert Counter(line[1] for line in begun) == {str(cell): 1 for cell in seeds(1, 2, 3, 4, 5, 6)}
    assert len({line[0] for line in begun}) == 2, "one of them did all"
    assert statuses([tmp_path / cell for cell in seeds(1, 2, 3, 4, 5, 6)]) == ["completed"] * 6


def test_what_is_kept_for_good_counts_as_done(command: Command, capfd: Output, tmp_path: Path) -> None:
    arguments = ("-m", "seed=1,2", "trainer.max_epochs=1", "sweeps.kept=kept")
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 0
    shutil.move("outputs", "kept/all")  # as in results/: without outputs/, and no weights
    shutil.move("kept/all/runs", "kept/runs")
    kept = Path("kept", *(CELLS / "seed=1").parts[1:])
    (kept / "last.ckpt").unlink()
    before = (kept / "result.json").read_bytes()
    assert command(*arguments) == 0
    assert "runs: 2 cells: 2 completed" in capfd.readouterr().out
    assert [path.name for path in CELLS.iterdir()] == ["seed=2"], "the kept one was not run again"
    assert (kept / "result.json").read_bytes() == before


def test_a_kept_run_is_found_by_its_configuration(command: Command, capfd: Output, tmp_path: Path) -> None:
    """Its place names what another sweep varied."""
    arguments = ("-m", "seed=1,2", "trainer.max_epochs=1", "sweeps.kept=kept")
    assert command(*arguments) == 0
    shutil.move("outputs", "kept")
    place = Path("kept", *(CELLS / "seed=1").parts[1:])
    other = place.parents[1] / "data.padding=4" / place.parent.name / place.name
    other.parent.mkdir(parents=True)
    shutil.move(place, other)
    capfd.readouterr()
    assert command(*arguments) == 0
    assert not CELLS.exists(), "none was run again"


def test_a_kept_run_of_another_configuration_does_not_count(command: Command, tmp_path: Path) -> None:
    assert command("-m", "seed=1", "trainer.max_epochs=1") == 0
    shutil.move("outputs", "kept")
    assert command("-m", "seed=1", "trainer.max_epochs=2", "sweeps.kept=kept") == 0
    assert read_result(CELLS / "seed=1" / "result.json").epochs == 2
