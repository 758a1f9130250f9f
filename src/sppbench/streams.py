"""What a command finds around it: streams that cannot show every character, and settings of matplotlib."""

from __future__ import annotations

import os
import sys


def survive_any_text() -> None:
    r"""Makes standard output and error write what their encoding lacks as an escape sequence, such as ``\u2265``.

    Without it a sign such as ≥, or a file's name that is no UTF-8, ends a command with a traceback where the encoding
    is that of an old terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


def need_no_window() -> None:
    """Takes no heed of ``MPLBACKEND``: figures go to files, and one that is not there, as a notebook's, ends a command.

    Call it before matplotlib is imported.
    """
    os.environ["MPLBACKEND"] = "agg"
