"""Means of a history over the steps of each epoch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sppbench.spp.history.schema import HISTORY, HistoryError
from sppbench.spp.names import GAIN_AND_FACTORS, PLACES, SIGNALS


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
        ``nonfinite`` the sum over them and ``absmax`` the largest of them; a history without ``absmax``, ``zeros`` or
        ``subnormal`` gives no such columns. ``variance`` is the mean of the overall variance,
        ``second_moment - mean**2``, which does not follow from the means of these two. A step that is NaN makes the
        mean, and the largest, NaN. ``block`` and ``role`` as in ``history``, if they are there.

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
    if missing := [name for name in HISTORY.needed if name not in history.columns]:
        raise HistoryError(f"the history lacks the columns {', '.join(missing)}")
    if full_batches_only:
        history = history[history["samples"] == history["samples"].max()]
    keys = ["epoch", "depth", "layer", "kind", "signal", "ndim"]
    groups = history.groupby(keys, sort=True, observed=True)
    result = groups.agg(steps=("step", "size"), step=("step", "max"), nonfinite=("nonfinite", "sum"))
    number = groups.ngroup().to_numpy()
    values = {name: history[name].to_numpy(np.float64) for name in HISTORY.floats if name in history.columns}
    largest = values.pop("absmax", None)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite minus infinite
        # Rounding must not make it negative; NaN stays NaN.
        values["variance"] = np.maximum(values["acsm"] + values["acv"] - values["mean"] ** 2, 0)
    for name, of_steps in values.items():
        # Not groupby.mean: it skips NaN.
        result[name] = np.bincount(number, weights=of_steps, minlength=len(result)) / result["steps"]
    if largest is not None:
        absmax = np.zeros(len(result))
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            np.maximum.at(absmax, number, largest)
        result["absmax"] = absmax
    result = result.reset_index()
    result["second_moment"] = result["acsm"] + result["acv"]
    rank = result["signal"].map(list(SIGNALS).index)
    result = result.iloc[np.lexsort((rank, result["depth"], result["epoch"]))].reset_index(drop=True)
    later = [name for name in HISTORY.later if name in history.columns]
    result = result[[*keys, "steps", "step", "acsm", "acv", "second_moment", "mean", "variance", "nonfinite", *later]]
    places = [name for name in PLACES if name in history]
    of_layers = history.loc[~history["layer"].duplicated(), ["layer", *places]].set_index("layer")
    return result.assign(**{name: result["layer"].map(of_layers[name]).astype(history[name].dtype) for name in places})


def batchnorm_epoch_mean(steps: pd.DataFrame) -> pd.DataFrame:
    """Geometric means of the backward gains and of their factors over the steps of each epoch.

    Geometric, so that the means of the factors multiply to that of the gain, as the values of each step do.

    Args:
        steps: As :func:`read_batchnorm` returns it.

    Returns:
        One row per (epoch, depth, layer), sorted; ``steps`` is the number of steps with a positive gain and positive
        factors, which are averaged; gain, gamma_squared, inverse_variance, projection, NaN if there is no such step;
        and ``closure``, the largest ``|γ²·1/(v + ε)·p / gain - 1|`` among them.

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
