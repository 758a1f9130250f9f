"""Histories that began before a column was recorded: what they have is read, and a resumed run goes on with all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.reader import read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.names import LATER_COLUMNS
from sppbench.spp.plots.panels import plot_spp
from tests.spp.history.imagined import as_read, assert_same, names, part, rows, write

LATER = list(LATER_COLUMNS)


def before(path: Path, *cuts: int) -> Path:
    """A history of an earlier version."""
    write(path, *cuts)
    for file in path.iterdir():
        pq.write_table(pq.read_table(file).drop_columns(LATER), file)  # metadata stay
    return path


def with_gaps(first: int, old: int, end: int) -> pd.DataFrame:
    """The steps of an imagined run, of which those before ``old`` were recorded without the later columns."""
    frame = as_read(rows(first, end))
    frame.loc[frame.step < old, LATER] = np.nan
    return frame


def test_columns_that_a_history_does_not_have_are_absent(tmp_path: Path) -> None:
    path = before(tmp_path / "spp.parquet", 0, 3, 8)
    found = read_history(path)
    assert_same(found, as_read(rows(0, 8)).drop(columns=LATER))
    some = found.query("layer == 'layer1' and epoch == 1").reset_index(drop=True)
    assert_same(read_history(path, layers="layer1", epochs=1), some)
    assert_same(read_history(part(path, 3)), found[found.step >= 3].reset_index(drop=True))
    assert_same(epoch_mean(found), epoch_mean(as_read(rows(0, 8))).drop(columns=LATER))
    plot_spp(found, epochs=[0, 1])
    with pytest.raises(HistoryError, match=f"^{path} lacks the columns zeros$"):
        read_history(path, columns=["step", "zeros"])


@pytest.mark.parametrize("resume_at", [8, 6, 3])
def test_a_run_that_is_resumed_has_them_from_there_on(tmp_path: Path, resume_at: int) -> None:
    """Also where its first steps are added to the last part: a part has each column for all of its rows."""
    path = before(tmp_path / "spp.parquet", 0, 3, 8)
    writer = HistoryWriter(path, resume_at=resume_at)
    writer.append(rows(resume_at, 12))
    assert len(names(path)) == (1 if resume_at == 3 else 2)
    expected = with_gaps(0, resume_at, 12)
    assert_same(read_history(path), expected)
    assert_same(read_history(path, columns=["step", "absmax"]), expected[["step", "absmax"]])
    assert all(not pq.read_table(file)["mean"].null_count for file in path.iterdir())
    means = epoch_mean(read_history(path)).groupby("epoch")["absmax"].agg(lambda values: values.isna().all())
    assert means.tolist() == [True, resume_at > 4, False]


def test_a_frame_without_them_can_be_appended(tmp_path: Path) -> None:
    path = tmp_path / "spp.parquet"
    HistoryWriter(path).append(rows(0, 4).drop(columns=LATER))
    assert_same(read_history(path), with_gaps(0, 4, 4))


def test_the_largest_of_an_epoch_is_that_of_its_steps() -> None:
    frame = rows(0, 8)
    frame.loc[(frame.step == 5) & (frame.depth == 1), "absmax"] = np.nan
    frame.loc[(frame.step == 6) & (frame.depth == 2), "absmax"] = np.inf
    means = epoch_mean(frame)
    largest = frame.groupby(["epoch", "depth", "signal"])["absmax"].max()  # which leaves out NaN
    for row in means.itertuples():
        if (row.epoch, row.depth) == (1, 1):
            assert np.isnan(row.absmax)
        else:
            assert row.absmax == largest[row.epoch, row.depth, row.signal]
    assert np.isinf(means.query("epoch == 1 and depth == 2")["absmax"]).all()
