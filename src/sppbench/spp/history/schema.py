"""What a table of steps holds, in memory and on disk: names, types, and how Parquet stores them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa


@dataclass(frozen=True)
class Columns:
    """What a table holds. ``step`` and ``epoch``, integers, and ``layer``, a text, are among its columns.

    Floats are stored as float32 and come back as float64, so that sums and means of them are not rounded to float32.

    Args:
        names: All columns, in order. Those that are neither texts nor floats are int64.
        texts, floats: Which of them are.
        order: By which columns the rows of a part are sorted, the layer's name first: so the smallest and largest name
            of each row group, which Parquet keeps, let any reader that filters by name skip the other groups.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    floats: tuple[str, ...]
    order: tuple[str, ...] = ("layer", "step")

    @cached_property
    def disk(self) -> pa.Schema:
        return self._schema(pa.float32(), nullable=False)

    @cached_property
    def memory(self) -> pa.Schema:
        return self._schema(pa.float64(), nullable=True)

    def _schema(self, statistics: pa.DataType, nullable: bool) -> pa.Schema:
        types = {**dict.fromkeys(self.texts, pa.string()), **dict.fromkeys(self.floats, statistics)}
        return pa.schema([pa.field(name, types.get(name, pa.int64()), nullable) for name in self.names])

    @cached_property
    def format(self) -> dict[str, Any]:
        # Smaller row groups would let readers skip more, but compress worse and lengthen the footer. Floats compress
        # better with their bytes split by significance: noise then stays in the low ones.
        return {
            "row_group_size": 4096,
            "compression": "zstd",
            "compression_level": 3,
            "use_dictionary": [name for name in self.names if name not in self.floats],
            "column_encoding": dict.fromkeys(self.floats, "BYTE_STREAM_SPLIT"),
            "write_page_checksum": True,
            "store_schema": False,
        }

    def to_table(self, frame: pd.DataFrame) -> pa.Table:
        """The frame as it is stored. Raises ValueError if it does not fit."""
        if missing := [name for name in self.names if name not in frame.columns]:
            raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
        # Column by column, because Table.from_pandas would turn NaN into null.
        arrays = [_to_array(frame[field.name], field, field.name in self.floats) for field in self.disk]
        return pa.table(arrays, schema=self.disk)


def _to_array(values: pd.Series, field: pa.Field, is_float: bool) -> pa.Array:
    try:
        with np.errstate(over="ignore"):
            array = pa.array(values.to_numpy(np.float32 if is_float else None), field.type)
    except (TypeError, ValueError) as error:  # this is what Arrow's errors are, too
        raise ValueError(f"column {field.name} cannot be stored as {field.type}: {error}") from error
    if array.null_count:
        raise ValueError(f"column {field.name} has missing values")
    return array
