"""The page of a user's own runs: they come first, also while they train, wherever they are."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from sppbench.study.report.answers import HEADLINE_FIGURE
from sppbench.study.report.content import gather
from sppbench.study.report.page import render
from tests.commands import Say, saying
from tests.fabricate.histories import write_signals
from tests.fabricate.runs import write_cell, write_run
from tests.study.report.reading import Element, read_page
from tests.study.report.test_page import make_content, outputs

__all__ = ["outputs"]
say = saying("report")
DIGITS = ("data=digits", "spp=every_step")


def _moment(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
    return 1.0 + depth, 1.0


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """``outputs/demo``, a finished run of a net that is of no study, with its signals."""
    made = write_run(tmp_path / "made", "ffnn", 0.01, 868, 61.25, curve=[30.0, 55.5], overrides=DIGITS, name="mynet")
    write_signals(made, _moment, epochs=(0, 1), batchnorm=False)
    (tmp_path / "outputs").mkdir()
    return made.rename(tmp_path / "outputs" / "demo")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr("sppbench.study.report.run_pages._figures", lambda run: [])
    monkeypatch.setattr("sppbench.study.report.page.draw_learning", lambda pages: None)


@contextmanager
def training(run: Path) -> Iterator[None]:
    """A process is at work on the run, of which there is no result yet."""
    (run / "result.json").unlink(missing_ok=True)
    owner = {"host": socket.gethostname(), "pid": 1, "started": time.time()}
    (run / ".owner").write_text(json.dumps(owner))
    with FileLock(run / ".lock"):
        yield
    (run / ".owner").unlink()


def page(path: Path) -> Element:
    return read_page(path.read_text(encoding="utf-8"))


def test_the_page_of_one_run_is_about_that_run(demo: Path, tmp_path: Path, say: Say) -> None:
    file = tmp_path / "report.html"
    for name in ("spp_epoch=0.png", "spp_epoch=1.png", "spp_heatmap_gradient.png"):  # as a run draws them
        Image.new("RGB", (9, 9), "red").save(demo / name)
    status, out, err = say(tmp_path / "outputs", "--output", file)
    assert (status, err) == (0, "")
    assert "1 run\n" in out
    found = page(file)
    assert [section.attributes["id"] for section in found.all("section")][:2] == ["own", "runs"]
    assert found.one(id="answer").text == "1 run: 1 completed. Its test accuracy is 61.25 % (demo)."
    article = found.one("article", id="run-demo")
    assert "mynet, learning rate 0.01, seed 868: completed" in article.text
    assert article.one(class_="scores").values[0] == 61.25
    pictures = [image.attributes["src"] for image in article.all("img")]
    assert len(pictures) == 2
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert Image.open(BytesIO(b64decode(pictures[0].partition(",")[2]))).size == (9, 9)
    assert found.one(id="learning")
    assert not found.all(data_verdict=None), "nothing is said about claims that it has nothing to do with"
    assert file.stat().st_size < 1_000_000
    assert say(demo, "--output", file)[0] == 0
    assert page(file).one("article", id="run-demo"), "the directory itself may be a run"


def test_own_runs_come_before_the_study_whose_headline_figure_comes_first(
    demo: Path, outputs: Path, tmp_path: Path, without_figures: None
) -> None:
    content = make_content(outputs)
    first, *others = content.drawings
    content = dataclasses.replace(content, drawings=(*others, dataclasses.replace(first, name=HEADLINE_FIGURE)))
    found = read_page(render(dataclasses.replace(content, own=gather(demo).own, owned=1), tmp_path / "report.html"))
    ids = [section.attributes["id"] for section in found.all("section")]
    assert ids[:4] == ["own", "claims", "table1", "figures"]
    study = found.one("section", id="claims")
    assert study.one("figure").attributes["id"] == HEADLINE_FIGURE
    named = [one.attributes.get("id") for one in study.all() if one.tag in ("figure", "article")]
    assert named[0] == HEADLINE_FIGURE
    assert "C2 fails" in study.text


def test_whose_runs_they_are(demo: Path, tmp_path: Path, without_figures: None) -> None:
    write_cell(tmp_path / "outputs" / "table1", "efficientnet_bn", 0.001, [33.0])
    write_run(tmp_path / "outputs" / "runs", "efficientnet_bn", 0.001, 1, 34.0)
    content = gather(tmp_path / "outputs")
    assert sorted(page.name for page in content.own) == ["demo", "runs/efficientnet_bn/lr=0.001/seed=1"]
    assert content.studied
    assert not gather(demo).studied


def test_the_table_of_the_thesis_stands_alone(tmp_path: Path, without_figures: None) -> None:
    write_cell(tmp_path / "outputs" / "table3", "cnn", 0.001, [20.0, 21.0, 22.0])
    content = gather(tmp_path / "outputs")
    assert (content.studied, content.own) == (False, ())
    found = read_page(render(content, tmp_path / "report.html"))
    assert "Table 3 of the thesis" in found.one("nav").text
    cell = found.one("section", id="table3").one("td", data_cell="cnn/0.001")
    assert cell.values == [21.0, 1.0]
    assert "published" not in cell.text


def test_a_run_that_is_still_training_says_so(
    demo: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.html"
    with training(demo):
        assert "1 still training" in say(tmp_path / "outputs", "--output", file)[1]
    article = page(file).one("article", id="run-demo")
    assert "still training: 2 of 20 epochs are over" in article.text
    assert article.one(class_="scores").text.startswith("validation accuracy in epoch 1: 55.5 %")
    assert len(article.all("img")) == 2
    monkeypatch.setattr("sppbench.study.report.run_pages._figures", lambda run: [])  # not drawn again
    content = gather(tmp_path / "outputs")
    assert "ended without a result, for example because it was killed" in content.own[0].status


def test_the_page_is_written_anew_until_all_runs_have_ended(
    demo: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, without_figures: None
) -> None:
    file, pages, result = tmp_path / "report.html", [], (demo / "result.json").read_text()
    under_way = training(demo)
    under_way.__enter__()

    def sleep(seconds: float) -> None:
        pages.append((seconds, file.read_text(encoding="utf-8")))
        if len(pages) == 2:
            under_way.__exit__(None, None, None)
            (demo / "result.json").write_text(result)

    monkeypatch.setattr("sppbench.study.report.page.time.sleep", sleep)
    status, out, err = say(tmp_path / "outputs", "--output", file, "--every", "60")
    assert (status, err) == (0, "")
    assert out.count("1 still training") == 2
    assert [seconds for seconds, _ in pages] == [60, 60, 60], "between two cells of a sweep nothing is under way"
    assert ['http-equiv="refresh" content="60"' in text for _, text in pages] == [True, True, False]
    assert "completed" in page(file).one("article", id="run-demo").text


def test_ctrl_c_while_it_waits_is_one_line(
    demo: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, without_figures: None
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sppbench.study.report.page.time.sleep", interrupted)
    with training(demo):
        status, _, err = say(tmp_path / "outputs", "--output", tmp_path / "report.html", "--every", "60")
    assert (status, err) == (130, "sppbench: interrupted\n")
    assert say(tmp_path, "--every", "0")[0] == 2
    assert say(tmp_path, "--every", "soon")[0] == 2


def test_what_is_odd_about_a_run_stands_beside_it(demo: Path, tmp_path: Path, say: Say, without_figures: None) -> None:
    write_run(tmp_path / "outputs" / "x", "ffnn", 0.1, 1, None, "failed", overrides=DIGITS, error="no memory")
    test = {"logits_finite": False}
    write_run(tmp_path / "outputs" / "x", "ffnn", 0.1, 2, 10.0, "diverged", test=test, overrides=DIGITS)
    for file in (demo / "spp.parquet").iterdir():
        file.write_bytes(b"nothing")
    say(tmp_path / "outputs", "--output", tmp_path / "report.html")
    found = page(tmp_path / "report.html")
    of_run = {
        article.attributes["id"]: [
            line.text for notes in article.all(class_="notes findings") for line in notes.all("li")
        ]
        for article in found.all("article")
    }
    assert of_run["run-x-ffnn-lr=0.1-seed=1"] == ["no memory"]
    assert of_run["run-x-ffnn-lr=0.1-seed=2"][:2] == [
        "diverged: the loss of step 3 is not finite",
        "it predicts NaN",
    ]
    assert "spp.parquet" in of_run["run-demo"][0]
    assert "3 of them" in found.one(id="answer").text
