"""A run that never took place, and its history."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from sppbench.spp.history import writer
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.names import COLUMNS, PLACES, SIGNALS

STEPS_PER_EPOCH = 4


def rows(first: int, end: int, layers: int = 5) -> pd.DataFrame:
    """Steps ``first`` to ``end - 1`` of one imagined run: the same numbers however it is cut. Rows in reverse."""
    frames = []
    for step in range(first, end):
        # Depth and alphabet disagree: layer10 comes before layer2.
        depth = np.repeat(np.arange(layers), 3)
        values = np.random.default_rng(step).lognormal(-5, 5, (4, len(depth))).astype(np.float32).astype(np.float64)
        frame = {
            "step": step,
            "epoch": step // STEPS_PER_EPOCH,
            "samples": 8 if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1 else 64,
            "depth": depth,
            "layer": [f"layer{number}" for number in depth],
            "kind": np.where(depth % 2, "ReLU", "Linear"),
            "signal": ["parameter", "gradient", "activation"] * layers,
            "ndim": 2,
            "acsm": values[0],
            "acv": values[1],
            "mean": -values[2],
            "nonfinite": np.arange(len(depth)),
            "absmax": values[3],
            "zeros": depth / 64,
            "subnormal": np.where(depth % 3, np.nan, depth / 128),
        }
        frames.append(pd.DataFrame(frame).iloc[::-1])
    return pd.concat(frames, ignore_index=True)


def as_read(frame: pd.DataFrame) -> pd.DataFrame:
    """What read_history should return for the frame, by other means."""
    frame = frame.assign(second_moment=frame["acsm"] + frame["acv"], rank=frame["signal"].map(SIGNALS.index))
    frame = {"block": -1, "role": frame["layer"]} | dict(frame)  # in no block, if the frame does not say it
    frame = pd.DataFrame(frame).sort_values(["step", "depth", "rank"], ignore_index=True)
    return frame[[*COLUMNS, *PLACES]]


def write(path: Path, *cuts: int, layers: int = 5, **options: Any) -> Path:
    """A history of the steps from cuts[0] to cuts[-1] - 1, one part between each two: each is full at once."""
    with mock.patch.object(writer, "_FULL", 0):
        history = HistoryWriter(path, **options)
        for first, end in pairwise(cuts):
            history.append(rows(first, end, layers))
    return path


def part(path: Path, start: int) -> Path:
    return path / f"steps-{start:09d}.parquet"


def assert_same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left, right, check_exact=True)


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())
