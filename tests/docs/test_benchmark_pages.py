"""Each table of a benchmark has one place in the documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_benchmark_has_one_place_for_its_table() -> None:
    spec = importlib.util.spec_from_file_location("all_benchmarks", ROOT / "benchmarks" / "all.py")
    assert spec is not None
    assert spec.loader is not None
    benchmarks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmarks)
    pages = [path.read_text(encoding="utf-8") for path in benchmarks.PAGES]
    for name, (script, *_) in benchmarks.COMMANDS.items():
        assert sum(page.count(f"<!-- {name} -->\n`python benchmarks/{script}") for page in pages) == 1, name
