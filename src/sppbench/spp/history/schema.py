"""The two tables of a history: their columns, the types in memory and on disk, and how Parquet stores them.

``spp.parquet``, what a ``SignalProbe`` saw, has one row per (step, layer, signal):

=============  =======  ================================================================================
column         type     meaning
=============  =======  ================================================================================
step           int64    index of the optimizer step, from 0
epoch          int64    from 0
samples        int64    size of the first axis of the first layer's outputs in that step: the samples of
                        its batch; the length where a net has time first, the nodes of a graph
depth          int64    order of first execution, from 0
layer          str      name of the module
kind           str      class name of the module, such as "Linear"
signal         str      one of :data:`SIGNALS`
ndim           int64    number of dimensions of the tensor
acsm           float64  average channel squared mean
acv            float64  average channel variance
second_moment  float64  ``acsm + acv``; not stored, computed on reading
mean           float64  mean over the channels of the channel means
nonfinite      int64    elements that are NaN or infinite
absmax         float64  largest magnitude; NaN if an element is NaN
zeros          float64  share of the elements that are exactly 0
subnormal      float64  share of those that are not 0 but below the smallest normal number of their type; NaN for
                        types of 32 bits and more, for which they are not counted
block          int64    number of the repeated block that the layer is in, -1 if in none; not stored
role           str      its place in there, which it has in each block; not stored
=============  =======  ================================================================================

``block`` and ``role`` follow on reading from the layer's name and the names of the net's blocks, which stand in the
metadata of each part (see ``sppbench.spp.places``). In histories of earlier versions they do not: there all blocks are
-1, and each layer's name is its role.

Statistics are stored as float32, the type in which a probe takes them, and come back as float64, so that neither
``acsm + acv`` nor means over steps are rounded to float32. NaN and infinities are kept. A layer has no row for a step
in which it did not run. Histories of earlier versions lack ``absmax``, ``zeros`` and ``subnormal``; of a run that such
a version began and this one went on with, they are NaN in the steps before.

``batchnorm.parquet``, what a ``BatchNormProbe`` saw, has one row per (step, layer):

================  =======  =============================================================================
column            type     meaning
================  =======  =============================================================================
step, epoch       int64    as above
depth             int64    order of first execution among the batch normalizations, from 0
layer             str      name of the module
gain              float64  mean(g_in²)/mean(g_out²) of the gradients at its input and its output
gamma_squared     float64  γ², inverse_variance 1/(v + ε), projection p: the factors of the gain; see
inverse_variance  float64  ``sppbench.spp.probe.batchnorm``
projection        float64
================  =======  =============================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sppbench.spp.names import BATCHNORM_COLUMNS, COLUMNS, GAIN_AND_FACTORS, LATER_COLUMNS


class HistoryError(ValueError):
    """A history that cannot be read, that has a gap, or that does not hold what was asked for; the message is one line.

    Example:
        >>> try:
        ...     history = read_history("nowhere/spp.parquet")
        ... except HistoryError as error:
        ...     print(error)
        there is no history at nowhere/spp.parquet
    """


@dataclass(frozen=True)
class Columns:
    """What a table holds. ``step`` and ``epoch``, integers, and ``layer``, a text, are among its columns.

    Floats are stored as float32 and come back as float64, so that sums and means of them are not rounded to float32.

    Args:
        names: All columns, in order. Those that are neither texts nor floats are int64.
        texts, floats: Which of them are.
        later: Which of them may be missing, as in files of earlier versions; then they are NaN. They are floats.
        order: By which columns the rows of a part are sorted, the layer's name first: so the smallest and largest name
            of each row group, which Parquet keeps, let any reader that filters by name skip the other groups.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    floats: tuple[str, ...]
    later: tuple[str, ...] = ()
    order: tuple[str, ...] = ("layer", "step")

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """Those that may not be missing."""
        return tuple(name for name in self.names if name not in self.later)

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
        # Floats compress better with their bytes split by significance: noise then stays in the low ones.
        return {
            "compression": "zstd",
            "compression_level": 3,
            "use_dictionary": [name for name in self.names if name not in self.floats],
            "column_encoding": dict.fromkeys(self.floats, "BYTE_STREAM_SPLIT"),
            "write_page_checksum": True,
            "store_schema": False,
        }

    def to_table(self, frame: pd.DataFrame) -> pa.Table:
        """The frame as it is stored. Raises ValueError if it does not fit."""
        if missing := [name for name in self.needed if name not in frame.columns]:
            raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
        frame = frame.assign(**{name: np.nan for name in self.later if name not in frame.columns})
        # Column by column, because Table.from_pandas would turn NaN into null.
        arrays = [_to_array(frame[field.name], field, field.name in self.floats) for field in self.disk]
        return pa.table(arrays, schema=self.disk)


#: How the two tables are stored.
HISTORY = Columns(
    tuple(name for name in COLUMNS if name != "second_moment"),
    texts=("layer", "kind", "signal"),
    floats=("acsm", "acv", "mean", *LATER_COLUMNS),
    later=LATER_COLUMNS,
    order=("layer", "signal", "step"),
)
BATCHNORM = Columns(tuple(BATCHNORM_COLUMNS), texts=("layer",), floats=GAIN_AND_FACTORS)


def check_known(what: str, values: Iterable[str], known: Collection[str]) -> list[str]:
    """The values as a list. Raises HistoryError for one that is not among those known."""
    values = list(values)
    for value in values:
        if value not in known:
            raise HistoryError(f"unknown {what} {value!r}; there are {', '.join(known)}")
    return values


def _to_array(values: pd.Series, field: pa.Field, is_float: bool) -> pa.Array:
    try:
        with np.errstate(over="ignore"):
            array = pa.array(values.to_numpy(np.float32 if is_float else None), field.type)
    except (TypeError, ValueError) as error:  # this is what Arrow's errors are, too
        raise ValueError(f"column {field.name} cannot be stored as {field.type}: {error}") from error
    if array.null_count:
        raise ValueError(f"column {field.name} has missing values")
    return array
