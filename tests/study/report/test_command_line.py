"""The command: the report of an empty, a partial, a damaged and a complete directory, and what the user must fix."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sppbench.__main__ import main
from sppbench.study.report.content import Content
from sppbench.study.report.page import ReportError, claim_rows, log_report, write_report
from sppbench.study.report.plotly_conversion import Chart
from sppbench.study.table.formats import tidy
from tests.fabricate.histories import ffnn_layers, lose_steps, write_gains, write_signals
from tests.fabricate.runs import write_run
from tests.spp.test_callback import read_wandb
from tests.study.report.reading import Element, read_page
from tests.study.report.test_page import make_content, outputs

Say = Callable[..., tuple[int, str, str]]
__all__ = ["outputs"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """Runs the command in this process; returns its exit status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        try:
            words += [] if "--output" in words else ["--output", str(tmp_path / "report.html")]
            status = main(["report", *words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


def page(tmp_path: Path) -> Element:
    return read_page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_an_empty_directory(tmp_path: Path, say: Say) -> None:
    (tmp_path / "outputs").mkdir()
    status, out, err = say(tmp_path / "outputs")
    assert (status, err) == (0, "")
    assert "0 runs" in out
    found = page(tmp_path)
    assert found.one(id="answer").text == "There are no runs yet."
    assert not found.all(data_verdict=None)
    assert "python -m sppbench.train model=ffnn data=digits" in found.one("section", id="runs").text
    assert "sppbench report" in found.one("section", id="make").text


def test_a_study_of_one_run(tmp_path: Path, say: Say) -> None:
    write_run(tmp_path / "outputs" / "table1", "efficientnet_bn", 0.001, 868, status=None)
    _, out, _ = say(tmp_path / "outputs")
    assert "C1 undecided, C2 undecided" in out
    found = page(tmp_path)
    assert "nothing can be said about the study's claims yet" in found.one(id="answer").text
    assert "undecided" in {badge.attributes["data-verdict"] for badge in found.all(data_verdict=None)}
    assert "python -m sppbench.train -m sweeps=figures" in found.one("section", id="figures").text
    for claim in [article.attributes["id"] for article in found.all("article")]:
        assert "python -m sppbench.train" in found.one("article", id=claim).text


def _write_ffnn(outputs: Path, model: str, seed: int, level: float = 1e-7) -> Path:
    path = write_run(outputs / "figures", model, 0.001, seed, 24.0)
    write_signals(path, lambda layer, depth, epoch, signal: (level * (1 + depth), level))
    write_gains(path, lambda layer, depth, epoch: (1.0, 0.5, 0.99))
    return path


def test_damage_is_said_and_stops_nothing(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppbench.study.report.page.paper", lambda drawing: "data:,")  # takes most of the time
    monkeypatch.setattr("sppbench.study.report.page.chart", lambda drawing: Chart("", 0, ""))  # and this of the rest
    outputs = tmp_path / "outputs"
    for seed in (67, 868, 970):
        _write_ffnn(outputs, "ffnn_bn", seed)
        _write_ffnn(outputs, "ffnn_bn_noaffine", seed, 2e-7)
    write_signals(write_run(outputs / "figures", "ffnn_bn", 0.001, 472, 1.0, "diverged"), lambda *of: (np.nan, np.nan))
    shorter = write_run(outputs / "figures", "ffnn_bn", 0.001, 362, 24.0)
    write_signals(shorter, lambda *of: (1e-7, 1e-7), layers=ffnn_layers()[:-3])
    for file in (_write_ffnn(outputs, "ffnn_bn_noaffine", 472) / "spp.parquet").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    (write_run(outputs / "figures", "ffnn", 0.001, 868, 20.0) / "result.json").write_text("{")
    status, out, err = say(outputs)
    assert (status, err) == (0, "")
    found = page(tmp_path)
    problems = found.one("section", id="problems").text
    for words in (
        "seed=472: ",
        "not finite, the first in epoch 0",
        "seed=362 recorded 26 layers, not 29",
        "ffnn_bn_noaffine/lr=0.001/seed=472",
        "cannot read",
    ):
        assert words in problems
        assert words in out
    names = [figure.attributes["id"] for figure in found.all("figure")]
    assert {"figure1_h512", "figure2_h512", "scale_effect"} <= set(names), "the others are drawn"
    ratio = found.one("article", id="C2").all("tr")
    assert any(row.values and row.values[0] == pytest.approx(0.5) for row in ratio), "three whole pairs are counted"


def test_a_history_with_a_gap_is_said_and_not_averaged(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppbench.study.report.page.paper", lambda drawing: "data:,")  # takes most of the time
    monkeypatch.setattr("sppbench.study.report.page.chart", lambda drawing: Chart("", 0, ""))  # and this of the rest
    outputs = tmp_path / "outputs"
    for seed in (67, 868, 970):
        _write_ffnn(outputs, "ffnn_bn_noaffine", seed, 2e-7)
        _write_ffnn(outputs, "ffnn_bn", seed)
    lacking = outputs / "figures" / "ffnn_bn" / "lr=0.001" / "seed=868"
    lose_steps(lacking)
    status, out, err = say(outputs)
    assert (status, err) == (0, "")
    found = page(tmp_path)
    for name in ("spp.parquet", "batchnorm.parquet"):
        problem = f"{lacking / name} lacks the steps"
        assert problem in out
        assert problem in found.one("section", id="problems").text
    notes = found.one("section", id="figures").all("ul", class_="notes")[0].text
    assert f"not drawn: ffnn_bn, seed 868: {lacking / 'spp.parquet'} lacks the steps" in notes
    captions = {figure.attributes["id"]: figure.one("figcaption").text for figure in found.all("figure")}
    assert "seed 67" in captions["figure2_h512"], "the study's first seed is 868"
    assert f"{lacking / 'spp.parquet'} lacks the steps" in captions["scale_effect"].partition("Left out: ")[2]
    assert f"{lacking / 'batchnorm.parquet'} lacks the steps" in captions["gain_changes"].partition("Left out: ")[2]
    assert "ffnn_bn (seed 868)" in captions["gain_changes"].partition("Missing: ")[2]


def test_a_result_that_disappoints_the_user_is_one_line(tmp_path: Path, say: Say) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "file").touch()
    for arguments, words in (
        ([tmp_path / "nowhere"], "is not a directory"),
        ([tmp_path / "outputs", "--output", tmp_path / "no" / "report.html"], "is not a directory"),
        ([tmp_path / "outputs", "--output", tmp_path], "it is a directory"),
        ([tmp_path / "outputs", "--output", tmp_path / "file" / "report.html"], "is not a directory"),
        ([tmp_path / "outputs", "--wrong"], "unrecognized arguments"),
        ([], "required: DIR"),
    ):
        status, out, err = say(*arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith("sppbench: ")
        assert err.count("\n") == 1
        assert words in err


def test_the_old_page_stays_when_the_new_one_fails(
    tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = make_content(outputs), tmp_path / "report.html"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ReportError, match="No space left"):
        write_report(content, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["report.html"]


def failing(*arguments: object, **keywords: object) -> None:
    raise RuntimeError("latex was not found")


def test_wandb_gets_the_same(tmp_path: Path, outputs: Path) -> None:
    content: Content = make_content(outputs)
    content = dataclasses.replace(content, drawings=content.drawings[1:])
    content.drawings[0].figure.savefig = failing  # type: ignore[method-assign]
    assert log_report(content) == ["bands cannot be drawn: RuntimeError: latex was not found"]
    [run] = (outputs / "wandb").glob("offline-run-*")
    [file] = run.glob("run-*.wandb")
    deadline = time.monotonic() + 30
    while not (logged := read_wandb(file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    [row] = logged
    assert (run / "files" / row["report/stack.path"]).read_bytes().startswith(b"\x89PNG")
    assert "report/bands.path" not in row
    claims = json.loads((run / "files" / row["report/claims.path"]).read_text(encoding="utf-8"))
    rows = [dict(zip(claims["columns"], values, strict=True)) for values in claims["data"]]
    assert rows == claim_rows(content.claims)
    assert [(row["claim"], row["test"], row["verdict"]) for row in rows][1] == ("C2", "h = 512", "fails")
    table = json.loads((run / "files" / row["report/table1.path"]).read_text(encoding="utf-8"))
    [one] = content.tables
    assert one.table is not None
    assert table["columns"] == list(tidy(one.table)[0])
