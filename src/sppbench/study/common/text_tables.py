"""What the texts of tables, claims and figures are made of: wrapped lines, and tables in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sppbench.study.common.plain_text import in_markdown, visible

WIDTH = 110  # columns of a terminal
DASH = "\N{EM DASH}"  # where there is no value


def wrapped(text: str, first: str = "", other: str = "", width: int = WIDTH) -> list[str]:
    """The lines of a text, each at most so wide; paths and commands stay whole, to be copied.

    Args:
        text: Of any characters; see `visible`.
        first: What the first line begins with.
        other: What the others begin with.
        width: Columns.
    """
    return textwrap.wrap(
        visible(text),
        width,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; its cells are escaped.

    Example:
        >>> print("\\n".join(pipes(["net", "n"], [["ffnn_bn", "5"]])))
        | net | n |
        | --- | --- |
        | ffnn\\_bn | 5 |
    """
    lines = [list(map(in_markdown, header)), ["---"] * len(header), *[list(map(in_markdown, row)) for row in rows]]
    return [f"| {' | '.join(line)} |" for line in lines]
