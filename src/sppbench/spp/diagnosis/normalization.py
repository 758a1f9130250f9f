"""Backward gains of batch normalizations that are far from 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sppbench.spp.diagnosis.finding import LIMITS, Finding, finding

_SHUT = 1e-2


def extreme_gains(batchnorm: pd.DataFrame) -> Iterator[Finding]:
    """Batch normalizations that make a gradient much larger or smaller.

    Args:
        batchnorm: As from ``read_batchnorm`` or ``batchnorm_epoch_mean``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.log(batchnorm["gain"])
    # One that is scaled to nothing shuts a branch, which is often so at the start.
    size[batchnorm["gamma_squared"] < _SHUT] = np.nan
    rows = batchnorm.assign(size=size)[np.isfinite(size)]
    if rows.empty:
        return
    layers = rows.groupby("layer", sort=False).agg(size=("size", "median"), depth=("depth", "first"))
    limit = np.log(LIMITS["batch normalization gain"].threshold)
    layers = layers[layers["size"].abs() > limit].sort_values("size", key=lambda one: -one.abs(), kind="stable")
    if layers.empty:
        return
    names = [str(name) for name in layers.index]
    of_worst = rows[rows["layer"] == layers.index[0]]
    times = of_worst["step"] if "step" in of_worst else of_worst["epoch"]
    step = int(times[of_worst["size"].abs() > limit].min())
    number = float(np.exp(layers["size"].iloc[0]))
    what = "its inputs hardly vary: their variance is near its ε" if number > 1 else "its inputs vary too much"
    text = f"the gradient changes by a factor of {number:.2g} at {names[0]}{{others}}: {what}"
    yield finding("batch normalization gain", "gradient", names, step, number, text)
