"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sppbench.files import replacing, write_bytes, write_text


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    write_text(path, "new ± 1\r\n")
    assert path.read_bytes() == "new ± 1\r\n".encode()
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail_in_the_middle() -> None:
        with replacing(path) as file:
            file.write_text("new")
            assert path.read_text() == "old", "nobody sees the new content yet"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_in_the_middle()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("result.json", ".result.json.tmp"):
        (folder / name).symlink_to(victim)
    write_text(folder / "result.json", "ours")
    assert victim.read_text() == "precious"
    assert not (folder / "result.json").is_symlink()
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_text("half of somebody's file, longer than what follows")
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert not (tmp_path / ".file.tmp").exists()
