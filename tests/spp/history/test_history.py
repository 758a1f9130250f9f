"""The history on disk: what was appended comes back, whatever happened in between, and reading a part reads a part."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sppbench.spp.history import history
from sppbench.spp.history.history import COLUMNS, SIGNALS, HistoryError, HistoryWriter, epoch_mean, read_history

STEPS_PER_EPOCH = 4


def rows(first: int, end: int, layers: int = 5) -> pd.DataFrame:
    """Steps ``first`` to ``end - 1`` of one imagined run: the same numbers however it is cut. Rows in reverse."""
    frames = []
    for step in range(first, end):
        # Depth and alphabet disagree: layer10 comes before layer2.
        depth = np.repeat(np.arange(layers), 3)
        values = np.random.default_rng(step).lognormal(-5, 5, (3, len(depth))).astype(np.float32).astype(np.float64)
        frame = {
            "step": step,
            "epoch": step // STEPS_PER_EPOCH,
            "samples": 8 if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1 else 64,
            "depth": depth,
            "layer": [f"layer{number}" for number in depth],
            "kind": np.where(depth % 2, "ReLU", "Linear"),
            "signal": ["parameter", "gradient", "activation"] * layers,
            "ndim": 2,
            "acsm": values[0],
            "acv": values[1],
            "mean": -values[2],
            "nonfinite": np.arange(len(depth)),
        }
        frames.append(pd.DataFrame(frame).iloc[::-1])
    return pd.concat(frames, ignore_index=True)


def as_read(frame: pd.DataFrame) -> pd.DataFrame:
    """What read_history should return for the frame, by other means."""
    frame = frame.assign(second_moment=frame["acsm"] + frame["acv"], rank=frame["signal"].map(SIGNALS.index))
    return frame.sort_values(["step", "depth", "rank"], ignore_index=True)[list(COLUMNS)]


def write(path: Path, *cuts: int, layers: int = 5) -> Path:
    """A history of the steps from cuts[0] to cuts[-1] - 1, one part between each two."""
    writer = HistoryWriter(path)
    for first, end in pairwise(cuts):
        writer.append(rows(first, end, layers))
    return path


def assert_same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "run" / "spp.parquet", 0, 3, 4, 11)
    found = read_history(path)
    assert_same(found, as_read(rows(0, 11)))
    assert found.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(("step", "epoch", "samples", "depth", "ndim", "nonfinite"), "int64"),
        **dict.fromkeys(("acsm", "acv", "second_moment", "mean"), "float64"),
        **dict.fromkeys(("layer", "kind", "signal"), str(pd.DataFrame({"text": ["x"]})["text"].dtype)),
    }
    assert names(path) == [
        "steps-000000000-000000002.parquet",
        "steps-000000003-000000003.parquet",
        "steps-000000004-000000010.parquet",
    ]


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    frame = rows(0, 1)
    frame.loc[:2, "acsm"] = [np.nan, np.inf, 1e300]
    frame.loc[0, "mean"] = -np.inf
    frame.loc[1, "acv"] = np.float32(1e-45)
    HistoryWriter(tmp_path / "spp.parquet").append(frame)
    frame.loc[2, "acsm"] = np.inf  # beyond float32
    assert_same(read_history(tmp_path / "spp.parquet"), as_read(frame))
    [part] = (tmp_path / "spp.parquet").iterdir()
    assert pq.read_table(part)["acsm"].null_count == 0  # a NaN, not a null, for other readers as well


def test_pandas_reads_the_directory_and_not_what_is_being_written(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    (path / ".steps-000000008-000000009.parquet.tmp").write_bytes(b"PAR1 half a part")
    found = pd.read_parquet(path)
    assert found["step"].value_counts().to_dict() == dict.fromkeys(range(8), 15)
    assert_same(read_history(path), as_read(rows(0, 8)))


@pytest.mark.parametrize("resume_at", [0, 1, 3, 4, 5, 6, 8, 9, 10])
def test_a_resumed_history_equals_an_undisturbed_one(tmp_path: Path, resume_at: int) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 10)
    stale = path / ".steps-000000010-000000011.parquet.tmp"
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
    # Names tell what is there.
    parts = [name for name in names(path) if name.startswith("steps-")]
    assert [int(name[6:15]) for name in parts] == sorted({0, 4, 8, resume_at} & set(range(resume_at + 1)))
    for name in parts:
        steps = pq.read_table(path / name)["step"].to_pylist()
        assert name == f"steps-{min(steps):09d}-{max(steps):09d}.parquet"


def test_a_resume_beyond_the_end_keeps_all_and_shows_the_gap(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4)
    writer = HistoryWriter(path, resume_at=7)
    assert writer.last_step == 3
    writer.append(rows(7, 9))
    assert sorted(set(read_history(path)["step"])) == [0, 1, 2, 3, 7, 8]


def test_without_resume_a_history_starts_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    (path / "steps-000000000-000000003.parquet").write_bytes(b"damaged")
    (path / "notes.txt").write_text("not ours")
    write(path, 0, 2)
    assert_same(read_history(path), as_read(rows(0, 2)))
    assert names(path) == ["notes.txt", "steps-000000000-000000001.parquet"]


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
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
    assert_same(read_history(path), as_read(rows(0, 6 if call == "rename" else 8)))
    HistoryWriter(path, resume_at=6).append(rows(6, 9))
    assert_same(read_history(path), as_read(rows(0, 9)))


WRITE_FOR_EVER = """
import importlib.util, pickle, sys
from itertools import count
spec = importlib.util.spec_from_file_location("history", sys.argv[1])  # without importing torch
history = sys.modules["history"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(history)
writer = history.HistoryWriter(sys.argv[2])
frame = history.pd.read_pickle(sys.argv[3])
for part in count():
    writer.append(frame.assign(step=frame["step"] + 5 * part, epoch=part))
"""


def test_readers_and_a_kill_while_writing_see_whole_parts_only(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    rows(0, 5, layers=50).to_pickle(tmp_path / "frame.pickle")
    arguments = [sys.executable, "-c", WRITE_FOR_EVER, str(history.__file__), str(path), str(tmp_path / "frame.pickle")]

    def check(steps: pd.Series) -> int:
        """The steps from 0 to a multiple of 5, each of them whole; returns that multiple."""
        assert len(set(steps)) % 5 == 0
        assert steps.value_counts().to_dict() == dict.fromkeys(range(len(set(steps))), 150)
        return len(set(steps))

    readers: list[Callable[[Path], pd.DataFrame]] = [read_history, pd.read_parquet]
    with subprocess.Popen(arguments) as process:
        try:
            end = time.monotonic() + 60
            seen: list[int] = []
            # At least 5 times each, and until the history has grown in between.
            while len(seen) < 10 or len(set(seen)) < 3:
                assert process.poll() is None
                assert time.monotonic() < end
                if path.exists() and any(path.glob("steps-*")):
                    seen += [check(read(path)["step"]) for read in readers]
                else:
                    time.sleep(0.01)
        finally:
            process.kill()
    assert seen == sorted(seen)
    written = check(read_history(path)["step"])
    HistoryWriter(path, resume_at=written - 2)
    assert set(read_history(path)["step"]) == set(range(written - 2))


@pytest.mark.parametrize(
    ("arguments", "condition"),
    [
        ({"layers": "layer3"}, "layer == 'layer3'"),
        ({"layers": ["layer1", "layer4"]}, "layer in ('layer1', 'layer4')"),
        ({"layers": "layer[!03]"}, "layer in ('layer1', 'layer2', 'layer4')"),
        ({"layers": ("*3", "layer0")}, "layer in ('layer0', 'layer3')"),
        ({"layers": []}, "layer == ''"),
        ({"signals": "gradient"}, "signal == 'gradient'"),
        ({"signals": {"gradient", "parameter"}}, "signal != 'activation'"),
        ({"signals": "update"}, "signal == 'update'"),
        ({"epochs": 1}, "epoch == 1"),
        ({"epochs": (0, 2)}, "epoch in (0, 2)"),
        ({"epochs": np.int64(7)}, "epoch == 7"),
        ({"steps": range(3, 9)}, "3 <= step < 9"),
        ({"steps": range(1, 11, 3)}, "step in (1, 4, 7, 10)"),
        ({"steps": np.array([0, 10])}, "step in (0, 10)"),
        ({"steps": 5}, "step == 5"),
        ({"steps": range(100, 200)}, "step >= 100"),
        ({"steps": []}, "step < 0"),
        ({"steps": range(5), "layers": "*2", "signals": ["activation"], "epochs": [1]}, "step == 4 and depth == 2"),
    ],
)
def test_filters_agree_with_pandas(tmp_path: Path, arguments: dict[str, Any], condition: str) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 7, 11)
    expected = as_read(rows(0, 11)).query(condition).reset_index(drop=True)
    if len(arguments) == 4:
        expected = expected[expected["signal"] == "activation"].reset_index(drop=True)
    assert_same(read_history(path, **arguments), expected)


def test_only_the_columns_that_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 7)
    expected = as_read(rows(0, 7))
    for columns in (["second_moment"], ["mean", "layer"], list(reversed(COLUMNS))):
        assert_same(read_history(path, columns=columns), expected[columns])


def test_one_file_is_read_like_a_directory(tmp_path: Path) -> None:
    """As pandas writes it: float64, categories, an index, other columns."""
    frame = as_read(rows(0, 7)).astype({"layer": "category", "signal": "category", "depth": "int32"}).assign(more=1)
    frame.to_parquet(tmp_path / "compact.parquet")
    assert_same(read_history(tmp_path / "compact.parquet"), as_read(rows(0, 7)))
    found = read_history(tmp_path / "compact.parquet", layers=["layer1", "*4"], signals="gradient", steps=range(2, 4))
    expected = as_read(rows(2, 4)).query("layer in ('layer1', 'layer4') and signal == 'gradient'")
    assert_same(found, expected.reset_index(drop=True))


def spoil_rows(path: Path, keep: str = "") -> int:
    """Overwrites the data, not the footers, of row groups without the layer ``keep``; returns how many it kept."""
    kept = 0
    for file in path.glob("steps-*"):
        content = bytearray(file.read_bytes())
        metadata = pq.ParquetFile(file).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = [group.column(number) for number in range(group.num_columns)]
            bounds = next(column.statistics for column in columns if column.path_in_schema == "layer")
            if bounds.min <= keep <= bounds.max:
                kept += 1
                continue
            for column in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = b"?" * column.total_compressed_size
        file.write_bytes(content)
    return kept


def test_one_layer_is_read_without_the_data_of_others(tmp_path: Path) -> None:
    """24,000 rows, 4,096 in a row group; all groups without the layer are spoiled."""
    path = write(tmp_path / "spp.parquet", 0, 40, 80, layers=100)
    assert spoil_rows(path, keep="layer5") == 2
    expected = as_read(rows(0, 80, layers=100)).query("layer == 'layer5'").reset_index(drop=True)
    assert_same(read_history(path, layers="layer5"), expected)
    with pytest.raises(HistoryError, match=r"cannot read .*steps-0"):
        read_history(path)


def test_one_epoch_is_read_without_the_data_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    part = path / "steps-000000004-000000007.parquet"
    good = part.read_bytes()
    spoil_rows(path)
    part.write_bytes(good)
    assert_same(read_history(path, epochs=1), as_read(rows(4, 8)))
    with pytest.raises(HistoryError, match=r"cannot read .*steps-0"):
        read_history(path)


def test_a_range_of_steps_opens_only_its_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    for name in ("steps-000000000-000000003.parquet", "steps-000000008-000000011.parquet"):
        (path / name).write_bytes(b"")
    assert_same(read_history(path, steps=range(5, 7)), as_read(rows(5, 7)))


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_truncated_part_is_named(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    part = path / "steps-000000004-000000007.parquet"
    part.write_bytes(part.read_bytes()[:length])
    for layers in (None, "layer1", "*"):
        with pytest.raises(HistoryError, match=f"^cannot read {part}: ") as caught:
            read_history(path, layers=layers)
        assert "\n" not in str(caught.value)
    with pytest.raises(HistoryError, match=f"^cannot read {part}: "):
        HistoryWriter(path, resume_at=6)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, layers=50)
    [part] = path.iterdir()
    group = pq.ParquetFile(part).metadata.row_group(0)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "acv")
    content = bytearray(part.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(HistoryError, match=r"cannot read .*steps-0"):
        read_history(path)


def test_what_is_not_a_history_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    part = path / "steps-000000004-000000007.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["acv", "samples"]), part)
    with pytest.raises(HistoryError, match=f"^{part} lacks the columns samples, acv$"):
        read_history(path)
    with pytest.raises(HistoryError, match=f"^there is no history {tmp_path / 'missing'}$"):
        read_history(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.parquet").write_text("")
    with pytest.raises(HistoryError, match=f"^{tmp_path / 'empty'} holds no parts"):
        read_history(tmp_path / "empty")


def test_parts_of_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    part = path / "steps-000000004-000000007.parquet"
    part.rename(path / "steps-000000003-000000007.parquet")
    with pytest.raises(HistoryError, match=r"holds steps that are in steps-0+-0+3\.parquet, too"):
        read_history(path)


def test_unknown_names_are_answered_with_near_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    for layers in ("layr3", ["layer1", "layr3"]):
        with pytest.raises(HistoryError, match=r"no layer matches 'layr3' in .*: there are|; there are.* layer3"):
            read_history(path, layers=layers)
    with pytest.raises(HistoryError, match=r"no layer matches 'block\*'.*; there are, for example, layer0, layer1"):
        read_history(path, layers="block*")
    with pytest.raises(HistoryError, match="unknown signal 'grad'; there are activation, gradient"):
        read_history(path, signals="grad")
    with pytest.raises(HistoryError, match="unknown column 'variance'; there are step, epoch"):
        read_history(path, columns=["variance"])


def test_a_layer_that_did_not_run_in_the_steps_asked_for_is_no_error(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "spp.parquet")
    writer.append(rows(0, 4, layers=2))
    writer.append(rows(4, 8, layers=3))
    for layers in ("layer2", "*2"):
        found = read_history(tmp_path / "spp.parquet", layers=layers, steps=range(4))
        assert found.empty
        assert list(found) == list(COLUMNS)


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
    assert names(path) == ["steps-000000000-000000003.parquet"]
    with pytest.raises(ValueError, match="do not follow"):
        HistoryWriter(tmp_path / "new").append(rows(0, 1).assign(step=-1))
    with pytest.raises(ValueError, match="resume_at must not be negative, got -1"):
        HistoryWriter(path, resume_at=-1)
    writer.append(good)
    assert_same(read_history(path), as_read(rows(0, 8)))


@pytest.mark.parametrize("call", ["write_table", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_the_frame_can_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path)
    writer.append(rows(0, 4))

    def full(*arguments: Any, **_: object) -> None:
        if call == "write_table":
            arguments[1].write(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"write_table": pq, "fsync": os, "replace": Path}[call], call, full)
        with pytest.raises(OSError, match="No space left"):
            writer.append(rows(4, 8))
    assert names(path) == ["steps-000000000-000000003.parquet"]
    writer.append(rows(4, 8))
    assert_same(read_history(path), as_read(rows(0, 8)))


def test_a_file_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "spp.parquet").write_text("not ours")
    with pytest.raises(OSError, match="exists"):
        HistoryWriter(tmp_path / "spp.parquet")
    assert (tmp_path / "spp.parquet").read_text() == "not ours"


def an_epoch(second_moments: np.ndarray, samples: list[int]) -> pd.DataFrame:
    """One layer's gradient, one step each, a quarter of the second moment in the ACSM."""
    steps = len(samples)
    frame = rows(0, 1).query("layer == 'layer0' and signal == 'gradient'").drop(columns="step")
    frame = frame.loc[frame.index.repeat(steps)].assign(step=range(steps), samples=samples, nonfinite=2)
    return frame.assign(acsm=second_moments / 4, acv=second_moments * 3 / 4, mean=np.sqrt(second_moments))


def test_the_partial_batch_inflates_a_gradient_as_in_the_study() -> None:
    """Second moments of gradients are as 1/batch²: 78 steps of 512 and one of 64 give (78 + 64)/79 times the usual."""
    samples = [512] * 78 + [64]
    history = an_epoch(0.0099 / np.array(samples) ** 2.0, samples)
    [all_steps] = epoch_mean(history).to_dict("records")
    assert all_steps["second_moment"] == pytest.approx(0.0099 / 512**2 * (78 + 64) / 79, rel=1e-12)
    assert all_steps["second_moment"] == pytest.approx(6.8e-8, rel=5e-3)  # what the study's figures show
    assert all_steps["acsm"] == pytest.approx(all_steps["second_moment"] / 4)
    # Plain, not weighted, for the mean as well: it is as 1/batch.
    assert all_steps["mean"] == pytest.approx(np.sqrt(0.0099) / 512 * (78 + 8) / 79)
    assert (all_steps["steps"], all_steps["step"], all_steps["nonfinite"]) == (79, 78, 158)
    [full] = epoch_mean(history, full_batches_only=True).to_dict("records")
    assert full["second_moment"] == pytest.approx(0.0099 / 512**2, rel=1e-12)
    assert (full["steps"], full["step"], full["nonfinite"]) == (78, 77, 156)


@pytest.mark.parametrize("full_batches_only", [False, True])
def test_epoch_means_of_a_whole_history(tmp_path: Path, full_batches_only: bool) -> None:
    """Against a mean in plain Python, over the file and over the frames as a probe gives them."""
    # The last epoch is cut short: its one step is a full batch.
    frame = rows(0, 9, layers=11).query("depth in (0, 3, 10) and not (layer == 'layer3' and step == 1)")
    HistoryWriter(tmp_path / "spp.parquet").append(frame)
    found = epoch_mean(read_history(tmp_path / "spp.parquet"), full_batches_only)
    assert_same(found, epoch_mean(frame, full_batches_only))
    expected = []
    for epoch in range(3):
        for depth in (0, 3, 10):
            for signal in ("activation", "gradient", "parameter"):
                one = frame[(frame.epoch == epoch) & (frame.depth == depth) & (frame.signal == signal)]
                one = one[one.samples == 64] if full_batches_only else one
                means = {name: float(sum(one[name])) / len(one) for name in ("acsm", "acv", "mean")}
                kind = "ReLU" if depth % 2 else "Linear"
                row: dict[str, Any] = {
                    "epoch": epoch,
                    "depth": depth,
                    "layer": f"layer{depth}",
                    "kind": kind,
                    "signal": signal,
                    "ndim": 2,
                }
                row |= {"steps": len(one), "step": max(one.step)}
                row |= {"acsm": means["acsm"], "acv": means["acv"], "second_moment": means["acsm"] + means["acv"]}
                variances = [max(a + v - m * m, 0.0) for a, v, m in zip(one.acsm, one.acv, one["mean"], strict=True)]
                row |= {"mean": means["mean"], "variance": float(sum(variances)) / len(one)}
                expected.append(row | {"nonfinite": sum(one.nonfinite)})
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected), rtol=1e-12, check_dtype=False)


def test_a_step_that_is_not_finite_is_seen_in_the_mean() -> None:
    history = rows(0, 8)
    history.loc[(history.step == 5) & (history.depth == 1), "acv"] = np.nan
    history.loc[(history.step == 5) & (history.depth == 2), "acsm"] = np.inf
    means = epoch_mean(history)
    finite = np.isfinite(means.set_index(["epoch", "depth"])["second_moment"])
    assert set(finite[~finite].index) == {(1, 1), (1, 2)}
    assert means.query("epoch == 1 and depth == 1")["acv"].isna().all()
    assert np.isinf(means.query("epoch == 1 and depth == 2")["acsm"]).all()
    assert np.isfinite(means["mean"]).all()


def test_the_variance_is_a_mean_over_steps_too() -> None:
    """Two steps whose mean(x) are 1 and -1 and whose variances are 2 and 4: 3, not the 4 of the means' moments."""
    history = an_epoch(np.array([3.0, 5.0]), [8, 8]).assign(mean=[1.0, -1.0])
    [means] = epoch_mean(history).to_dict("records")
    assert (means["variance"], means["second_moment"] - means["mean"] ** 2) == (3.0, 4.0)
    history = history.assign(acsm=[np.inf, 1.0], mean=[np.inf, 1.0])
    assert np.isnan(epoch_mean(history)["variance"].item())


def test_epoch_mean_of_few_columns_and_of_no_rows() -> None:
    with pytest.raises(HistoryError, match="the history lacks the columns samples, nonfinite"):
        epoch_mean(rows(0, 1).drop(columns=["samples", "nonfinite"]))
    empty = epoch_mean(rows(0, 1).iloc[:0])
    assert empty.empty
    assert list(empty) == list(epoch_mean(rows(0, 1)))
    categories = rows(0, 4).astype({"layer": "category", "kind": "category", "signal": "category"})
    assert_same(epoch_mean(categories).astype({"signal": "object"})[["acsm"]], epoch_mean(rows(0, 4))[["acsm"]])
