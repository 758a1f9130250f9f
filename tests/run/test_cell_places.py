"""A place stands for one key and value: it is readable, fits a file system, and no two are the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sppbench.run.cell_places import LONGEST, cell_folders, folder, shown

VALUES = ("a/b", "..", "", " ", "0.5", 0.5, "null", None, "true", True, [1, 2], "[1,2]", {"a": 1}, "ä", "~", "%2F", "%")
LONG = ("x" * 500, "x" * 499 + "y", "/" * 300)


def test_no_two_values_share_a_place() -> None:
    names = [folder("model.key", value) for value in (*VALUES, *LONG)]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isascii()
        assert not set(name) & set("/\\ '\"$*?:<>|")
        assert len(name) <= LONGEST
    for one, other in itertools.combinations(names[-2:], 2):
        assert one.lower() != other.lower()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50, "50"),
        ("digits", "digits"),
        ("a/b", "a/b"),
        (None, "null"),
        (False, "false"),
        ("0.5", '"0.5"'),
        ([1], "[1]"),
    ],
)
def test_what_is_short_can_be_read_back(value: Any, text: str) -> None:
    assert shown(folder("data.root", value)) == f"data.root={text}"


def test_the_order_of_keys_does_not_matter() -> None:
    assert cell_folders({"b": 1, "a.c": 2}) == cell_folders({"a.c": 2, "b": 1}) == "/a.c=2/b=1"
    assert cell_folders({}) == ""
