"""A history with a hole is recognized as such: nothing is averaged over an epoch of which steps are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sppbench.spp.history.epoch_means import batchnorm_epoch_mean
from sppbench.spp.history.reader import check_end, read_batchnorm, read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter
from tests.spp.history.imagined import as_read, assert_same, names, part, rows, write


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("gone", "steps"), [(0, "0 to 3"), (4, "4 to 7"), (8, "8 to 11")])
def test_a_part_that_is_gone_is_a_gap(tmp_path: Path, gone: int, steps: str) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12, 16)
    part(path, gone).unlink()
    with pytest.raises(HistoryError, match=f"^{path} lacks the steps {steps}: restore the missing files, ") as caught:
        read_history(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(HistoryError, match="lacks the steps"):
        read_history(path, layers="layer1", signals="gradient", columns=["acv"])


def test_only_what_may_be_concerned_is_refused(tmp_path: Path) -> None:
    """Epochs have 4 steps: steps 5 to 8 are of the epochs 1 and 2."""
    path = write(tmp_path / "spp.parquet", 0, 3, 5, 9, 16)
    part(path, 5).unlink()
    for arguments in ({"epochs": 0}, {"epochs": (0, 3)}, {"steps": range(5)}, {"steps": (4, 9)}, {"steps": 12}):
        found = read_history(path, **arguments)  # type: ignore[arg-type]
        chosen = arguments.get("steps")
        steps = rows(0, 16)
        if chosen is None:
            expected = steps[steps["epoch"].isin([0, 3] if arguments["epochs"] else [0])]
        else:
            expected = steps[steps["step"].isin([chosen] if isinstance(chosen, int) else list(chosen))]  # type: ignore
        assert_same(found, as_read(expected))
    for arguments in ({"epochs": 1}, {"epochs": (0, 2)}, {"steps": 5}, {"steps": range(16)}, {"steps": (2, 8)}):
        with pytest.raises(HistoryError, match="lacks the steps 5 to 8"):
            read_history(path, **arguments)  # type: ignore[arg-type]


def test_batch_normalizations_likewise(tmp_path: Path) -> None:
    path = tmp_path / "batchnorm.parquet"
    frame = rows(0, 3).query("signal == 'gradient'").assign(gain=1.0, gamma_squared=1.0, inverse_variance=1.0)
    frame["projection"] = 1.0
    for resume_at in (None, 6):
        BatchNormWriter(path, resume_at=resume_at).append(frame.assign(step=frame["step"] + (resume_at or 0)))
    with pytest.raises(HistoryError, match=f"^{path} lacks the steps 3 to 5"):
        batchnorm_epoch_mean(read_batchnorm(path))


def test_a_renamed_part_is_recognized(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    part(path, 4).unlink()
    part(path, 8).rename(part(path, 4))
    with pytest.raises(HistoryError, match=f"^{part(path, 4)} holds steps 8 to 11, which is not what its name"):
        read_history(path)


def test_parts_of_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    write(tmp_path / "other", 0, 3, 8)
    part(tmp_path / "other", 3).rename(part(path, 3))
    with pytest.raises(HistoryError, match=r"steps-0+3\.parquet holds steps that steps-0+\.parquet also holds"):
        read_history(path)
    one = write(tmp_path / "one", 0, 4, 8, run_id="one")
    two = write(tmp_path / "two", 0, 4, 8, run_id="two")
    part(two, 4).replace(part(one, 4))
    with pytest.raises(HistoryError, match=f"^{one} holds the parts of two runs, steps-0+.parquet and steps-0+4"):
        read_history(one)


def test_each_tenth_step_is_no_gap_and_what_lies_between_is_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    steps = rows(0, 101).query("step % 10 == 0")
    writer = HistoryWriter(path, every_n_steps=10)
    writer.append(steps.query("step < 45"))
    for resume_at in (45, 76):
        writer = HistoryWriter(path, every_n_steps=10, resume_at=resume_at)
        writer.append(steps.query("@resume_at <= step < @resume_at + 31"))
    assert_same(read_history(path), as_read(steps))
    assert check_end(path, 110) is not None
    with pytest.raises(HistoryError, match=f"^{path} lacks the steps 110 to 110, the last ones of its run"):
        check_end(path, 111)
    # Between step 90 and step 100 there is no row: the part that begins there goes as a whole.
    HistoryWriter(path, every_n_steps=10, resume_at=95).append(steps.query("step == 100"))
    assert_same(read_history(path), as_read(steps))


def test_a_hole_is_seen_without_reading_a_row(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path)
    writer.append(rows(0, 4))
    HistoryWriter(path, resume_at=8).append(rows(8, 12))
    with pytest.raises(HistoryError, match=f"^{path} lacks the steps 4 to 7"):
        check_end(path, 12)


def test_steps_of_another_type_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    HistoryWriter(path).append(rows(0, 4))
    [file] = path.iterdir()
    table = pq.read_table(file)
    place = table.schema.get_field_index("step")
    pq.write_table(table.set_column(place, "step", table["step"].cast("string")), file)
    with pytest.raises(HistoryError, match=f"cannot read {file}: it holds no steps"):
        check_end(path, 4)
    with pytest.raises(HistoryError, match=f"cannot read {file}"):
        read_history(path)


def test_steps_with_other_numbers_are_covered(tmp_path: Path) -> None:
    """With two optimizer steps a batch the even numbers occur, and of each third step the multiples of 6."""
    path = tmp_path / "spp.parquet"
    steps = rows(0, 20).query("step % 6 == 0")
    writer = HistoryWriter(path, every_n_steps=3)
    writer.append(steps.query("step < 8"), end=8)
    writer.cover(12)
    writer = HistoryWriter(path, every_n_steps=3, resume_at=12)
    writer.append(steps.query("step >= 12"))
    assert_same(read_history(path), as_read(steps))


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda path: part(path, 8).unlink(), "8 to 11"),
        (lambda path: part(path, 4).unlink(), "4 to 7"),
        (lambda path: part(path, 0).unlink(), "0 to 3"),
        (lambda path: [file.unlink() for file in path.iterdir()], "0 to 11"),
        (lambda path: [path.rename(path.with_name("away"))], "0 to 11"),
        (lambda path: [part(path, start).unlink() for start in (0, 8)], "0 to 3, 8 to 11"),
    ],
)
def test_a_resume_of_what_is_incomplete_warns_once_and_stays_incomplete(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], missing: str
) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    damage(path)
    for resume_at, end in ((12, 14), (13, 16)):
        caplog.clear()
        HistoryWriter(path, resume_at=resume_at).append(rows(resume_at, end))
        [warning] = warnings_of(caplog)
        assert warning.startswith(f"{path} lacks the steps {missing}. The run goes on at step {resume_at}")
    with pytest.raises(HistoryError, match=f"lacks the steps {missing.split(',')[0]}"):
        read_history(path)
    assert_same(read_history(path, steps=range(12, 16)), as_read(rows(12, 16)))


def test_a_resume_of_what_is_whole_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    for resume_at in (12, 9, 4, 2):
        HistoryWriter(path, resume_at=resume_at)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("resume_at", [6, 8])
def test_a_damaged_last_part_stays_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, resume_at: int
) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    part(path, 4).write_bytes(part(path, 4).read_bytes()[:100])
    HistoryWriter(path, resume_at=resume_at).append(rows(resume_at, 12))
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"cannot read {part(path, 4)}: ")
    with pytest.raises(HistoryError, match=f"^cannot read {part(path, 4)}: .*; restore the file from a copy, or"):
        read_history(path)


# -- whose a history is ------------------------------------------------------------------------------------------------


def test_the_history_of_another_run_is_neither_resumed_nor_deleted(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, run_id="one", config_hash="abc")
    for options in ({"run_id": "two", "config_hash": "abc"}, {"run_id": "one", "config_hash": "abd"}, {}):
        for resume_at in (None, 2):
            with pytest.raises(
                HistoryError, match=r"holds the history of another (run, one|configuration, abc): choose"
            ):
                HistoryWriter(path, resume_at=resume_at, **options)  # type: ignore[arg-type]
    assert_same(read_history(path), as_read(rows(0, 8)))
    HistoryWriter(path, resume_at=4, run_id="one", config_hash="abc").append(rows(4, 9))
    assert_same(read_history(path), as_read(rows(0, 9)))
    origin = check_end(path, 9)
    assert origin is not None
    assert (origin.run_id, origin.config_hash, origin.every_n_steps) == ("one", "abc", 1)
    HistoryWriter(path, run_id="one", config_hash="abc").append(rows(0, 2))
    assert_same(read_history(path), as_read(rows(0, 2)))


# -- of earlier versions -----------------------------------------------------------------------------------------------


def write_old(path: Path, *cuts: int, every: int = 1) -> Path:
    """As before parts said what they cover: by name the first and the last recorded step, and no metadata."""
    path.mkdir()
    for first, end in pairwise(cuts):
        frame = rows(first, end).query("step % @every == 0")
        write(path.with_name("new"), 0, 1)
        HistoryWriter(path.with_name("new")).append(frame)
        [file] = path.with_name("new").iterdir()
        table = pq.read_table(file).replace_schema_metadata(None)
        pq.write_table(table, path / f"steps-{frame.step.min():09d}-{frame.step.max():09d}.parquet")
    return path


@pytest.mark.parametrize("every", [1, 10])
def test_histories_of_earlier_versions_are_read_and_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, every: int
) -> None:
    path = write_old(tmp_path / "spp.parquet", 0, 41, 60, 95, every=every)
    steps = rows(0, 120).query("step % @every == 0")
    assert_same(read_history(path), as_read(steps.query("step < 95")))
    assert check_end(path, 95) is None
    with pytest.raises(HistoryError, match="the last ones of its run"):
        check_end(path, 120)
    for resume_at in (95, 83, 60, 45):
        writer = HistoryWriter(path, resume_at=resume_at, every_n_steps=every, run_id="one")
        assert_same(read_history(path), as_read(steps.query("step < @resume_at")))
    writer.append(steps.query("step >= 45"))
    assert_same(read_history(path), as_read(steps))
    assert warnings_of(caplog) == []
    assert all("-" not in name.removeprefix("steps-") for name in names(path)[-1:])


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_gap_in_a_history_of_an_earlier_version(tmp_path: Path, every: int, gone: int) -> None:
    path = write_old(tmp_path / "spp.parquet", 0, 41, 70, 101, every=every)
    sorted(path.iterdir())[gone].unlink()
    with pytest.raises(HistoryError, match="lacks the steps 0 to" if gone == 0 else "lacks the steps 41 to"):
        read_history(path)
