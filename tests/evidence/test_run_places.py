"""Runs are found at any place, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sppbench.evidence.run_places import find_runs, place_of
from sppbench.evidence.selection import read_evidence
from tests.fabricate.runs import write_run


def test_runs_are_found_in_folders_of_any_name(tmp_path: Path) -> None:
    made = write_run(tmp_path / "elsewhere", "ffnn", 0.001, 868, 20.0)
    places = ("outputs/demo", "outputs/mine/a/b/c", "outputs/runs/ffnn/hidden_features=50", "outputs")
    for place in places:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for file in ("config.yaml", "result.json"):
            (tmp_path / place / file).write_bytes((made / file).read_bytes())
    assert find_runs(tmp_path / "outputs") == sorted(tmp_path / place for place in places)
    assert [run.accuracy for run in read_evidence(tmp_path / "outputs" / "demo").runs] == [20.0]
    (tmp_path / "outputs/demo/result.json").write_text("{")
    (problem,) = read_evidence(tmp_path / "outputs" / "demo").problems
    assert "outputs/demo" in problem


def test_files_of_the_same_names_make_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep", "ffnn", 0.001, 868, 20.0)
    others = {
        "other/config.yaml": "name: chart\nport: 80\n",
        "other/result.json": json.dumps({"status": "ok"}),
        "binary/config.yaml": "\x00",
        # W&B's copy of a run's own, Hydra's and Lightning's.
        f"{run.relative_to(tmp_path)}/wandb/offline-run-1/files/config.yaml": (run / "config.yaml").read_text(),
        ".hydra/config.yaml": (run / "config.yaml").read_text(),
    }
    for name, content in others.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert find_runs(tmp_path) == [run]


@pytest.mark.parametrize(
    ("path", "name", "place"),
    [
        ("/out/table1/ffnn/lr=0.001/seed=868", "ffnn", ("table1", "ffnn/lr=0.001/seed=868")),
        ("/out/table1/ffnn/lr=0.001/seed=868", "renamed", ("table1", "ffnn/lr=0.001/seed=868")),
        ("/out/s/a/b/lr=1/seed=1", "a/b", ("s", "a/b/lr=1/seed=1")),
        ("/out/s/a=b/lr=1", "a=b", ("s", "a=b/lr=1")),
        ("/out/runs/ffnn/model.depth=2", "ffnn", ("runs", "ffnn/model.depth=2")),
        ("/out/demo", "ffnn", ("out", "demo")),
        ("/demo", "ffnn", ("", "demo")),
    ],
)
def test_a_place_names_the_sweep(path: str, name: str, place: tuple[str, str]) -> None:
    assert place_of(Path(path), name) == (place[0], Path(place[1]))
