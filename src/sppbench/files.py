"""Where configurations are, and files that are either there and whole, or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def write_atomically(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Opens a text file beside ``path`` that takes its place when the block ends, and is removed if the block fails.

    Whoever reads ``path`` meanwhile, or after a crash at any moment, finds the old content or the new, never a part.
    One writer at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", newline=newline, encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def config_directory() -> Path:
    """The folder with train.yaml: inside an installed package, or at the top of the source checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "conf"
    return inside if inside.is_dir() else here.parents[2] / "conf"
