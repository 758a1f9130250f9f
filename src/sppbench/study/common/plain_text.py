"""Text that others wrote, such as names of directories and messages of errors, made harmless where it is shown."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"([\\|*_<`#&]|\](?=[(\[:]))")


def visible(text: str) -> str:
    r"""The text in one line, without anything that a terminal obeys: such characters become escape sequences.

    Example:
        >>> print(visible("seed=1\x1b[2J\n"))
        seed=1\x1b[2J\n
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def in_markdown(text: str) -> str:
    r"""The text as Markdown that shows it: nothing in it is a heading, a link, a cell or HTML.

    Example:
        >>> print(in_markdown("[seed](1) | <b>"))
        [seed\](1) \| \<b>
    """
    return _MARKUP.sub(r"\\\1", visible(text))
