from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sppbench.run.results import Result, ResultError, git_state, read_result

RESULT = Result(
    status="completed",
    model="ffnn",
    data="CIFAR100",
    optimizer="Adam",
    lr=0.001,
    seed=868,
    epochs=20,
    steps=1580,
    test={"accuracy": 25.0, "top5": 50.0, "loss": 3.0},
    val=None,
    diverged_at=None,
    error=None,
    images_per_second=1000.0,
    wall_seconds=10.0,
    device="cpu",
    threads=2,
    versions={"python": "3.11"},
    git=None,
    config_hash="0123456789ab",
)


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == RESULT
    assert json.loads((tmp_path / "result.json").read_text()) == asdict(RESULT)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "completed"}', '{"other": 1}', "[" * 10**5])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ResultError, match=r"cannot read .*result\.json"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("status", "finished"), ("model", 5), ("wall_seconds", "x"), ("wall_seconds", None), ("steps", 1.5)),
        *(("seed", True), ("git", "x"), ("test", []), ("versions", {"torch": None}), ("versions", "x")),
        *(("test", {"loss": "x"}), ("train", {"accuracy": True}), ("git", {"commit": 5}), ("train", [])),
        *(("wall_seconds", float("inf")), ("lr", 10**400), ("images_per_second", float("nan"))),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, field: str, value: object) -> None:
    (tmp_path / "result.json").write_text(json.dumps(asdict(RESULT) | {field: value}))
    with pytest.raises(ResultError, match=rf"cannot read .*result\.json: {field}\b"):
        read_result(tmp_path / "result.json")


def test_stored_results_are_read() -> None:
    files = sorted((Path(__file__).parents[2] / "results").rglob("result.json"))
    assert len(files) > 10
    assert {read_result(file).status for file in files} <= {"completed", "diverged"}


def test_git_state_names_a_commit_of_this_checkout() -> None:
    state = git_state()
    assert state is None or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))
