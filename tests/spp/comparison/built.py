"""Histories with values that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from sppbench.spp.comparison.pairing import Cell, Pairing, pair
from sppbench.spp.names import DEFAULT_SIGNALS

Value = Callable[[int, int, str], float]  # step, depth, signal -> second moment

LAYERS = [("stem", "Conv2d"), ("blocks.0", "ReLU"), ("blocks.1", "ReLU"), ("head", "Linear")]


def one(step: int, depth: int, signal: str) -> float:
    return 1.0


def built(
    value: Value = one,
    steps: Sequence[int] = range(6),
    layers: Sequence[tuple[str, str]] = LAYERS,
    signals: Sequence[str] = DEFAULT_SIGNALS,
) -> pd.DataFrame:
    """A history: a quarter of each second moment is ACSM, three are ACV; ten steps are an epoch."""
    rows = [
        {
            "step": step,
            "epoch": step // 10,
            "samples": 32,
            "depth": depth,
            "layer": layer,
            "kind": kind,
            "signal": signal,
            "ndim": 2,
            "acsm": value(step, depth, signal) / 4,
            "acv": value(step, depth, signal) * 3 / 4,
            "mean": 0.1,
            "nonfinite": 0,
            "absmax": 3.0,
            "zeros": 0.0,
            "subnormal": np.nan,
        }
        for step in steps
        for depth, (layer, kind) in enumerate(layers)
        for signal in signals
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(second_moment=frame["acsm"] + frame["acv"])


def paired(a: pd.DataFrame, b: pd.DataFrame, seeds: Sequence[pd.DataFrame] = ()) -> Pairing:
    return pair(a, b, seeds)


def column(pairing: Pairing, layer: str, signal: str) -> int:
    return next(number for number, cell in enumerate(pairing.cells) if (cell.layer, cell.signal) == (layer, signal))


def named(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    return [(cell.layer, cell.signal) for cell in cells]
