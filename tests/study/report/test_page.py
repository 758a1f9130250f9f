"""The page says what the files say, and what is missing, and loads nothing."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from sppbench.evidence.selection import read_evidence
from sppbench.study.figures.drawing import Drawing, Reading
from sppbench.study.report.content import Content, StudyTable, odd_runs
from sppbench.study.report.page import number, render, write_report
from sppbench.study.report.run_findings import findings
from sppbench.study.report.run_list import departures, machines, nets, rows, settings
from sppbench.study.table.cells import read_table
from tests.fabricate import report as fabricate
from tests.fabricate.histories import ffnn_layers, write_signals
from tests.fabricate.runs import write_cell, write_run
from tests.study.report.reading import Element, read_page

HOSTILE = "<script>alert('x')</script>"
# What a directory may be called, and an error may say; the last is a byte that is not UTF-8, as Python reads it.
NAMES = (HOSTILE, '"onload="alert(1)', "'><img src=x>", "two\nlines\r", "\x1b[31mred\x07", "{{ 1 + 1 }}", "\udc80")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Runs of two nets in two sweeps; one that failed with an error that looks like a script."""
    path = tmp_path / "outputs"
    write_cell(path / "table1", "efficientnet_bn", 0.001, [33.0, 33.5, 34.0, 32.5, 33.125], curve=[10.0, 33.0])
    write_run(path / "table1", "sn_efficientnet_mp", 0.1, 868, None, "failed", error=f"ValueError: {HOSTILE}")
    git = {"commit": "0123456789abcdef", "dirty": True}
    test = {"loss": 3.0123456789, "classes_predicted": 100, "logits_finite": True}
    write_run(path / "figures", "ffnn_bn", 0.001, 67, 24.123456, test=test, git=git, steps=1580)
    write_run(path / "figures", "ffnn_bn", 0.001, 868, 1.0, overrides=("trainer.max_epochs=3",), device="cuda")
    return path


@cache
def _drawings() -> tuple[Drawing, ...]:
    return fabricate.profiles("figure3", 20), fabricate.bands(), fabricate.stack()


def make_content(outputs: Path) -> Content:
    evidence = read_evidence(outputs)
    # To draw and to render them takes most of the time, and nothing here looks at what is on paper.
    drawings = tuple(dataclasses.replace(drawing, figure=Figure((1, 1))) for drawing in _drawings())
    table = read_table(outputs / "table1") if (outputs / "table1").is_dir() else None
    tables = (StudyTable("table1", "Table 1", table, "No table."),)
    notes = ("figure5 lacks a run",)
    return Content(evidence, (), 0, True, fabricate.claims(), tables, drawings, notes, (), {})


def page_of(content: Content, path: Path) -> Element:
    return read_page(render(content, path))


def test_poster_and_thesis_are_cited_as_in_the_citation_file(outputs: Path, tmp_path: Path) -> None:
    page = page_of(make_content(outputs), tmp_path / "report.html")
    poster, thesis = yaml.safe_load((Path(__file__).parents[3] / "CITATION.cff").read_text())["references"]
    links = {link.attributes["href"] for link in page.all("a", href=None)}
    assert {thesis["url"], thesis["repository-code"]} <= links
    text = page.text
    assert poster["title"] in text
    assert f"“{thesis['title']}”" in text


def test_verdicts_come_first_in_words_with_exact_numbers(outputs: Path, tmp_path: Path) -> None:
    content = make_content(outputs)
    page = page_of(content, tmp_path / "report.html")
    assert [section.attributes["id"] for section in page.all("section")][:3] == ["claims", "table1", "figures"]
    assert "1 holds (C1), 1 fails (C2) and 1 is undecided (C3)" in page.one(id="answer").text
    assert "C2 fails (ratio on / off; h = 512: 0.812 [0.7, 0.91])" in page.one(id="answer").text
    for claim in content.claims:
        article = page.one("article", id=claim.id)
        assert article.one("h3").text.endswith(claim.verdict)
        assert claim.statement in article.text
        for part in claim.parts:
            row = article.one("tr", data_part=part.name)
            interval = list(part.interval or ())
            assert row.values == ([part.value, *interval] if part.value is not None else interval)
            assert row.one(data_verdict=part.verdict)
            assert str(part.n) in [cell.text for cell in row.all("td")]
    assert "needs ffnn_bn_h100, seed 67" in page.one("article", id="C3").text
    assert "A detail." in page.one("article", id="C2").text
    assert page.one("article", id="C2").one("details").one("tr", data_part="width"), "context is apart"


def test_runs_are_those_of_the_files(outputs: Path, tmp_path: Path) -> None:
    page = page_of(make_content(outputs), tmp_path / "report.html")
    found = page.all("tr", data_run=None)
    assert len(found) == 8
    for row in found:
        path = outputs / row.attributes["data-run"]
        result = json.loads((path / "result.json").read_text())
        assert result["status"] in row.text
        if result["test"]:
            assert row.one(data_column="accuracy").values == [result["test"]["accuracy"]]
            loss = result["test"].get("loss")
            assert row.one(data_column="test_loss").values == ([loss] if loss is not None else [])
        link = row.one("a").attributes["href"]
        assert (tmp_path / unquote(link)).resolve() == path.resolve()
    [special] = page.all("tr", data_run="figures/ffnn_bn/lr=0.001/seed=67")
    assert "0123456*" in special.text
    assert "1580" in special.text
    # From another place the links differ.
    elsewhere = tmp_path / "a b" / "deep"
    elsewhere.mkdir(parents=True)
    [row, *_] = rows(read_evidence(outputs).runs, outputs, elsewhere / "report.html")
    assert row.link.startswith("../../outputs/")


def test_the_table_stands_beside_the_published_one(outputs: Path, tmp_path: Path) -> None:
    content = make_content(outputs)
    [one] = content.tables
    assert one.table is not None
    page = page_of(content, tmp_path / "report.html")
    cell = one.table.cell("efficientnet_bn", 0.001)
    assert cell is not None
    assert cell.ours is not None
    assert cell.comparison is not None
    assert cell.comparison.interval is not None
    shown = page.one("td", data_cell="efficientnet_bn/0.001")
    comparison = (cell.comparison.difference, *cell.comparison.interval, *cell.comparison.prediction)
    assert shown.values == [cell.ours.mean, cell.ours.std, 33.5, 0.8, *comparison]
    assert cell.ours.mean == pytest.approx(33.225)
    assert shown.one(data_verdict="reproduced")
    assert "missing" in page.one("td", data_cell="efficientnet_nobn/0.1").text


def test_figures_have_their_captions_matches_and_a_form_for_print(outputs: Path, tmp_path: Path) -> None:
    content = make_content(outputs)
    first, *others = content.drawings
    readings = (
        Reading("h = 100", "RMSE", 0.056789, (0.05, 0.06), 3, True),
        Reading("h = 512", "RMSE", None, None, 0, False, "no run"),
    )
    content = dataclasses.replace(content, drawings=(dataclasses.replace(first, readings=readings), *others))
    page = page_of(content, tmp_path / "report.html")
    best, other = page.one("figure", id="figure3").one("details").one("tbody").all("tr")
    assert best.values == [0.056789, 0.05, 0.06]
    assert "best" in best.text
    assert other.values == []
    assert "best" not in other.text
    for drawing in content.drawings:
        figure = page.one("figure", id=drawing.name)
        assert figure.one(id=f"plot-{drawing.name}")
        assert drawing.caption in figure.one("figcaption").text
        assert figure.one("img").attributes["src"].startswith("data:image/png;base64,")
    matches = [row.text.split()[-1] for row in page.one("figure", id="figure3").all("tbody")[0].all("tr")]
    assert matches == ["yes", "no", "known"]
    assert "figure5 lacks a run" in page.one("section", id="figures").text


SOURCES = (
    "https://research.jku.at/en/publications/designing-normalizer-free-efficientnets-designing-normalizer-free/",
    "https://github.com/PDewyse/MT_Normalizer_free_Neural_Nets",
)


def test_nothing_is_loaded_and_nothing_breaks_out(outputs: Path, tmp_path: Path) -> None:
    content = dataclasses.replace(make_content(outputs), problems=(f"{HOSTILE} is damaged",))
    html = render(content, tmp_path / "report.html")
    assert HOSTILE not in html
    page = read_page(html)
    assert HOSTILE in page.one("section", id="problems").text
    assert HOSTILE in page.one("tr", data_run="table1/sn_efficientnet_mp/lr=0.1/seed=868").text
    for element in page.all():
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            target = element.attributes.get(key, "#")
            if element.tag == "a" and target in SOURCES:  # followed only by who clicks on it
                continue
            assert target.startswith(("#", "data:")) or "://" not in target, f"{element.tag} loads {target[:80]}"
    assert not page.all("link")
    assert "://" not in "".join("".join(style.content) for style in page.all("style"))
    assert "default-src 'none'" in page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    assert html.count("plotly.js v") == 1


@pytest.mark.parametrize("name", NAMES)
def test_names_and_messages_of_any_characters_are_text(outputs: Path, tmp_path: Path, name: str) -> None:
    write_run(outputs / "table1", "sn_efficientnet_mp", 0.1, 67, None, "failed", error=name)
    path = outputs / f"sweep {name.replace('/', '')}"
    (outputs / "table1").rename(path)
    content = make_content(outputs)
    drawing = dataclasses.replace(content.drawings[1], title=name, caption=name)
    content = dataclasses.replace(
        content, problems=(name,), departures={name: [name]}, figure_notes=(name,), drawings=(drawing,)
    )
    write_report(content, tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text(encoding="utf-8"))
    shown = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    assert {one.tag for one in page.all()} == {one.tag for one in page_of(make_content(path.parent), path).all()}
    assert not [key for one in page.all() for key in one.attributes if key.startswith("on")]
    for section in ("problems", "figures", "runs"):
        assert shown in page.one("section", id=section).text
    links = [
        unquote(row.one("a").attributes["href"], errors="surrogateescape") for row in page.all("tr", data_run=None)
    ]
    assert len([link for link in links if (tmp_path / link).parent == path / "sn_efficientnet_mp" / "lr=0.1"]) == 2
    assert all((tmp_path / link).is_dir() for link in links)


def test_a_figure_that_fails_is_a_note_and_the_others_are_shown(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_content(outputs)
    first, second, third = content.drawings

    def failing(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("latex was not found")

    first.figure.savefig = failing  # type: ignore[method-assign]
    broken = dataclasses.replace(second, panels=(dataclasses.replace(second.panels[0], y_scale="other"),))  # type: ignore[arg-type]
    page = page_of(dataclasses.replace(content, drawings=(first, broken, third)), tmp_path / "report.html")
    notes = page.one("section", id="figures").all("ul", class_="notes")[0].text
    assert "figure3 cannot be drawn on paper: RuntimeError: latex was not found" in notes
    assert "bands cannot be drawn as an interactive figure: ValueError: " in notes
    shown = {figure.attributes["id"]: figure for figure in page.all("figure")}
    assert list(shown) == ["figure3", "bands", "stack"]
    assert {name: bool(figure.all(id=f"plot-{name}")) for name, figure in shown.items()} == {
        "figure3": True,
        "bands": False,
        "stack": True,
    }
    assert {name: len(figure.all("img")) for name, figure in shown.items()} == {"figure3": 0, "bands": 1, "stack": 1}


@pytest.mark.parametrize("verdict", ["holds", "fails", "undecided"])
def test_verdicts_do_not_depend_on_color(outputs: Path, tmp_path: Path, verdict: str) -> None:
    page = page_of(make_content(outputs), tmp_path / "report.html")
    assert {badge.text.split()[-1] for badge in page.all(data_verdict=verdict)} == {verdict}


def test_settings_and_versions_say_where_they_differ(outputs: Path) -> None:
    runs = read_evidence(outputs).runs
    of_key = {setting.key: setting for setting in settings(runs)}
    assert [(value, n) for value, n, _ in of_key["trainer.max_epochs"].values] == [("20", 7), ("3", 1)]
    assert of_key["trainer.max_epochs"].values[1][2] == "figures/ffnn_bn (1)"
    assert not of_key["data.batch_size"].differs
    assert not any(key.startswith("model.") for key in of_key)
    assert {setting.key for setting in nets(runs)["ffnn_bn"]} >= {"hidden_features", "affine"}
    devices = {setting.key: setting for setting in machines(runs)}["device"]
    assert [(value, n) for value, n, _ in devices.values] == [("cpu", 7), ("cuda", 1)]
    found = departures(runs, {"ffnn_bn": {"trainer.max_epochs": 20}, "efficientnet_bn": {"trainer.max_epochs": 20}})
    assert found == {"trainer.max_epochs is 3": [str(outputs / "figures/ffnn_bn/lr=0.001/seed=868")]}


def test_odd_recordings_are_named(tmp_path: Path) -> None:
    def statistics(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        return 1.0, 1.0

    def dead(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        return (np.nan if epoch == 9 else 1.0), 1.0

    paths = {seed: write_run(tmp_path / "figures", "ffnn_bn", 0.001, seed, 20.0) for seed in (1, 2, 3, 4, 5)}
    for seed in (1, 2):
        write_signals(paths[seed], statistics)
    write_signals(paths[3], dead)
    write_signals(paths[4], statistics, layers=ffnn_layers()[:-1])
    write_signals(paths[5], statistics)
    for part in (paths[5] / "spp.parquet").iterdir():
        part.write_bytes(part.read_bytes()[:100])
    nan, shorter, damaged = sorted(odd_runs(read_evidence(tmp_path)), key=lambda text: text.partition("seed=")[2])
    assert "seed=3: " in nan
    assert "not finite, the first in epoch 9" in nan
    assert "seed=4 recorded 28 layers, not 29" in shorter
    assert "seed=5" in damaged


def test_what_is_wrong_in_a_run_is_on_the_page(outputs: Path, tmp_path: Path) -> None:
    def dying(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        """A gradient that falls by half a power of ten a layer, towards the input."""
        return (0.0, 10.0 ** (0.5 * (depth - 28))) if signal == "gradient" else (0.5, 0.5)

    healthy, dead = (outputs / "figures" / "ffnn_bn" / "lr=0.001" / f"seed={seed}" for seed in (67, 868))
    write_signals(healthy, lambda layer, depth, epoch, signal: (0.5, 0.5))
    write_signals(dead, dying)
    evidence = read_evidence(outputs)
    found = findings(evidence.runs, evidence.directory)
    name = "figures/ffnn_bn/lr=0.001/seed=868"
    assert {run: [(one.kind, one.signal) for one in of_run] for run, of_run in found.items()} == {
        name: [("vanishing", "gradient")]
    }
    assert found[name][0].number == pytest.approx(10.0**-12)  # eight times three layers
    content = dataclasses.replace(make_content(outputs), findings=found)
    section = page_of(content, tmp_path / "report.html").one("section", id="findings")
    assert found[name][0].text in section.text
    assert "He et al. 2015" in section.text
    assert "Nothing is wrong" in page_of(make_content(outputs), tmp_path / "report.html").one(id="findings").text


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.00000123456, ".4g", "1.235e\N{MINUS SIGN}6"),
        (-0.5, "+.2f", "\N{MINUS SIGN}0.50"),
        (33.226, ".2f", "33.23"),
        (1e-300, ".4g", "1e\N{MINUS SIGN}300"),
    ],
)
def test_rounded_numbers_carry_the_exact_ones(value: float, form: str, text: str) -> None:
    element = read_page(str(number(value, form)))
    assert element.text == text
    assert element.values == [value]
    assert number(None) == "—"
    assert read_page(str(number(float("nan")))).text == "not finite"
