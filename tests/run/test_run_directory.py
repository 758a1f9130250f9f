from __future__ import annotations

import dataclasses
import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sppbench.files import replacing
from sppbench.run import run_directory
from sppbench.run.results import FINAL
from sppbench.run.run_directory import Owner, RunDirectory, RunDirectoryError, config_hash, flatten, identity
from tests.run.test_results import RESULT

CONFIG: dict[str, Any] = {
    "name": "ffnn",
    "seed": 1,
    "overwrite": False,
    "output_dir": "x",
    "model": {"depth": 8, "affine": True},
    "data": {"root": "a", "batch_size": 512},
    "optimizer": {"lr": 0.1},
    "trainer": {"accelerator": "auto", "max_epochs": 20},
    "spp": {"every_n_steps": 1},
    "logger": {"csv": {"path": "x/metrics.csv"}},
}


def changed(**values: Any) -> dict[str, Any]:
    """CONFIG with dotted keys (``__`` for the dot) set to other values."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in CONFIG.items()}
    for key, value in values.items():
        *groups, last = key.split("__")
        node = config[groups[0]] if groups else config
        node[last] = value
    return config


def finished(path: Path, config: dict[str, Any], status: str = "completed") -> None:
    run = RunDirectory(path, config)
    with run.locked():
        run.begin()
        dataclasses.replace(RESULT, status=status, config_hash=config_hash(config)).write(run.result_file)


def test_flatten_gives_the_keys_of_the_command_line() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [1], "e": None, "f": {}}


def test_the_hash_ignores_where_and_by_which_kernels_a_run_takes_place_and_nothing_else() -> None:
    same = changed(output_dir="y", overwrite=True, data__root="b", trainer__accelerator="cpu", logger=None)
    same["optimizer"]["fused"] = True
    assert config_hash(same) == config_hash(CONFIG)
    assert identity(CONFIG).keys() == {
        "name",
        "seed",
        "model.depth",
        "model.affine",
        "data.batch_size",
        "optimizer.lr",
        "trainer.max_epochs",
    }
    for other in (changed(seed=2), changed(model__affine=False), changed(data__batch_size=64), changed(new=1)):
        assert config_hash(other) != config_hash(CONFIG)


@pytest.mark.parametrize("status", FINAL)
def test_a_complete_run_is_recognised(tmp_path: Path, status: str) -> None:
    finished(tmp_path / "run", CONFIG, status)
    found = RunDirectory(tmp_path / "run", changed(output_dir="elsewhere")).completed()
    assert found is not None
    assert found.status == status


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_an_incomplete_run_is_run_again(tmp_path: Path, status: str) -> None:
    finished(tmp_path / "run", CONFIG, status)
    run = RunDirectory(tmp_path / "run", CONFIG)
    assert run.completed() is None
    with run.locked():
        run.begin()
        assert not run.result_file.exists(), "while the run is under way it has no status"


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    finished(tmp_path / "run", CONFIG)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(RunDirectoryError) as refusal:
        RunDirectory(tmp_path / "run", changed(seed=2, model__affine=False)).completed()
    message = str(refusal.value)
    assert "seed (1 there, 2 now)" in message
    assert "model.affine (True there, False now)" in message
    assert str(tmp_path / "run" / "config.yaml") in message
    assert "depth" not in message
    assert "\n" not in message
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_overwrite_removes_what_was_there(tmp_path: Path) -> None:
    finished(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "wandb").mkdir()
    (tmp_path / "run" / "wandb" / "file").touch()
    old_id = RunDirectory(tmp_path / "run", CONFIG).run_id
    run = RunDirectory(tmp_path / "run", changed(seed=2, overwrite=True))
    assert run.completed() is None
    with run.locked():
        assert not run.begin()
        assert {file.name for file in run.path.iterdir()} == {".lock", ".owner", ".run_id", "config.yaml"}
    assert run.run_id != old_id


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run = RunDirectory(tmp_path, CONFIG)
    with pytest.raises(RunDirectoryError, match=r"holds 'thesis\.tex', but not a run"):
        run.completed()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_configuration_of_something_else_is_no_run_s(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: mine\n")
    with pytest.raises(RunDirectoryError, match=r"holds 'config\.yaml', which is not that of a run: choose another"):
        RunDirectory(tmp_path, changed(overwrite=True)).completed()


@pytest.mark.parametrize("name", ["metrics.csv", "train.parquet", "figure.png", "wandb", "last.ckpt", "result.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_without_a_configuration_nothing_is_a_run_s(name: str, overwrite: bool, tmp_path: Path) -> None:
    """Not even by its name: it may be a user's, or a data set, or weights of another configuration."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunDirectoryError, match=rf"holds '{name}', but not a run, which would have a config\.yaml"):
        RunDirectory(tmp_path, changed(overwrite=overwrite)).completed()
    assert (tmp_path / name).read_text() == "mine"


FOREIGN = ("notes.txt", "data.parquet", "photo.png", "spp_epoch=1.png.txt", "spp_epoch=best.png", ".notes.tmp")
OURS = (
    *("metrics.csv", "last.ckpt", "train.log", "traceback.txt", "inspection.json", ".run_id", ".last.ckpt.tmp"),
    *("spp_epoch=9.png", "spp_gradient_epoch=19.png", "spp_heatmap_activation.png", "spp_epochs.parquet"),
)


def fill(run: Path) -> None:
    """What a run leaves, and what a user puts beside it."""
    for name in (*OURS, *FOREIGN):
        (run / name).write_text(name)
    for name in ("spp.parquet", "batchnorm.parquet", "wandb", "tensorboard"):
        (run / name).mkdir()
        (run / name / "file").touch()


def test_overwrite_deletes_only_what_runs_leave(tmp_path: Path) -> None:
    path = tmp_path / "run"
    finished(path, CONFIG)
    fill(path)
    run = RunDirectory(path, changed(overwrite=True))
    with run.locked():
        run.begin()
        assert {item.name for item in path.iterdir()} == {*FOREIGN, ".lock", ".owner", ".run_id", "config.yaml"}


def test_a_run_that_is_killed_while_it_clears_never_passes_for_more_than_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each deletion: no result and no checkpoint, and a configuration as long as there is anything."""

    class Killed(BaseException):
        pass

    deletions = 0
    delete = run_directory._delete

    def dying(item: Path) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        delete(item)

    monkeypatch.setattr(run_directory, "_delete", dying)
    while True:
        path, left = tmp_path / str(deletions), deletions
        finished(path, CONFIG)
        fill(path)
        run = RunDirectory(path, changed(overwrite=True))
        try:
            with run.locked():
                run.begin()
            break
        except Killed:
            pass
        names = {item.name for item in path.iterdir()} - {*FOREIGN, ".lock", ".owner"}
        assert not names or "config.yaml" in names
        if deletions >= 1:
            again = RunDirectory(path, CONFIG)
            assert again.completed() is None
            assert not again.resumable or deletions == 1
            left = -1
            with again.locked():
                again.begin()
            if deletions >= 2:
                products = {"metrics.csv", "spp.parquet", "spp_epoch=9.png", "inspection.json", "last.ckpt"}
                assert not products & {item.name for item in path.iterdir()}, "they would pass for the new run's"
        deletions += 1
    assert deletions == len(OURS) + 4 + 2  # folders; result.json and config.yaml


def test_a_result_of_another_configuration_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "run", CONFIG)
    finished(tmp_path / "other", changed(model__depth=9))
    (tmp_path / "run" / "result.json").write_bytes((tmp_path / "other" / "result.json").read_bytes())
    with pytest.raises(RunDirectoryError, match=r"result\.json belongs to another configuration"):
        RunDirectory(tmp_path / "run", CONFIG).completed()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    finished(tmp_path / "run", CONFIG, "failed")
    (tmp_path / "mine").write_text("mine")
    run = RunDirectory(tmp_path / "run", CONFIG)
    for file in (run.log_file, run.traceback_file, run.result_file, run.path / ".run_id"):
        file.unlink(missing_ok=True)
        file.symlink_to(tmp_path / "mine")
    with run.locked():
        run.begin()
        assert not run.log_file.is_symlink()
        assert not run.traceback_file.exists()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"cannot use output_dir=.*File name too long"):
        RunDirectory(tmp_path / ("x" * 300), CONFIG).completed()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_config_yaml_of_something_else_is_not_a_run_s(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("title: my thesis")
    (tmp_path / "src").mkdir()
    with pytest.raises(RunDirectoryError, match="which is not that of a run"):
        RunDirectory(tmp_path, changed(overwrite=overwrite)).completed()


@pytest.mark.parametrize("content", ["{", "a: [", "\0"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    finished(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(RunDirectoryError, match=r"config\.yaml is damaged"):
        RunDirectory(tmp_path / "run", CONFIG).completed()


def test_what_a_crash_leaves_before_the_run_began_is_in_nobody_s_way(tmp_path: Path) -> None:
    for name in ("config.yaml", ".owner", ".run_id"):
        with replacing(tmp_path / name) as temporary:
            pass
        (tmp_path / name).rename(temporary)  # another process, too, may be about to write it
    for name in (".lock", ".run_id"):
        (tmp_path / name).touch()
    run = RunDirectory(tmp_path, CONFIG)
    assert run.completed() is None
    with run.locked():
        assert not run.begin()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "file", CONFIG).completed()
    run = RunDirectory(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(RunDirectoryError, match="cannot write to output_dir"), run.locked():
        pass


def test_a_directory_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    first, second = (RunDirectory(tmp_path / "run", CONFIG) for _ in range(2))
    refused = pytest.raises(RunDirectoryError, match="another process is at work")
    with first.locked():
        first.begin()
        with refused, second.locked():
            pass
    with second.locked():
        assert not second.begin()


def test_a_place_where_nothing_began_is_left_as_it_was(tmp_path: Path) -> None:
    def fail() -> None:
        with RunDirectory(tmp_path / "new" / "run", CONFIG).locked():
            raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_offered_and_the_run_keeps_its_id(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    with run.locked():
        run.begin()
        run.checkpoint.touch()
    again = RunDirectory(tmp_path / "run", CONFIG)
    with again.locked():
        assert again.begin()
    assert again.run_id == run.run_id


@pytest.mark.parametrize(
    "content",
    [
        '{"host": "here", "pid": "x", "started": 0}',
        f'{{"host": "here", "pid": {2**70}, "started": 0}}',
        '{"host": "here", "pid": 1, "started": "x"}',
        '{"host": "here", "pid": 1, "started": 1e300}',
        '{"host": "here", "pid": 1, "started": NaN}',
        '{"host": 1, "pid": 1, "started": 0}',
        '{"host": "here", "pid": true, "started": 0}',
        "[1]",
        "1",
        "\ufeff{}",
        "",
        "[" * 100_000,
    ],
)
def test_a_damaged_owner_is_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory.socket, "gethostname", lambda: "here")
    finished(tmp_path / "run", CONFIG)
    (tmp_path / "run" / ".owner").write_text(content)
    assert RunDirectory(tmp_path / "run", CONFIG).owner is None


def test_whether_an_owner_lives_is_asked_without_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``os.kill(pid, 0)`` interrupts the process on Windows."""
    asked: list[int] = []
    exists = run_directory.psutil.pid_exists
    monkeypatch.setattr(run_directory.psutil, "pid_exists", lambda pid: asked.append(pid) or exists(pid))
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert Owner(socket.gethostname(), gone.pid, 0.0).is_gone
    assert not Owner(socket.gethostname(), os.getpid(), 0.0).is_gone
    assert not Owner("elsewhere", gone.pid, 0.0).is_gone
    assert asked == [gone.pid, os.getpid()]


def test_a_disk_that_is_full_before_the_run_begins_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run", CONFIG)
    with run.locked():

        def fail(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(run_directory, "write_text", fail)
        with pytest.raises(RunDirectoryError, match=f"cannot write to output_dir={run.path}: No space left on device"):
            run.begin()
