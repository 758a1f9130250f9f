"""Text that others wrote does nothing but be read."""

from __future__ import annotations

import pytest

from sppbench.study.common.plain_text import in_markdown, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("figures/ffnn, γ² at ½: 3·10", "figures/ffnn, γ² at ½: 3·10"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07\x00", r"\x1b[31mred\x07\x00"),
        ("right\u202eleft\u2028line", r"right\u202eleft\u2028line"),
        ("not UTF-8: \udc80", r"not UTF-8: \udc80"),
    ],
)
def test_control_characters_are_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("[name](http://example.org)", r"[name\](http://example.org)"),
        ("![image](a.png)", r"![image\](a.png)"),
        ("[name][1] [1]: http://example.org", r"[name\][1] [1\]: http://example.org"),
        ("a | b", r"a \| b"),
        ("<script>&lt;", r"\<script>\&lt;"),
        ("x\n# heading", r"x\\n\# heading"),
        ("features.[67].*.fc2_1", r"features.[67].\*.fc2\_1"),
        ("`code` \\", r"\`code\` \\"),
    ],
)
def test_markup_is_shown(text: str, escaped: str) -> None:
    assert in_markdown(text) == escaped
