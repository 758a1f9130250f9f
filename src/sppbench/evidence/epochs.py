"""Epoch means of what a run recorded: the compact form of its histories, a hundredth of their size.

Beside ``spp.parquet`` and ``batchnorm.parquet``, with one row a step, stand their means in one file each:

- ``spp_epochs.parquet``: the table that `sppbench.spp.epoch_mean` gives, once over all batches and once over full ones
  (the column ``batches``, "all" or "full"), of activations, gradients and parameters.
- ``batchnorm_epochs.parquet``: of the backward gain of each batch normalization and of its factors the *geometric* mean
  over the steps of an epoch, so that the means of the factors multiply to that of the gain; ``steps`` counts the steps
  that were averaged, and ``closure`` is the largest |γ²·1/(v + ε)·p / gain − 1| among them.

Numbers are stored as float32, and are rounded to it also where they are computed from a full history: both give the
same figures, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from sppbench.spp.history import HistoryError, epoch_mean, read_batchnorm, read_history

SPP_FILE, BATCHNORM_FILE = "spp_epochs.parquet", "batchnorm_epochs.parquet"
FACTORS = ("gamma_squared", "inverse_variance", "projection")
_SIGNALS = ("activation", "gradient", "parameter")


def spp_epochs(run: Path) -> pd.DataFrame:
    """The epoch means of a run's signals, with the columns of `epoch_mean` and ``batches``.

    Raises:
        HistoryError: There is neither a history nor its compact form, or it is damaged.
    """
    full = run / "spp.parquet"
    if not full.exists():
        return _read(run / SPP_FILE)
    history = read_history(full, signals=_SIGNALS)
    means = [epoch_mean(history, full_batches_only=only).assign(batches=name) for name, only in _BATCHES.items()]
    return _derive(_rounded(pd.concat(means, ignore_index=True)))


_BATCHES = {"all": False, "full": True}


def batchnorm_epochs(run: Path) -> pd.DataFrame:
    """The epoch means of the backward gains, one row per (epoch, layer), sorted by epoch and depth.

    Columns: epoch, depth, layer, steps, gain, gamma_squared, inverse_variance, projection, closure. NaN where no step
    of the epoch has a positive gain with positive factors.

    Raises:
        HistoryError: As of `spp_epochs`.
    """
    full = run / "batchnorm.parquet"
    if not full.exists():
        return _read(run / BATCHNORM_FILE)
    steps = read_batchnorm(full)
    names = ["gain", *FACTORS]
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(steps[names])
    logarithms = logarithms.where(np.isfinite(logarithms).all(axis=1), np.nan)
    logarithms["closure"] = np.expm1(logarithms[list(FACTORS)].sum(axis=1, skipna=False) - logarithms["gain"]).abs()
    keyed = pd.concat([steps[["epoch", "depth", "layer"]], logarithms], axis=1)
    groups = keyed.groupby(["epoch", "depth", "layer"], sort=True)
    means = np.exp(groups[names].mean())
    means.insert(0, "steps", groups["gain"].count())
    return _rounded(means.assign(closure=groups["closure"].max()).reset_index())


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
            temporary = directory / f".{name}.tmp"
            try:
                # Floats compress better with their bytes split by significance.
                frame.astype(dict.fromkeys(floats, "float32")).to_parquet(
                    temporary,
                    index=False,
                    compression="zstd",
                    use_dictionary=[column for column in frame if column not in floats],
                    column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
                )
                temporary.replace(directory / name)
            finally:
                temporary.unlink(missing_ok=True)


def _read(file: Path) -> pd.DataFrame:
    if not file.exists():
        raise HistoryError(f"{file.parent} has no recorded signals ({file.name})")
    try:
        frame = pd.read_parquet(file)
    except Exception as error:  # pyarrow has many kinds
        raise HistoryError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    needed = {"epoch", "depth", "layer", "steps"}
    needed |= {"batches", "signal", "acsm", "acv"} if file.name == SPP_FILE else {"gain", *FACTORS, "closure"}
    if missing := sorted(needed - set(frame)):
        raise HistoryError(f"{file} lacks the columns {', '.join(missing)}")
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
