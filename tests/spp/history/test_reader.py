"""What was appended is read back, and reading a part of a history reads only a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sppbench.spp.history.reader import read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.names import COLUMNS, PLACES
from tests.spp.history.imagined import as_read, assert_same, names, part, rows, write


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "run" / "spp.parquet", 0, 3, 4, 11)
    found = read_history(path)
    assert_same(found, as_read(rows(0, 11)))
    assert found.dtypes.astype(str).to_dict() == {
        **dict.fromkeys(("step", "epoch", "samples", "depth", "ndim", "nonfinite", "block"), "int64"),
        **dict.fromkeys(("acsm", "acv", "second_moment", "mean"), "float64"),
        **dict.fromkeys(("absmax", "zeros", "subnormal"), "float64"),
        **dict.fromkeys(("layer", "kind", "signal", "role"), str(pd.DataFrame({"text": ["x"]})["text"].dtype)),
    }
    assert names(path) == [part(path, start).name for start in (0, 3, 4)]


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
    second = part(path, 4)
    good = second.read_bytes()
    spoil_rows(path)
    second.write_bytes(good)
    assert_same(read_history(path, epochs=1), as_read(rows(4, 8)))
    with pytest.raises(HistoryError, match=r"cannot read .*steps-0"):
        read_history(path)


def test_a_range_of_steps_opens_only_its_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8, 12)
    for start in (0, 8):
        part(path, start).write_bytes(b"")
    assert_same(read_history(path, steps=range(5, 7)), as_read(rows(5, 7)))


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_truncated_part_is_named(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    second = part(path, 4)
    second.write_bytes(second.read_bytes()[:length])
    for layers in (None, "layer1", "*"):
        with pytest.raises(HistoryError, match=f"^cannot read {second}: ") as caught:
            read_history(path, layers=layers)
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, layers=50)
    [file] = path.iterdir()
    group = pq.ParquetFile(file).metadata.row_group(0)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "acv")
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(HistoryError, match=r"cannot read .*steps-0"):
        read_history(path)


def test_what_is_not_a_history_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "spp.parquet", 0, 4, 8)
    second = part(path, 4)
    pq.write_table(pq.read_table(second).drop_columns(["acv", "samples"]), second)
    with pytest.raises(HistoryError, match=f"^{second} lacks the columns samples, acv$"):
        read_history(path)
    with pytest.raises(HistoryError, match=f"^there is no history at {tmp_path / 'missing'}$"):
        read_history(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.parquet").write_text("")
    with pytest.raises(HistoryError, match=f"^{tmp_path / 'empty'} holds no parts"):
        read_history(tmp_path / "empty")


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
        assert list(found) == [*COLUMNS, *PLACES]
