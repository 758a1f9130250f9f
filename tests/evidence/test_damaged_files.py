"""Whatever became of a run's files: every command says so in lines, and none ends with a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sppbench.__main__ import main
from sppbench.study.report.plotly_conversion import Chart
from tests.fabricate.claims import LEARNING, inspection
from tests.fabricate.histories import ffnn_layers, write_gains, write_signals
from tests.fabricate.runs import SEEDS, write_run

Damage = Callable[[Path], object]
BOM = b"\xef\xbb\xbf"


def in_result(**values: object) -> Damage:
    def change(run: Path) -> None:
        file = run / "result.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def content(name: str, make: Callable[[bytes], bytes]) -> Damage:
    return lambda run: (run / name).write_bytes(make((run / name).read_bytes()))


# By what was done: how, and whether the run still counts. What is wrong with a run's own numbers is said in any case.
DAMAGES: dict[str, tuple[Damage, bool]] = {
    "git is a text": (in_result(git="x"), False),
    "git.commit is a number": (in_result(git={"commit": 5}), False),
    "wall_seconds is a text": (in_result(wall_seconds="x"), False),
    "a version is null": (in_result(versions={"torch": None}), False),
    "test.loss is a text": (in_result(test={"accuracy": 20.0, "loss": "x"}), False),
    "an integer without end": (in_result(images_per_second=10**400), False),
    "result.json is deep": (content("result.json", lambda _: b"[" * 10**5), False),
    "result.json with a BOM": (content("result.json", lambda text: BOM + text), True),
    "config.yaml is emptied": (content("config.yaml", lambda _: b""), False),
    "config.yaml with a BOM": (content("config.yaml", lambda text: BOM + text), True),
    "config.yaml is of another run": (content("config.yaml", lambda text: text.replace(b"512", b"256")), False),
    "config.yaml has bytes": (content("config.yaml", lambda text: text + b"spam: !!binary aGVsbG8=\n"), False),
    "metrics.csv is cut short": (content("metrics.csv", lambda text: text[: len(text) // 2]), True),
    "metrics.csv is emptied": (content("metrics.csv", lambda _: b""), True),
    "metrics.csv with a BOM": (content("metrics.csv", lambda text: BOM + text), True),
    "metrics.csv is no text": (content("metrics.csv", lambda _: b"\xff\x00" * 99), True),
    "inspection.json is deep": (content("inspection.json", lambda _: b'{"moved":' * 10**5), True),
    "inspection.json is a list": (content("inspection.json", lambda _: b"[1]"), True),
    "spp.parquet is junk": (
        lambda run: [part.write_bytes(b"x" * 99) for part in (run / "spp.parquet").iterdir()],
        True,
    ),
}


SAID = {"metrics.csv is cut short", "metrics.csv is emptied", "metrics.csv is no text", "spp.parquet is junk"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    for seed in SEEDS[:2]:
        recorded(path, seed)
    return path


@pytest.fixture
def sweep(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "table1")


def recorded(sweep: Path, seed: int) -> Path:
    run = write_run(sweep, "ffnn_bn", 0.001, seed, 20.0, curve=[10.0, 20.0], test=dict(LEARNING))
    write_signals(run, lambda layer, depth, epoch, signal: (1.0, 1.0), ffnn_layers(), epochs=[0], batchnorm=True)
    write_gains(run, lambda layer, depth, epoch: (1.0, 1.0, 1.0), epochs=[0])
    inspection(run)
    return run


@pytest.mark.parametrize("name", DAMAGES)
def test_no_command_ends_with_a_traceback(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    damage, counts = DAMAGES[name]
    run = sweep / "ffnn_bn" / "lr=0.001" / "seed=868"
    damage(run)
    for command in (["claims"], ["keep", "--output", str(tmp_path / "kept")], ["table"], ["inspect"]):
        status = main([command[0], str(sweep), *command[1:]])
        out, err = capsys.readouterr()
        assert status in (0, 1, 2), command
        assert all(line.startswith("sppbench: ") for line in err.splitlines()), command
        if command == ["claims"]:
            assert ("not counted" not in err) == counts
            assert (str(run) in err) == (not counts or name in SAID)
            assert out.startswith("C1 ")


def test_figures_and_report_are_made_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run with a damage of its own; one is whole, and one has lost its gains."""
    monkeypatch.setattr("sppbench.study.report.page.paper", lambda drawing: "data:,")  # these take most of the time
    monkeypatch.setattr("sppbench.study.report.page.chart", lambda drawing: Chart("", 0, ""))
    runs = {seed: recorded(tmp_path / "table1", seed) for seed in SEEDS}
    DAMAGES["git is a text"][0](runs[868])
    DAMAGES["metrics.csv with a BOM"][0](runs[67])
    DAMAGES["spp.parquet is junk"][0](runs[472])
    shutil.rmtree(runs[362] / "batchnorm.parquet")
    gone = f"{runs[362] / 'batchnorm.parquet'} is missing"
    for command in (["figures", str(tmp_path)], ["report", str(tmp_path), "--output", str(tmp_path / "report.html")]):
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count(gone) == 1
        assert str(runs[868] / "result.json") in out
    assert gone in (tmp_path / "report.html").read_text(encoding="utf-8")
