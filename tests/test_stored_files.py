"""Files that others may have written are read within limits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from sppbench.errors import UserError
from sppbench.stored_files import LARGEST, read_text, read_yaml


def test_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("\ufeffbase: &b {lr: 1.0e-05, day: 2020-01-01}\nnet: {<<: *b, name: '${x}'}\n")
    assert read_yaml(file)["net"] == {"lr": 1e-5, "day": "2020-01-01", "name": "${x}"}


LETTERS = "abcdefghij"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in pairwise(LETTERS)
)
MERGES = BOMB.replace("[1, 1, 1, 1, 1, 1, 1, 1, 1]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, r"its aliases \(\*\) make it more than 100,000 values"),
        (MERGES, r"its aliases \(\*\) make it more than 100,000 values"),
        ("a: &a [*a]", "its aliases"),
        ("- " * 100_000, "exceeded maximum nesting depth"),
        ("a: " + "x" * LARGEST, "it has more than 4,000,000 bytes"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [", "while parsing"),
        ("", "it is not a mapping of keys to values"),
        ("- 1", "it is not a mapping of keys to values"),
        (b"\xff\xfe", "can't decode byte"),
        (None, "No such file"),
    ],
    ids=["lists", "merges", "endless", "deep", "long", "code", "broken", "empty", "list", "bytes", "missing"],
)
def test_what_is_no_plain_yaml_or_too_much(tmp_path: Path, text: str | bytes | None, reason: str) -> None:
    file = tmp_path / "a.yaml"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=f"^cannot read {file}: .*{reason}") as refusal:
        read_yaml(file)
    assert "\n" not in str(refusal.value)


def test_the_size_is_looked_at_before_the_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with file.open("wb") as opened:
        opened.truncate(10**12)  # sparse
    with pytest.raises(ValueError, match="it has more than"):
        read_text(file)
