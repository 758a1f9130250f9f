"""What a user sees who types `sppbench table ...`: output, files and exit status."""

from __future__ import annotations

import ast
import io
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
from matplotlib.figure import Figure

import sppbench.study.table
from sppbench.files import write_text
from sppbench.study.table.cells import read_table
from sppbench.study.table.formats import FORMATS
from tests.commands import Say, saying
from tests.fabricate.runs import write_cell, write_run
from tests.spp.test_callback import read_wandb

say = saying("table")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "table1"
    write_cell(path, "efficientnet_bn", 0.001, [33.0, 33.5, 34.0, 32.5, 33.0], curve=[10.0, 33.0])
    write_run(path, "sn_efficientnet_mp", 0.1, 868, 1.0, "diverged", curve=[1.0])
    return path


def one_line(text: str) -> str:
    assert text.startswith("sppbench: ")
    assert text.count("\n") == 1
    return text


def test_the_table_is_printed(sweep: Path, say: Say) -> None:
    status, out, err = say(sweep)
    assert (status, err) == (0, "")
    assert out == FORMATS["terminal"](read_table(sweep)) + "\n"
    assert "33.20 ± 0.57" in out


@pytest.mark.parametrize("name", list(FORMATS))
def test_any_format_is_printed(sweep: Path, say: Say, name: str) -> None:
    status, out, _ = say(sweep, "--format", name)
    assert status == 0
    assert out == FORMATS[name](read_table(sweep)) + "\n"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second."""
    monkeypatch.setattr("sppbench.study.table.table_figures.draw_figures", lambda table: {})


def test_files_are_written(sweep: Path, say: Say, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert say(sweep, "--output", out)[0] == 0
    names = {"table.md", "table.csv", "table.tex", "table.json"}
    figures = {f"{name}.{suffix}" for name in ("curves", "accuracy_over_lr") for suffix in ("png", "pdf")}
    assert {path.name for path in out.iterdir()} == names | figures
    table = read_table(sweep)
    for name, suffix in (("markdown", "md"), ("csv", "csv"), ("latex", "tex"), ("json", "json")):
        assert (out / f"table.{suffix}").read_text(encoding="utf-8") == FORMATS[name](table) + "\n"
    assert len(pd.read_csv(out / "table.csv")) == len(table.cells)
    assert json.loads((out / "table.json").read_text(encoding="utf-8"))["name"] == "table1"
    for name in ("curves", "accuracy_over_lr"):
        assert matplotlib.image.imread(out / f"{name}.png").shape[1] == 910
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert say(sweep, "--output", out)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, "the same table gives the same files"


def test_a_full_disk_leaves_the_old_files(
    sweep: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    assert say(sweep, "--output", tmp_path / "out")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_run(sweep, "efficientnet_bn", 0.001, 1, 30.0)

    def fail(path: Path, text: str) -> None:
        if path.name == "table.csv":
            raise OSError(28, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr("sppbench.study.table.formats.write_text", fail)
    status, out, err = say(sweep, "--output", tmp_path / "out")
    assert status == 2
    assert one_line(err) == f"sppbench: cannot write to {tmp_path / 'out'}: No space left on device\n"
    assert "efficientnet_bn" in out, "the table is printed before it is written"
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"table.md"}


def test_a_directory_that_cannot_be_written(sweep: Path, say: Say, tmp_path: Path, no_figures: None) -> None:
    (tmp_path / "file").touch()
    status, _, err = say(sweep, "--output", tmp_path / "file")
    assert status == 2
    assert "cannot write to" in one_line(err)
    assert "cannot write to" in one_line(say(sweep, "--output", tmp_path / "file" / "out")[2])


def test_a_figure_that_cannot_be_written_leaves_nothing_half(
    sweep: Path, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppbench.study.table.table_figures.draw_figures", lambda table: {"curves": Figure()})
    (tmp_path / "out" / "curves.png").mkdir(parents=True)
    status, _, err = say(sweep, "--output", tmp_path / "out")
    assert status == 2
    assert "cannot write to" in one_line(err)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_damaged_result_gives_status_1_after_the_table(
    sweep: Path, say: Say, tmp_path: Path, no_figures: None
) -> None:
    damaged = sweep / "efficientnet_bn" / "lr=0.001" / "seed=67" / "result.json"
    damaged.write_text('{"status": "compl')
    status, out, err = say(sweep, "--format", "csv", "--output", tmp_path / "out")
    assert status == 1
    assert str(damaged) in one_line(err)
    row = pd.read_csv(io.StringIO(out)).set_index(["model", "lr"]).loc["efficientnet_bn", 0.001]
    assert (row["n"], row["damaged"], row["verdict"]) == (4, 1, "incomplete")
    assert (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a directory"),
        (["empty"], "no runs in empty"),
        (["table1", "--published", "no.yaml"], "cannot read no.yaml"),
        (["table1", "--margin", "0"], "0 is not a positive number"),
        (["table1", "--margin", "nan"], "nan is not a positive number"),
        (["table1", "--margin", "two"], "invalid _margin value: 'two'"),
        (["table1", "--format", "html"], "invalid choice: 'html'"),
        ([], "the following arguments are required: DIR"),
        (["table1", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_are_told_in_a_line(
    sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(sweep.parent)
    (sweep.parent / "empty").mkdir()
    status, out, err = say(*arguments)
    assert (status, out) == (2, "")
    assert message in one_line(err)


def test_mixed_configurations_give_status_2(sweep: Path, say: Say) -> None:
    write_run(sweep, "ffnn", 0.001, 868, 20.0, overrides=["trainer.max_epochs=3"])
    status, out, err = say(sweep)
    assert (status, out) == (2, "")
    assert "trainer.max_epochs (20 and 3)" in one_line(err)


def test_the_current_directory_has_a_name(sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    assert say(".", "--format", "markdown")[1].startswith("# table1\n")


def test_wandb_offline(sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert say(sweep, "--wandb")[0] == 0
    assert wandb.run is None, "the run is finished"
    [run] = (sweep / "wandb").glob("offline-run-*")
    [file] = run.glob("run-*.wandb")
    deadline = time.monotonic() + 30
    while not (rows := read_wandb(file)) and time.monotonic() < deadline:
        time.sleep(0.05)  # W&B's own process writes the file, sometimes after wandb.finish() has returned
    [row] = rows
    for key in ("curves", "accuracy_over_lr"):
        path = run / "files" / row[f"{key}.path"]
        assert path.read_bytes().startswith(b"\x89PNG")
    logged = json.loads((run / "files" / row["table.path"]).read_text(encoding="utf-8"))
    frame = pd.read_csv(io.StringIO(FORMATS["csv"](read_table(sweep))))
    assert logged["columns"] == list(frame.columns)
    assert pd.DataFrame(logged["data"], columns=logged["columns"])["mean"].dropna().tolist() == [1.0, 33.2]
    settings = read_settings(file)
    assert (settings["project"], settings["job_type"], settings["display_name"]) == ("sppbench", "table", "table")
    assert (settings["run_group"], settings["tags"]) == ("table1", ["table1"])
    assert read_table(sweep).cells, "the run's files are in nobody's way"


def read_settings(file: Path) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from wandb.proto.wandb_internal_pb2 import Record

    from tests.spp.test_callback import records

    for content in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "run":
            return MessageToDict(record.run, preserving_proto_field_name=True)
    raise AssertionError("there is no run in it")


def test_wandb_is_finished_when_it_fails(
    sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    import wandb

    finished: list[bool] = []
    monkeypatch.setattr("wandb.finish", lambda: finished.append(True))

    def refuse(**arguments: Any) -> None:
        assert arguments["mode"] == "offline"
        raise wandb.errors.CommError("no\nnetwork")

    monkeypatch.setattr("wandb.init", refuse)
    status, _, err = say(sweep, "--wandb")
    assert status == 2
    assert one_line(err) == "sppbench: W&B: no\n"
    assert finished == [True]


def test_a_bad_wandb_mode_is_named(sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch, no_figures: None) -> None:
    monkeypatch.setenv("WANDB_MODE", "somewhere")
    status, _, err = say(sweep, "--wandb")
    assert status == 2
    assert "WANDB_MODE must be online, offline or disabled, got 'somewhere'" in one_line(err)


def test_train_and_its_packages_are_never_imported_at_the_top() -> None:
    heavy = {"torch", "torchvision", "lightning", "hydra", "wandb", "pandas", "scipy", "omegaconf", "yaml", "sklearn"}
    for file in Path(sppbench.study.table.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(node, alias.name) for node in imports if isinstance(node, ast.Import) for alias in node.names}
        names |= {(node, node.module or "") for node in imports if isinstance(node, ast.ImportFrom)}
        for node, name in names:
            assert name not in ("sppbench.train", "sppbench.run.assembly"), file.name
            top = node in tree.body
            assert not (top and name.split(".")[0] in heavy), f"{file.name} imports {name}"
            assert not (top and name.startswith("matplotlib") and file.name != "table_figures.py"), (
                f"{file.name}: {name}"
            )
