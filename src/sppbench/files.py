"""Writes files so that each is either complete or absent; and finds the folder of the configurations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new, empty file beside ``path`` that takes its place when the block ends, and is removed if it fails.

    Whoever reads ``path`` meanwhile, or after a crash at any moment, finds the old content or the new, never a part of
    it. A symbolic link at ``path`` is replaced; what it points to is not touched. One writer at a time.

    Raises:
        OSError: It cannot be written to.

    Example:
        >>> with replacing(Path("curves.parquet")) as file:
        ...     frame.to_parquet(file)
    """
    # With a leading dot, so that readers of a directory of Parquet files pass it over. A fixed name: what a killed
    # process left is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.touch(exist_ok=False)  # not what a link of this name, set meanwhile, points to
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, with line ends as they are, by `replacing`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file by `replacing`."""
    with replacing(path) as file:
        file.write_bytes(content)


def sync_directory(directory: Path) -> None:
    """Makes renames and removals in a directory survive a power failure.

    Only where the system can open a directory, which Windows cannot.
    """
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def config_directory() -> Path:
    """The folder with train.yaml: inside an installed package, or at the top of the source checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "conf"
    return inside if inside.is_dir() else here.parents[2] / "conf"
