"""What the README, the pages and the kept table say is what the runs in results/ say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from sppbench.study.table.cells import read_table
from sppbench.study.table.formats import FORMATS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refresh(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the script defines, as if it were run."""
    monkeypatch.syspath_prepend(ROOT / "results")
    return runpy.run_path(str(ROOT / "results" / "refresh.py"))


def test_the_numbers_of_the_pages_are_those_of_the_kept_runs(refresh: dict[str, Any]) -> None:
    blocks, pages = refresh["written"](), refresh["pages"]()
    assert ROOT / "README.md" in pages
    used = {name for text in pages.values() for _, name, _ in refresh["BLOCK"].findall(text)}
    assert used == set(blocks)
    for path, text in pages.items():
        assert refresh["refreshed"](text, blocks) == text, f"{path}: python results/refresh.py writes it anew"


def test_the_costs_in_the_readme_are_those_of_the_benchmark(refresh: dict[str, Any]) -> None:
    text, costs = (ROOT / "README.md").read_text(encoding="utf-8"), refresh["measured"]()
    for tool, cost in costs.items():
        assert f"| {cost} |" in next(line for line in text.splitlines() if line.startswith(f"| {tool}"))
    assert refresh["priced"](text, costs) == text, "python results/refresh.py writes it anew"


def test_no_kept_run_names_a_place_of_the_machine_that_made_it() -> None:
    configs = list((ROOT / "results").rglob("config.yaml"))
    assert len(configs) > 100
    assert [file for file in configs if re.search(r"^ *root: /", file.read_text(encoding="utf-8"), re.MULTILINE)] == []


@pytest.mark.parametrize("sweep", ["table1", "table3"])
def test_the_kept_table_is_of_the_kept_runs(sweep: str) -> None:
    table = read_table(ROOT / "results" / sweep)
    for name, suffix in (("markdown", "md"), ("csv", "csv"), ("latex", "tex"), ("json", "json")):
        kept = (ROOT / "results" / sweep / f"table.{suffix}").read_text(encoding="utf-8")
        assert kept == FORMATS[name](table) + "\n", "python results/refresh.py writes it anew"
