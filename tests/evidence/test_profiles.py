"""What the runs of a net recorded, by seed; see also the tests of the figures that are made of it."""

from __future__ import annotations

from sppbench.evidence.profiles import unusual


def test_the_usual_kind_is_the_most_frequent_and_then_the_first() -> None:
    assert unusual({1: "a", 2: "b", 3: "b"}) == ("b", [1])
    assert unusual({1: "a", 2: "b", 3: "b", 4: "a"}) == ("a", [2, 3])
    assert unusual({1: "a"}) == ("a", [])
    assert unusual({}) == (None, [])
