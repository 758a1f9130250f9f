"""The history of a training run: what a probe saw, one row per (step, layer, signal), kept in Parquet.

A history on disk is a directory, by custom ``spp.parquet``, of part files: see ``sppbench.spp.history.parts``. pandas,
pyarrow and duckdb read it as one table by its name, also while it grows; polars reads ``spp.parquet/*.parquet``.

=============  =======  ================================================================================
column         type     meaning
=============  =======  ================================================================================
step           int64    index of the optimizer step, from 0
epoch          int64    from 0
samples        int64    samples in that step's batch
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
=============  =======  ================================================================================

Statistics are stored as float32, the type in which a probe takes them, and come back as float64, so that neither
``acsm + acv`` nor means over steps are rounded to float32. NaN and infinities are kept. A layer has no row for a step
in which it did not run.

What a ``BatchNormProbe`` found is kept beside it, by custom in ``batchnorm.parquet``, one row per (step, layer):

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

import os
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sppbench.spp.history.parts import HistoryError, PartsWriter, is_in, listed, read_parts
from sppbench.spp.history.schema import Columns
from sppbench.spp.names import BATCHNORM_COLUMNS, COLUMNS, GAIN_AND_FACTORS, SIGNALS

__all__ = [
    "BatchNormWriter",
    "HistoryError",
    "HistoryWriter",
    "batchnorm_epoch_mean",
    "epoch_mean",
    "read_batchnorm",
    "read_history",
]

_HISTORY = Columns(
    tuple(name for name in COLUMNS if name != "second_moment"),
    texts=("layer", "kind", "signal"),
    floats=("acsm", "acv", "mean"),
    order=("layer", "signal", "step"),
)
_BATCHNORM = Columns(tuple(BATCHNORM_COLUMNS), texts=("layer",), floats=GAIN_AND_FACTORS)


class HistoryWriter(PartsWriter):
    """Appends to a history directory. Whoever reads it, at any moment and after any crash, sees whole parts only.

    Args, attributes and errors are those of :class:`sppbench.spp.history.parts.PartsWriter`.

    Example:
        >>> writer = HistoryWriter("new/spp.parquet")
        >>> with SignalProbe(model) as probe:
        ...     for x, y in batches:
        ...         criterion(model(x), y).backward()
        ...         writer.append(probe.collect())
        >>> writer.last_step
        1
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        super().__init__(path, _HISTORY, resume_at=resume_at)

    def append(self, frame: pd.DataFrame) -> None:
        """Writes the rows as one part; ``second_moment`` is not needed. See :meth:`PartsWriter.append`.

        Raises:
            ValueError: As there, and for an unknown signal.
        """
        if "signal" in frame:
            _check_known("signal", frame["signal"].dropna().unique(), SIGNALS)
        super().append(frame)


class BatchNormWriter(PartsWriter):
    """Appends what a ``BatchNormProbe`` found to a directory, as :class:`HistoryWriter` does with a history."""

    def __init__(self, path: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        super().__init__(path, _BATCHNORM, resume_at=resume_at)


def read_history(
    path: str | os.PathLike[str],
    *,
    layers: str | Iterable[str] | None = None,
    signals: str | Iterable[str] | None = None,
    epochs: int | Collection[int] | None = None,
    steps: int | Collection[int] | None = None,
    columns: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Reads a history, or only a part of it, without reading the rest.

    Args:
        path: A history directory, or a single Parquet file with the same columns.
        layers: Names or globs (``"features.1.*"``), or one of them; all by default.
        signals: Some of :data:`SIGNALS`, or one of them; all by default.
        epochs: Epochs from 0, for example ``range(10)`` or ``(0, 9, 19)``; all by default.
        steps: Steps from 0, likewise.
        columns: Some of :data:`COLUMNS`; all by default.

    Returns:
        One row per (step, layer, signal), sorted by step, depth and the order of :data:`SIGNALS`; columns as asked for.
        Without rows if no row passes the filters.

    Raises:
        HistoryError: The history is missing, empty, damaged or lacks columns, or a layer, signal or column is unknown.

    Example:
        >>> history = read_history("run/spp.parquet", layers=["0", "1"], signals="gradient", epochs=range(10))
        >>> sorted(history["layer"].unique())
        ['0', '1']
    """
    wanted = list(COLUMNS if columns is None else columns)
    _check_known("column", wanted, COLUMNS)
    needed = {"step", "depth", "layer", "signal", *wanted} | ({"acsm", "acv"} if "second_moment" in wanted else set())
    conditions = []
    if signals is not None:
        conditions.append(is_in("signal", _check_known("signal", listed(signals), SIGNALS)))
    table = read_parts(path, _HISTORY, needed, layers=layers, epochs=epochs, steps=steps, conditions=conditions)
    return _to_frame(table)[wanted]


def read_batchnorm(
    path: str | os.PathLike[str],
    *,
    layers: str | Iterable[str] | None = None,
    epochs: int | Collection[int] | None = None,
    steps: int | Collection[int] | None = None,
) -> pd.DataFrame:
    """Reads the backward gains of the batch normalizations, or only a part of them, without reading the rest.

    Args:
        path: A directory ``batchnorm.parquet``, or a single Parquet file with the same columns.
        layers, epochs, steps: As of :func:`read_history`.

    Returns:
        One row per (step, layer), sorted by step and depth, with the columns :data:`BATCHNORM_COLUMNS`. Without rows if
        no row passes the filters.

    Raises:
        HistoryError: The directory is missing, empty, damaged or lacks columns, or a layer is unknown.

    Example:
        >>> gains = read_batchnorm("run/batchnorm.parquet", steps=0)
        >>> gains["layer"].tolist()
        ['1']
    """
    table = read_parts(path, _BATCHNORM, BATCHNORM_COLUMNS, layers=layers, epochs=epochs, steps=steps)
    return table.sort_by([("step", "ascending"), ("depth", "ascending")]).to_pandas()


def epoch_mean(history: pd.DataFrame, full_batches_only: bool = False) -> pd.DataFrame:
    """Plain mean of each statistic over the steps of each epoch: every step counts the same, however small its batch.

    The gradient of a mean loss grows as its batch shrinks, its second moment as 1/batch². So a smaller last batch
    weighs more: at 78 batches of 512 and one of 64 it raises the epoch's mean by (78 + 64)/79 = 1.80.

    Args:
        history: As :func:`read_history` returns it; ``second_moment`` is not needed.
        full_batches_only: Leave out the steps whose batch is smaller than the largest in ``history``.

    Returns:
        One row per (epoch, depth, layer, kind, signal, ndim), sorted by epoch, depth and signal. ``steps`` is the
        number of steps in which the layer ran, ``step`` the last of them (so the frame can be drawn as a history),
        ``nonfinite`` the sum over them. ``variance`` is the mean of the overall variance, ``second_moment - mean**2``,
        which does not follow from the means of these two. A step that is NaN makes the mean NaN.

    Raises:
        HistoryError: ``history`` lacks columns.

    Example:
        >>> means = epoch_mean(read_history("run/spp.parquet", signals="activation"))
        >>> means[["epoch", "depth", "layer", "kind", "steps"]]
           epoch  depth layer         kind  steps
        0      0      0     0       Linear      2
        1      0      1     1  BatchNorm1d      2
        2      0      2     2         ReLU      2
        3      0      3     3       Linear      2
    """
    if missing := [name for name in _HISTORY.names if name not in history.columns]:
        raise HistoryError(f"the history lacks the columns {', '.join(missing)}")
    if full_batches_only:
        history = history[history["samples"] == history["samples"].max()]
    keys = ["epoch", "depth", "layer", "kind", "signal", "ndim"]
    groups = history.groupby(keys, sort=True, observed=True)
    result = groups.agg(steps=("step", "size"), step=("step", "max"), nonfinite=("nonfinite", "sum"))
    number = groups.ngroup().to_numpy()
    values = {name: history[name].to_numpy(np.float64) for name in _HISTORY.floats}
    with np.errstate(invalid="ignore", over="ignore"):  # infinite minus infinite
        # Rounding must not make it negative; NaN stays NaN.
        values["variance"] = np.maximum(values["acsm"] + values["acv"] - values["mean"] ** 2, 0)
    for name, of_steps in values.items():
        # Not groupby.mean: it skips NaN.
        result[name] = np.bincount(number, weights=of_steps, minlength=len(result)) / result["steps"]
    result = result.reset_index()
    result["second_moment"] = result["acsm"] + result["acv"]
    rank = result["signal"].map(list(SIGNALS).index)
    result = result.iloc[np.lexsort((rank, result["depth"], result["epoch"]))].reset_index(drop=True)
    return result[[*keys, "steps", "step", "acsm", "acv", "second_moment", "mean", "variance", "nonfinite"]]


def batchnorm_epoch_mean(steps: pd.DataFrame) -> pd.DataFrame:
    """Geometric means of the backward gains and of their factors over the steps of each epoch.

    Geometric, so that the means of the factors multiply to that of the gain, as the values of each step do.

    Args:
        steps: As :func:`read_batchnorm` returns it.

    Returns:
        One row per (epoch, depth, layer), sorted: ``steps``, the number of steps with a positive gain and positive
        factors, which are averaged; gain, gamma_squared, inverse_variance, projection, NaN if there is no such step;
        and ``closure``, the largest |γ²·1/(v + ε)·p / gain - 1| among them.

    Example:
        >>> means = batchnorm_epoch_mean(read_batchnorm("run/batchnorm.parquet"))
        >>> means[["epoch", "layer", "steps"]]
           epoch layer  steps
        0      0     1      2
    """
    names = list(GAIN_AND_FACTORS)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(steps[names])
    logarithms = logarithms.where(np.isfinite(logarithms).all(axis=1), np.nan)
    product = logarithms[names[1:]].sum(axis=1, skipna=False)
    logarithms["closure"] = np.expm1(product - logarithms["gain"]).abs()
    groups = pd.concat([steps[["epoch", "depth", "layer"]], logarithms], axis=1).groupby(["epoch", "depth", "layer"])
    means = np.exp(groups[names].mean())
    means.insert(0, "steps", groups["gain"].count())
    return means.assign(closure=groups["closure"].max()).reset_index()


def _to_frame(table: pa.Table) -> pd.DataFrame:
    """The table in the order of a history, with the second moment where it can be computed."""
    rank = pc.index_in(table["signal"], pa.array(SIGNALS)).fill_null(len(SIGNALS))
    # A stable sort: layers of the same depth stay in the order in which they are stored, by name.
    order = np.lexsort((rank, table["depth"], table["step"]))
    frame = table.take(pa.array(order)).to_pandas()
    if "acsm" in frame and "acv" in frame:
        frame["second_moment"] = frame["acsm"] + frame["acv"]
    return frame


def _check_known(what: str, values: Iterable[str], known: Collection[str]) -> list[str]:
    values = list(values)
    for value in values:
        if value not in known:
            raise HistoryError(f"unknown {what} {value!r}; there are {', '.join(known)}")
    return values
