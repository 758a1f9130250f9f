"""Every format, read back and set beside the numbers of the Table."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sppbench.study.table.cells import Table, read_table
from sppbench.study.table.formats import in_latex, latex, markdown, terminal, tidy, to_csv, to_json
from sppbench.study.table.notes import notes
from tests.fabricate.runs import MODELS, SEEDS, write_cell, write_run

NAN = {"classes_predicted": 1, "logits_finite": False}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Complete, chance, diverged, incomplete, single, failed and missing cells, and a net that is not published."""
    path = tmp_path / "a_sweep"
    write_cell(path, "efficientnet_bn", 0.001, [33.1, 33.52, 34.0, 32.5, 33.0])
    write_cell(path, "efficientnet_nobn", 0.001, [1.0] * 5)
    write_cell(path, "sn_efficientnet_nomp", 0.1, [1.0] * 5, status="diverged", test=NAN)
    write_cell(path, "sn_efficientnet_nomp", 0.001, [30.1, 30.0])
    write_run(path, "sn_efficientnet_mp", 0.001, 67, 29.0)
    write_run(path, "sn_efficientnet_mp", 0.01, 67, None, "failed")
    write_run(path, "sn_efficientnet_mp", 0.01, 868, None, "interrupted")
    write_cell(path, "ffnn", 0.001, [20.0] * 5)
    return read_table(path)


@pytest.fixture
def digits(tmp_path: Path) -> Table:
    write_cell(tmp_path / "smoke", "sn_efficientnet_mp", 0.01, [90.0, 92.5], overrides=["data=digits"])
    return read_table(tmp_path / "smoke")


def cells_of(line: str) -> list[str]:
    return [value.strip() for value in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_csv(table: Table) -> None:
    frame = pd.read_csv(io.StringIO(to_csv(table)))
    assert len(frame) == len(table.cells)
    assert frame.notna().any(axis=1).all()
    for (_, row), cell in zip(frame.iterrows(), table.cells, strict=True):
        assert (row["model"], row["title"], row["lr"], row["n"]) == (cell.model, cell.title, cell.lr, cell.n)
        expected: dict[str, float | None] = {
            "mean": cell.ours.mean if cell.ours else None,
            "std": cell.ours.std if cell.ours else None,
            "published_mean": cell.published.mean if cell.published else None,
            "published_std": cell.published.std if cell.published else None,
            "difference": cell.comparison.difference if cell.comparison else None,
            "difference_low": cell.comparison.interval[0] if cell.comparison and cell.comparison.interval else None,
            "difference_high": cell.comparison.interval[1] if cell.comparison and cell.comparison.interval else None,
            "difference_df": cell.comparison.df if cell.comparison else None,
            "prediction_low": cell.comparison.prediction[0] if cell.comparison else None,
            "prediction_high": cell.comparison.prediction[1] if cell.comparison else None,
        }
        for key, value in expected.items():
            assert math.isnan(row[key]) if value is None else row[key] == value, (cell.model, cell.lr, key)
        assert cell.verdict is None or row["verdict"] == cell.verdict
    row = frame.set_index(["model", "lr"]).loc["sn_efficientnet_mp", 0.01]
    assert row[["n", "expected", "failed", "unfinished", "missing"]].tolist() == [0, 5, 1, 1, 3]
    assert frame.set_index(["model", "lr"]).loc[("sn_efficientnet_nomp", 0.1), "diverged"] == 5


def test_json(table: Table) -> None:
    def refuse(value: str) -> Any:
        raise AssertionError(f"{value} is no JSON")

    content = json.loads(to_json(table), parse_constant=refuse)
    rows = tidy(table)
    assert len(content["cells"]) == len(rows)
    for cell, read, row in zip(table.cells, content["cells"], rows, strict=True):
        assert {key: read[key] for key in row} == row
        assert [run["accuracy"] for run in read["runs"]] == [run.accuracy for run in cell.runs]
        for run in read["runs"]:
            assert run["path"] == f"{cell.model}/lr={cell.lr:g}/seed={run['seed']}"
    assert content["seeds"] == sorted(SEEDS)
    assert content["devices"] == ["cpu"]
    assert content["versions"] == {"python": ["3.11.7"], "torch": ["2.15.0"]}
    assert "Schuirmann" in content["test"]
    assert content["published"]["n"] == 5
    assert content["notes"] == notes(table)
    statuses = {run["status"] for cell in content["cells"] for run in cell["runs"]}
    assert statuses == {"completed", "diverged", "failed", "interrupted"}
    hashes = {run["config_hash"] for cell in content["cells"] for run in cell["runs"]}
    assert all(re.fullmatch("[0-9a-f]{12}", one) for one in hashes)


def test_markdown(table: Table) -> None:
    lines = markdown(table).splitlines()
    assert lines[0] == r"# a\_sweep"
    starts = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    matrix, details = ([cells_of(line) for line in lines[start - 1 : lines.index("", start)]] for start in starts)
    assert matrix[0] == ["learning rate", *(escaped(title) for title in table.titles.values())]
    assert len(matrix[0]) == len(MODELS) + 2
    assert [row[0] for row in matrix[2:]] == ["0.1", "0.01", "0.001"]
    assert {len(row) for row in matrix} == {len(matrix[0])}
    assert matrix[2][1:] == [
        "missing (1.0 ± 0.0, incomplete, n = 0)",
        "missing (1.2 ± 0.4, incomplete, n = 0)",
        "1.00 ± 0.00 †5 (1.0 ± 0.0, reproduced, n = 5)",
        "missing (1.0 ± 0.0, incomplete, n = 0)",
        "missing (n = 0)",
    ]
    # Squared deviations of 33.1, 33.52, 34, 32.5, 33 from 33.224 sum up to 1.27952, and sqrt(1.27952 / 4) = 0.5656.
    assert matrix[4][2] == "33.22 ± 0.57 (33.5 ± 0.8, reproduced, n = 5)"
    assert matrix[4][4] == "29.00 ± — (29.2 ± 0.5, incomplete, n = 1)"
    assert len(details) == len(table.cells) + 2
    assert {len(row) for row in details} == {8}
    for row, cell in zip(details[2:], table.cells, strict=True):
        assert row[:3] == [f"{cell.lr:g}", escaped(cell.title), f"{cell.n}/{cell.expected}"]
        assert row[7] == (cell.verdict or "—")
        if cell.comparison is not None and cell.comparison.interval is not None:
            numbers = [float(number) for number in re.findall(r"[-+]\d+\.\d+", row[5])]
            assert numbers == pytest.approx([cell.comparison.difference, *cell.comparison.interval], abs=0.00501)
    assert lines[-len(notes(table)) :] == [f"- {escaped(note)}" for note in notes(table)]


def escaped(text: str) -> str:
    return text.replace("_", r"\_")


def test_terminal(table: Table) -> None:
    text = terminal(table)
    lines = text.splitlines()
    assert max(map(len, lines[1:20])) <= 120
    [line] = [line for line in lines if "efficientnet_bn " in line and line.startswith("0.001")]
    # Welch: 0.5656²/5 + 0.8²/5 = 0.19198, df = 7.2, t = 1.888 and so -0.276 ± 1.888 · 0.43815.
    assert " ".join(line.split()) == (
        "0.001 efficientnet_bn 5/5 33.22 ± 0.57 33.5 ± 0.8 -0.28 [-1.10, +0.55] [32.10, 34.90] reproduced"
    )
    for cell in table.cells:
        [line] = [line for line in lines if line.startswith(f"{cell.lr:g} ") and f" {cell.model} " in line]
        assert line.split()[-1] == (cell.verdict or "—")
        assert f" {cell.n}/{cell.expected} " in line
    # Columns are aligned: every verdict begins where the header's does.
    [header] = [line for line in lines if line.startswith("lr ")]
    start = header.index("verdict")
    rows = [line for line in lines[1:22] if line.startswith("0.")]
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in rows)
    assert "traceback.txt" in text
    joined = " ".join(text.split())
    for note in notes(table):
        assert " ".join(note.split()) in joined


def test_without_a_published_table(digits: Table) -> None:
    for text in (terminal(digits), markdown(digits), latex(digits)):
        # 90 and 92.5: mean 91.25, standard deviation 2.5 / sqrt(2) = 1.7678.
        assert re.search(r"91\.25 (±|\$\\pm\$) 1\.77", text)
        assert "reproduced" not in text
        assert "sppbench.data.Digits" in text
    assert "n = 2" in markdown(digits)
    assert json.loads(to_json(digits))["published"] is None
    assert pd.read_csv(io.StringIO(to_csv(digits)))["published_mean"].isna().all()


def test_latex(table: Table) -> None:
    text = latex(table)
    assert text.count(r"\begin{") == text.count(r"\end{") == 3
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert text.isascii(), "what is not ASCII is written as a command"
    assert text.count("{") == text.count("}")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [
        line.removeprefix("    ").removesuffix(r" \\").split(" & ")
        for line in body.splitlines()
        if line.endswith(r"\\")
    ]
    assert {len(row) for row in rows} == {len(table.titles) + 1}
    assert [row[0] for row in rows] == ["0.1", "published", "", "0.01", "published", "", "0.001", "published", ""]
    assert rows[0][3] == r"1.00 $\pm$ 0.00 \dag{}5"
    assert [row[2] for row in rows[6:]] == [r"33.22 $\pm$ 0.57", r"33.5 $\pm$ 0.8", "reproduced (n = 5)"]
    # Every special character of the text outside of commands is escaped.
    plain = re.sub(r"\\[a-z]+(\{[^}]*\})*|\\[\\_%&#$]|\$\\pm\$|[{}]|(?<= )& |%.*usepackage.*", "", text)
    assert not set(plain) & set("\\_%#$^~&<>"), set(plain) & set("\\_%#$^~&<>")
    assert r"a\_sweep" in text
    assert r"90 \% interval" in text


def test_latex_escapes() -> None:
    assert in_latex(r"a_b 5% \x {y} #1 ~ ^ $ & ±—†") == (
        r"a\_b 5\% \textbackslash{}x \{y\} \#1 \textasciitilde{} \textasciicircum{} \$ \& $\pm$---\dag{}"
    )


def test_markdown_escapes(tmp_path: Path) -> None:
    write_run(tmp_path / "s|w*eep", "ffnn", 0.01, 1, 20.0, name="a|b<c>")
    [row] = [line for line in markdown(read_table(tmp_path / "s|w*eep")).splitlines() if line.startswith("| 0.01 | 20")]
    assert cells_of(row) == ["0.01", "20.00 ± — (n = 1)"]


EVIL = "=1+1\n[a](http://b)\x1b[2J"


def test_a_name_of_any_characters_is_only_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep", "ffnn", 0.01, 1, 20.0, name=EVIL)
    table = read_table(tmp_path / "sweep")
    header, row = csv.reader(to_csv(table).splitlines())
    assert row[header.index("model")] == r"'=1+1\n[a](http://b)\x1b[2J"
    for text in (terminal(table), markdown(table), latex(table), to_json(table)):
        assert "\x1b" not in text
    assert sum(r"=1+1\n[a](http://b)\x1b[2J" in line for line in terminal(table).splitlines()) == 1
    assert r"=1+1\\n[a\](http://b)\\x1b[2J" in markdown(table)
    assert json.loads(to_json(table))["cells"][0]["model"] == EVIL


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_spreadsheet_sees_no_formula(tmp_path: Path, start: str) -> None:
    write_run(tmp_path, "ffnn", 0.01, 1, 20.0, name=f"{start}SUM(A1)")
    [row] = csv.DictReader(to_csv(read_table(tmp_path)).splitlines())
    assert row["model"] == row["title"] == f"'{start}SUM(A1)"
    assert row["mean"] == "20.0"
