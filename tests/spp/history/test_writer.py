"""What is appended to a history is on disk, whole, whatever happens in between."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sppbench.spp.history.reader import read_history
from sppbench.spp.history.writer import HistoryWriter
from tests.processes import start
from tests.spp.history.imagined import as_read, assert_same, names, part, rows, write


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    frame = rows(0, 1)
    frame.loc[:2, "acsm"] = [np.nan, np.inf, 1e300]
    frame.loc[0, "mean"] = -np.inf
    frame.loc[1, "acv"] = np.float32(1e-45)
    HistoryWriter(tmp_path / "spp.parquet").append(frame)
    frame.loc[2, "acsm"] = np.inf  # beyond float32
    assert_same(read_history(tmp_path / "spp.parquet"), as_read(frame))
    [file] = (tmp_path / "spp.parquet").iterdir()
    assert pq.read_table(file)["acsm"].null_count == 0  # a NaN, not a null, for other readers as well


def test_pandas_reads_the_directory_and_not_what_is_being_written(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    (path / ".steps-000000008.parquet.tmp").write_bytes(b"PAR1 half a part")
    found = pd.read_parquet(path)
    assert found["step"].value_counts().to_dict() == dict.fromkeys(range(8), 15)
    assert_same(read_history(path), as_read(rows(0, 8)))


@pytest.mark.parametrize("resume_at", [0, 1, 3, 4, 5, 6, 8, 9, 10])
def test_a_resumed_history_equals_an_undisturbed_one(tmp_path: Path, resume_at: int) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 10)
    stale = path / ".steps-000000010.parquet.tmp"
    stale.write_bytes(b"PAR1 half a part")
    (path / ".steps.txt").write_text("not ours")
    (path / "notes.parquet").write_text("not ours")
    writer = HistoryWriter(path, resume_at=resume_at)
    assert writer.last_step == (resume_at - 1 if resume_at else None)
    if resume_at:
        assert_same(read_history(path), as_read(rows(0, resume_at)))
    assert not stale.exists()
    writer.append(rows(resume_at, 12))
    assert_same(read_history(path), as_read(rows(0, 12)))
    assert (path / ".steps.txt").read_text() == (path / "notes.parquet").read_text() == "not ours"
    # The last part took in what followed, and names say where parts start.
    parts = [name for name in names(path) if name.startswith("steps-")]
    assert [int(name[6:15]) for name in parts] == sorted({0, 4, 8} & set(range(max(resume_at, 1))))
    for name in parts:
        assert min(pq.read_table(path / name)["step"].to_pylist()) == int(name[6:15])


def test_without_resume_a_history_starts_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    part(path, 0).write_bytes(b"damaged")
    (path / "notes.txt").write_text("not ours")
    write(path, 0, 2)
    assert_same(read_history(path), as_read(rows(0, 2)))
    assert names(path) == ["notes.txt", "steps-000000000.parquet"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_a_part_is_cut_neither_doubles_nor_loses_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, crash)
        with pytest.raises(KeyboardInterrupt):
            HistoryWriter(path, resume_at=6)
    assert_same(read_history(path), as_read(rows(0, 8)))
    HistoryWriter(path, resume_at=6).append(rows(6, 9))
    assert_same(read_history(path), as_read(rows(0, 9)))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_a_part_grows_neither_doubles_nor_loses_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path)
    writer.append(rows(0, 4))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, crash)
        with pytest.raises(KeyboardInterrupt):
            writer.append(rows(4, 8))
    assert_same(read_history(path), as_read(rows(0, 4)))
    HistoryWriter(path, resume_at=4).append(rows(4, 9))
    assert_same(read_history(path), as_read(rows(0, 9)))
    assert names(path) == ["steps-000000000.parquet"]


def test_small_appends_make_few_parts(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "spp.parquet")
    for step in range(60):
        writer.append(rows(step, step + 1, layers=100))
    assert_same(read_history(tmp_path / "spp.parquet"), as_read(rows(0, 60, layers=100)))
    parts = [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "spp.parquet").iterdir())]
    assert parts == [8400, 8400, 1200]


def write_for_ever(path: Path, resume_at: int, written: Connection) -> None:
    frame = rows(0, 5, layers=50)
    writer = HistoryWriter(path, resume_at=resume_at or None)
    for number in count(resume_at // 5):
        writer.append(frame.assign(step=frame["step"] + 5 * number, epoch=number))
        written.send(5 * number + 5)


def whole(steps: pd.Series) -> int:
    """The number of steps, which must be a multiple of 5; each of them is there once."""
    number = steps.nunique()
    assert number % 5 == 0
    assert steps.value_counts().to_dict() == dict.fromkeys(range(number), 150)
    return number


def test_readers_and_kills_while_parts_grow_see_each_step_once(tmp_path: Path) -> None:
    """A part takes in 11 times the rows of 5 steps. Each kill comes at another moment, and nothing is lost."""
    path = tmp_path / "spp.parquet"
    readers: list[Callable[[Path], pd.DataFrame]] = [read_history, pd.read_parquet]
    written = 0
    for kill in range(3):
        receiver, sender = Pipe(duplex=False)
        process = start(write_for_ever, path, written, sender)
        sender.close()
        try:
            seen = [receiver.recv()]
            while len(seen) < 10 or seen[-1] < seen[0] + 60:  # beyond the end of a part
                seen += [whole(read(path)["step"]) for read in readers]
            time.sleep(0.003 * kill)
        finally:
            process.kill()
        said = []
        with suppress(EOFError):
            while True:
                said.append(receiver.recv())
        process.join()
        assert seen == sorted(seen)
        before, written = written, whole(read_history(path)["step"])
        assert max(said) <= written <= max(said) + 5
        assert written > before
    assert len(list(path.glob("steps-*"))) < written / 5 / 5
    HistoryWriter(path, resume_at=written - 2)
    assert set(read_history(path)["step"]) == set(range(written - 2))


def test_what_cannot_be_appended_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path)
    writer.append(rows(0, 4))
    good = rows(4, 8)
    for frame, message in [
        (rows(3, 8), "steps 3 to 7 do not follow step 3"),
        (good.drop(columns=["acv", "kind"]), "lacks the columns kind, acv"),
        (good.assign(signal="grad"), "unknown signal 'grad'"),
        (good.assign(step="four"), "column step cannot be stored as int64"),
        (good.assign(acsm="much"), "column acsm cannot be stored as float"),
        (good.assign(layer=None), "column layer has missing values"),
        (good.assign(step=good["step"] + 0.5), "column step cannot be stored as int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.append(frame)
    writer.append(good.iloc[:0])
    assert names(path) == ["steps-000000000.parquet"]
    with pytest.raises(ValueError, match="do not follow"):
        HistoryWriter(tmp_path / "new").append(rows(0, 1).assign(step=-1))
    with pytest.raises(ValueError, match="resume_at must not be negative, got -1"):
        HistoryWriter(path, resume_at=-1)
    writer.append(good)
    assert_same(read_history(path), as_read(rows(0, 8)))


@pytest.mark.parametrize("call", ["ParquetWriter", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_the_frame_can_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path)
    writer.append(rows(0, 4))

    def full(*arguments: Any, **_: object) -> None:
        if call == "ParquetWriter":
            arguments[0].write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"ParquetWriter": pq, "fsync": os, "replace": Path}[call], call, full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(rows(4, 8))
    assert names(path) == ["steps-000000000.parquet"]
    writer.append(rows(4, 8))
    assert_same(read_history(path), as_read(rows(0, 8)))


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "spp.parquet").write_text("not ours")
    with pytest.raises(OSError, match="exists"):
        HistoryWriter(tmp_path / "spp.parquet")
    assert (tmp_path / "spp.parquet").read_text() == "not ours"
