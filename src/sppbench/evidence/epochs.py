"""Epoch means of what a run recorded: the compact form of its histories, a hundredth of their size.

Beside ``spp.parquet`` and ``batchnorm.parquet``, with one row per step, stand their means in one file each:

- ``spp_epochs.parquet``: the table that `sppbench.spp.epoch_mean` gives, once over all batches and once over full ones
  (the column ``batches``, "all" or "full"), of activations, gradients and parameters.
- ``batchnorm_epochs.parquet``: the table that `sppbench.spp.batchnorm_epoch_mean` gives, of the backward gain of each
  batch normalization and of its factors.

A full history is compared with the ``result.json`` beside it: it must reach the last step of a run that came to its
end, and be of the same configuration. Where steps are missing no mean is formed.

In the footer of ``spp_epochs.parquet`` (the key ``sppbench`` of the Parquet metadata, JSON) stands, as in those of the
full history, whether gains were recorded (``batchnorm``), so that a table of them that was lost is missed.

Numbers are stored as float32, and are rounded to it also where they are computed from a full history: both give the
same figures, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sppbench.files import replacing
from sppbench.run.results import ResultError, read_result
from sppbench.spp.history.epoch_means import batchnorm_epoch_mean, epoch_mean
from sppbench.spp.history.parts import Origin
from sppbench.spp.history.reader import check_end, read_batchnorm, read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.names import DEFAULT_SIGNALS, GAIN_AND_FACTORS, PLACES, SIGNALS

SPP_FILE, BATCHNORM_FILE = "spp_epochs.parquet", "batchnorm_epochs.parquet"
_KEY = b"sppbench"

# What the columns of both hold; all others are floats.
_TEXTS = frozenset({"batches", "layer", "signal"})
_COUNTS = frozenset({"epoch", "depth", "steps"})


def spp_epochs(run: Path) -> pd.DataFrame:
    """The epoch means of a run's signals, with the columns of `epoch_mean` and ``batches``.

    Raises:
        HistoryError: There is neither a history nor its compact form; it is damaged; steps are missing; or it is not of
            the run whose result is beside it.
    """
    full = run / "spp.parquet"
    if not full.exists():
        return _read(run / SPP_FILE)
    compare_with_result(full)
    history = read_history(full, signals=DEFAULT_SIGNALS).drop(columns=list(PLACES))  # which follow from names
    means = [epoch_mean(history, full_batches_only=only).assign(batches=name) for name, only in _BATCHES.items()]
    return _derive(_rounded(pd.concat(means, ignore_index=True)))


_BATCHES = {"all": False, "full": True}


def batchnorm_epochs(run: Path) -> pd.DataFrame:
    """The epoch means of the backward gains, one row per (epoch, layer), with the columns of `batchnorm_epoch_mean`.

    Raises:
        HistoryError: As in `spp_epochs`.
    """
    full = run / "batchnorm.parquet"
    if not full.exists():
        return _read(run / BATCHNORM_FILE)
    compare_with_result(full)
    return _rounded(batchnorm_epoch_mean(read_batchnorm(full)))


def compare_with_result(history: Path) -> Origin | None:
    """Compares a full history with the result beside it, by the footers of its parts alone.

    Returns:
        What it says of its run; None if nothing, or if there is no result of a run that came to its end.

    Raises:
        HistoryError: It has a gap, ends before the run did, or is of another run.
    """
    try:
        result = read_result(history.with_name("result.json"))
    except ResultError:  # missing, or damaged: then the run does not count
        return None
    if result.status not in ("completed", "diverged"):
        return None
    origin = check_end(history, result.steps)
    if origin is not None and origin.config_hash not in (None, result.config_hash):
        raise HistoryError(
            f"{history} belongs to configuration {origin.config_hash}, and the result beside it to "
            f"{result.config_hash}: one of them is from another run"
        )
    return origin


def says_batchnorm(run: Path) -> bool | None:
    """Whether gains were recorded, as the footers of a run's signals say it; None where they do not.

    Raises:
        HistoryError: As in `compare_with_result`.
    """
    if (full := run / "spp.parquet").exists():
        origin = compare_with_result(full)
        return None if origin is None else origin.batchnorm
    try:
        stored = (pq.read_metadata(run / SPP_FILE).metadata or {}).get(_KEY)
        note = None if stored is None else json.loads(stored)["batchnorm"]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):  # missing, or damaged as the table will be
        return None
    return note if isinstance(note, bool) else None


def write_epochs(run: Path, directory: Path) -> None:
    """Writes the compact form of a run's histories, as far as it has any, into ``directory``.

    Raises:
        HistoryError: A history is damaged.
        OSError: The directory cannot be written to.
    """
    for name, full, read in (
        (SPP_FILE, "spp.parquet", spp_epochs),
        (BATCHNORM_FILE, "batchnorm.parquet", batchnorm_epochs),
    ):
        if (run / full).exists() or (run / name).exists():
            frame = read(run).drop(columns="second_moment", errors="ignore")
            floats = frame.select_dtypes("float64").columns
            table = pa.Table.from_pandas(frame.astype(dict.fromkeys(floats, "float32")), preserve_index=False)
            if name == SPP_FILE and (note := says_batchnorm(run)) is not None:
                table = table.replace_schema_metadata({**table.schema.metadata, _KEY: json.dumps({"batchnorm": note})})
            with replacing(directory / name) as file:
                # Floats compress better with their bytes split by significance.
                pq.write_table(
                    table,
                    file,
                    compression="zstd",
                    use_dictionary=[column for column in frame if column not in floats],
                    column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
                )


def _read(file: Path) -> pd.DataFrame:
    if not file.exists():
        raise HistoryError(f"{file.parent} has no recorded signals ({file.name})")
    try:
        frame = pd.read_parquet(file)
    except Exception as error:  # pyarrow has many kinds
        raise HistoryError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    needed = {"epoch", "depth", "layer", "steps"}
    needed |= {"batches", "signal", "acsm", "acv"} if file.name == SPP_FILE else {*GAIN_AND_FACTORS, "closure"}
    if missing := sorted(needed - set(frame)):
        raise HistoryError(f"{file} lacks the columns {', '.join(missing)}")
    for column in sorted(needed):
        kind = frame[column].dtype.kind
        if column in _TEXTS:
            fits = all(isinstance(value, str) for value in frame[column].unique())
        else:
            fits = kind == "i" if column in _COUNTS else kind == "f"
        if not fits:
            raise HistoryError(f"{file} is damaged: its column {column} has values of the wrong type")
    for column, known in (("batches", _BATCHES), ("signal", SIGNALS)):
        if column in needed and not set(frame[column].unique()) <= set(known):
            raise HistoryError(f"{file} is damaged: its column {column} has values other than {', '.join(known)}")
    floats = frame.select_dtypes("float32").columns
    return _derive(frame.astype(dict.fromkeys(floats, "float64")))


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    floats = frame.select_dtypes("float64").columns
    with np.errstate(over="ignore"):
        return frame.astype(dict.fromkeys(floats, "float32")).astype(dict.fromkeys(floats, "float64"))


def _derive(frame: pd.DataFrame) -> pd.DataFrame:
    if "acsm" not in frame:
        return frame
    moments = (frame["acsm"] + frame["acv"]).rename("second_moment")
    return pd.concat([frame.drop(columns="second_moment", errors="ignore"), moments], axis=1)
