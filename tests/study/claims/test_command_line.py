"""What a user sees who types `sppbench claims ...`: output, files and exit status."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sppbench.evidence.selection import read_evidence
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.claims.formats import FORMATS, terminal
from sppbench.study.claims.judge import judge
from tests.commands import Say, saying
from tests.fabricate.claims import CONSTANT, cell, rules

say = saying("claims")


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    path = tmp_path / "outputs"
    cell(path / "table1", "efficientnet_nobn", 0.001, [1.0], test=CONSTANT, overrides=["spp=none"])
    cell(path / "table1", "sn_efficientnet_mp", 0.001, [29.0, 30.0, 29.5], overrides=["spp=none"])
    return path


def test_all_claims_are_printed_within_110_columns(outputs: Path, say: Say) -> None:
    status, out, err = say(outputs)
    assert (status, err) == (0, "")
    for number in range(1, 8):
        assert f"\nC{number}  UNDECIDED  " in f"\n{out}"
    assert "efficientnet_nobn at lr 0.001" in out
    words = [line for line in out.splitlines() if len(line) > 110]
    assert all(len(line.split()) == 1 for line in words), "only a path or a command may be wider"


@pytest.mark.parametrize("name", list(FORMATS))
def test_any_format_is_printed_and_written(outputs: Path, say: Say, tmp_path: Path, name: str) -> None:
    file = tmp_path / "new" / "claims"
    status, out, _ = say(outputs, "--format", name, "--output", file)
    assert status == 0
    assert out == file.read_text() == FORMATS[name](judge(read_evidence(outputs))) + "\n"
    assert [path.name for path in file.parent.iterdir()] == ["claims"]


def test_json_has_everything(outputs: Path, say: Say) -> None:
    content = json.loads(say(outputs, "--format", "json")[1])
    claims = judge(read_evidence(outputs))
    assert content == json.loads(json.dumps([asdict(claim) | {"verdict": claim.verdict} for claim in claims]))


ODD = Claim(
    "C9",
    "A | claim.",
    (
        Part("one", "q", 0.5, (0.25, 0.75), 3, "≤ 1", "holds", details=("said",)),
        Part("two", "q", float("nan"), None, 0, "≤ 1", "undecided", "needs a run"),
        Part("three", "q", None, None, 0, "≤ 1", "undecided", "needs a run", ("said",), decides=False),
    ),
    "nowhere",
)


def test_a_reader_finds_value_interval_and_what_is_missing() -> None:
    text = terminal([ODD])
    assert "C9  UNDECIDED  A | claim." in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "one 0.5 [0.25, 0.75] n = 3 holds" in lines
    assert lines.count("! needs a run") == 1, "what was said is not repeated"
    assert lines.count("! as above") == 1
    assert lines.count("- said") == 1
    assert "Context: q. Holds if ≤ 1." in lines


def test_markdown_escapes_and_json_has_no_nan() -> None:
    text = FORMATS["markdown"]([ODD])
    assert "| C9 | undecided | A \\| claim. |" in text
    assert "| one | q | 0.5 [0.25, 0.75] | 3 | ≤ 1 | holds | — |" in text
    assert json.loads(FORMATS["json"]([ODD]))[0]["parts"][1]["value"] is None


def test_rules_of_one_s_own(outputs: Path, say: Say, tmp_path: Path) -> None:
    strict = rules(tmp_path / "strict.yaml", claims__C3__accuracy_above=29.2)
    assert "C3  FAILS" in say(outputs, "--rules", strict)[1]
    broken = rules(tmp_path / "broken.yaml", claims__C3__accuracy_above=None)
    status, out, err = say(outputs, "--rules", broken)
    assert (status, out) == (2, "")
    assert err == f"sppbench: cannot read {broken}: it has no key claims.C3.accuracy_above\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is not a directory"),
        ([".", "--format", "pdf"], "--format"),
        ([], "DIR"),
        ([".", "--rules", "nowhere.yaml"], "cannot read nowhere.yaml"),
        ([".", "--output", "/dev/null/claims"], "cannot write /dev/null/claims"),
    ],
)
def test_what_the_user_must_mend(
    arguments: list[str], words: str, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = say(*arguments)
    assert status == 2
    assert err.startswith("sppbench: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_damaged_run_is_named_and_the_others_are_judged(outputs: Path, say: Say) -> None:
    damaged = outputs / "table1" / "efficientnet_nobn" / "lr=0.001" / "seed=868" / "result.json"
    damaged.write_text("{")
    status, out, err = say(outputs)
    assert status == 0
    assert "C5  UNDECIDED" in out
    assert err.startswith("sppbench: not counted: ")
    assert str(damaged) in err


def test_an_empty_directory_is_judged_without_a_word_of_error(tmp_path: Path, say: Say) -> None:
    status, out, err = say(tmp_path)
    assert (status, err) == (0, "")
    assert out.count("UNDECIDED") == 7
