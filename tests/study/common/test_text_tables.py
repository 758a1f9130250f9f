"""Tables and wrapped lines of texts that others wrote."""

from __future__ import annotations

from sppbench.study.common.text_tables import pipes, wrapped


def test_cells_cannot_end_the_table() -> None:
    assert pipes(["a|b"], [["x\n# y"], ["[l](m)"]]) == [r"| a\|b |", "| --- |", r"| x\\n\# y |", r"| [l\](m) |"]


def test_lines_are_wrapped_and_commands_stay_whole() -> None:
    command = "python -m sppbench.train -m model=a,b"
    lines = wrapped(f"words {'w' * 30}\x1b {command}", "- ", "  ", width=20)
    assert lines[:2] == ["- words", f"  {'w' * 30}\\x1b"]
    assert all(line.startswith("  ") for line in lines[1:])
    assert "  model=a,b" in lines
