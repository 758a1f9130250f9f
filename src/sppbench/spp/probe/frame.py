"""Readings of a probe as a tidy table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from sppbench.spp.names import COLUMNS, OF_BATCH
from sppbench.spp.probe.readings import Readings


def to_frame(readings: Sequence[Readings]) -> pd.DataFrame:
    """The statistics of some steps, one row per (step, depth, layer, kind, signal), fetched from the device at once."""
    if not readings:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    values = torch.cat([one.values for one in readings]).cpu().numpy()
    lengths = [len(one.rows) for one in readings]
    rows = [row for one in readings for row in one.rows]
    acsm, acv, mean, nonfinite, _ = values.T
    # A weight has no samples: the batch is that of the activations and gradients of its step.
    samples = np.concatenate(
        [
            np.full(len(one.rows), _samples(one, part))
            for one, part in zip(readings, np.split(values[:, 4], np.cumsum(lengths)[:-1]), strict=True)
        ]
    )
    columns = {
        "step": np.repeat([one.step for one in readings], lengths),
        "epoch": np.repeat([one.epoch for one in readings], lengths),
        "samples": samples,
        "depth": [row.depth for row in rows],
        "layer": [row.layer for row in rows],
        "kind": [row.kind for row in rows],
        "signal": [row.signal for row in rows],
        "ndim": [row.ndim for row in rows],
        "acsm": acsm,
        "acv": acv,
        "second_moment": acsm + acv,
        "mean": mean,
        "nonfinite": nonfinite,
    }
    return pd.DataFrame(columns).astype(COLUMNS)


def _samples(one: Readings, counted: np.ndarray) -> int:
    of_batch = [count for row, count in zip(one.rows, counted, strict=True) if row.signal in OF_BATCH]
    return int(of_batch[0]) if of_batch else 0
