"""What a user sees who types `python -m sppbench.train ...`: output and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from sppbench.files import config_directory
from sppbench.run.results import read_result
from sppbench.spp.history.reader import read_history
from tests.conftest import FFNN, SMALL
from tests.test_train import at_step, crash, metrics, send

ROOT = Path(__file__).parents[1]


def test_a_run_and_its_repetition(command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("trainer.max_epochs=1") == 0
    run = tmp_path / "outputs" / "runs" / "ffnn" / "lr=0.001" / "seed=868"
    assert read_result(run / "result.json").status == "completed"
    assert "test accuracy" in capfd.readouterr().out
    assert command("trainer.max_epochs=1") == 0
    assert "is already completed: test accuracy" in capfd.readouterr().out
    assert command("trainer.max_epochs=2") == 2
    assert "trainer.max_epochs (1 there, 2 now)" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"], "nothing is written beside the run directory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=abc"], "optimizer.lr must be a finite number of at least 0, got 'abc'"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["data=cifar100", "data.root=nowhere", "data.download=false"], "data=digits"),
        (["output_dir=/dev/null/run"], "cannot write to output_dir=/dev/null/run"),
    ],
)
def test_what_the_user_must_fix_is_one_line_and_status_2(
    arguments: list[str], message: str, command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("sppbench: ")
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_unknown_choices_are_hydra_s_errors(command: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("model=resnet") == 1
    error = capfd.readouterr().err
    assert "Could not find 'model/resnet'" in error
    assert "sn_efficientnet_mp" in error, "the choices are listed"


def test_ctrl_c_while_hydra_composes(
    command: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", interrupted)
    for flags in ([], ["-m"]):
        assert command(*flags) == 130
        assert capfd.readouterr().err == "sppbench: interrupted\n"


def test_a_mistake_beside_help_is_one_line(command: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for mistake, said in (("spam=1", "Could not override 'spam'."), ("x=}", "x=}")):
        assert command("--help", mistake) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("sppbench: ")
        assert said in line


BROKEN = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, where, **unused):
        super().__init__(192, 10)
        self.where = where
        if where == "init":
            raise ValueError("no such\\ndepth")

    def forward(self, x):
        if self.where == "forward" or (self.where == "training" and self.training):
            return x.nothing
        return super().forward(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("where", "line", "problem"),
    [
        ("init", 9, "no such depth (ValueError"),
        ("forward", 13, "'Tensor' object has no attribute 'nothing' (AttributeError"),
    ],
)
def test_an_error_in_a_user_s_net_names_its_line(
    where: str,
    line: int,
    problem: str,
    command: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / f"net_{where}.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = (f"model._target_=net_{where}.Net", f"+model.where={where}", "output_dir=run")
    assert command(*arguments) == 2
    error = capfd.readouterr().err
    assert (
        error == f"sppbench: {problem} in {tmp_path}/net_{where}.py:{line}); HYDRA_FULL_ERROR=1 shows the traceback\n"
    )
    assert not Path("run").exists()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert command(*arguments) == 2
    error = capfd.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith(f"sppbench: {problem}")


def test_an_error_of_a_user_s_net_in_training_is_in_the_run_directory(
    command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_training.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    assert command("model._target_=net_training.Net", "+model.where=training", "output_dir=run") == 1
    place = f"(AttributeError in {tmp_path}/net_training.py:13)"
    assert place in capfd.readouterr().err
    assert place in str(read_result(Path("run/result.json")).error)
    assert 'net_training.py", line 13' in Path("run/traceback.txt").read_text()


@pytest.mark.usefixtures("no_figures")
def test_home_is_expanded(
    command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("output_dir='~/run'", "trainer.max_epochs=1", "spp=every_step") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    found = {path.name for path in (tmp_path / "home" / "run").iterdir()}
    assert {"result.json", "metrics.csv", "last.ckpt", "spp.parquet", "config.yaml"} <= found
    assert command("data=cifar100", "data.root='~/images'", "data.download=false", "output_dir=x") == 2
    assert str(tmp_path / "home" / "images") in capfd.readouterr().err


def test_a_failure_is_status_1_and_names_the_traceback(
    command: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 4, crash)
    assert command("output_dir=run") == 1
    captured = capfd.readouterr()
    assert "power cut" in captured.err
    assert "Traceback" not in captured.err
    assert "traceback.txt" in captured.out


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_is_its_status(signum: int, status: int, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 4, send(signum))
    assert command("output_dir=run") == status
    assert read_result(Path("run/result.json")).status == "interrupted"


def test_a_second_signal_does_not_wait(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    at_step(monkeypatch, 4, twice)
    assert command("output_dir=run") == 130
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 3, "the checkpoint of epoch 0"


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **variables}


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['train', '--help']\n"
        "from sppbench.train import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "model: the net\n  cnn  " in shown
    assert "\n  efficientnet_bn  " in shown
    assert "python -m sppbench.train -m model=ffnn,ffnn_bn seed=1,2,3" in shown
    assert "\noptimizer.lr: 0.001  " in shown
    assert shown.endswith("set()\n")


def test_two_processes_train_as_one_does(command: Any, tmp_path: Path) -> None:
    """Each has its share of every batch; the metrics, batch normalization and the probe are of the whole.

    Not by Adam: it makes steps of the rounding errors that are the gradients of biases before batch normalization. The
    gains of batch normalizations are not recorded over processes.
    """
    shared = ["model=ffnn_bn", "optimizer=sgd", "spp=every_step", "spp.epochs=[]"]
    assert command("output_dir=one", *shared) == 0
    subprocess.run(
        [
            *(sys.executable, "-m", "sppbench.train", *SMALL, *FFNN, "output_dir=two", *shared),
            *("trainer=ddp", "trainer.accelerator=cpu"),
        ],
        cwd=tmp_path,
        env=environment(),
        check=True,
        timeout=120,
    )
    one, two = read_result(Path("one/result.json")), read_result(Path("two/result.json"))
    assert (two.status, two.steps, two.epochs) == ("completed", one.steps, one.epochs)
    for left, right in zip(metrics(Path("one")), metrics(Path("two")), strict=True):
        assert left.keys() - right.keys() == {name for name in left if name.startswith("batchnorm/")}
        for name in right.keys() - {"epoch", "step"}:
            assert float(left[name] or "nan") == pytest.approx(float(right[name] or "nan"), rel=1e-4, nan_ok=True), name
    columns = ["step", "layer", "signal", "second_moment"]
    signals, same = (read_history(Path(run) / "spp.parquet")[columns] for run in ("one", "two"))
    assert signals[columns[:3]].equals(same[columns[:3]])
    assert signals["second_moment"].to_numpy() == pytest.approx(same["second_moment"].to_numpy(), rel=1e-3, abs=1e-12)


def test_the_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    build = (
        f"import hatchling.build, os; os.chdir({str(ROOT)!r}); print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    )
    name = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True).stdout.split()[-1]
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(site)
    assert (site / "sppbench" / "conf" / "model" / "ffnn.yaml").exists()
    assert (site / "sppbench" / "conf" / "published" / "poster_table1.yaml").exists()
    assert (site / "sppbench" / "conf" / "claims.yaml").exists()
    assert (site / "sppbench" / "study" / "report" / "templates" / "report.html.j2").exists()
    assert (site / "sppbench" / "spp" / "sums" / "kernel.c").exists()
    assert (site / "hydra_plugins" / "sppbench_sweeper.py").exists()
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "sppbench.train", "model=ffnn", "model.hidden_features=8", "model.depth=1"),
            *("data=digits", "trainer=cpu", "trainer.max_epochs=1", "logger=csv", "spp.epochs=[]"),
        ],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "test accuracy" in shown
    result = read_result(tmp_path / "outputs" / "runs" / "ffnn" / "lr=0.001" / "seed=868" / "result.json")
    assert (result.data, result.git) == ("Digits", None), "not imported from the wheel"


@pytest.mark.parametrize("file", sorted((config_directory() / "trainer").glob("*.yaml")), ids=lambda file: file.stem)
def test_training_is_repeatable_with_every_trainer_but_one(file: Path) -> None:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        trainer = compose("train", [f"trainer={file.stem}", "name=x"]).trainer
    assert trainer.deterministic == (file.stem != "gpu_fast")
    assert bool(trainer.get("benchmark")) == (not trainer.deterministic)
