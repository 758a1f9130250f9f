"""Nets, their inputs, and what a probe records of one step: what the tests of the theory compare with.

Tolerances. A second moment over h channels of one sample has the relative standard deviation √(2/h), after ReLU √(5/h);
over layers variances add up, over samples they average as far as samples are not correlated. With h = 2000 and four
layers that is at most 0.10, and 0.05 is seen; for ratios of neighbouring layers, √(5/2000) = 0.05 at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sppbench.models import FFNN
from sppbench.spp.probe.probe import SignalProbe

LAYERS = 4


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(net: nn.Module, x: Tensor, shared: float = 0.0) -> pd.DataFrame:
    """One step with a loss whose gradient is random; `shared` is the part of it that all samples have in common."""
    probe = SignalProbe(net.train())
    y = net(x)
    gradient = draw(*y.shape, seed=2) + shared * draw(1, *y.shape[1:], seed=3)
    (y * gradient).sum().backward()
    frame = probe.collect()
    probe.close()
    return frame


def wide(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"in_channels": 1, "image_size": 16, "num_classes": 500, "hidden_features": 2000, "depth": LAYERS}
    return FFNN(**{**sizes, **arguments})


def column(frame: pd.DataFrame, signal: str, name: str) -> pd.Series:
    return frame[frame["signal"] == signal].set_index("layer")[name]


def both(frame: pd.DataFrame, table: pd.DataFrame, signal: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Recorded and expected values of a statistic, where the theory says something."""
    expected = column(table, signal, name).dropna()
    expected = expected[expected.index.isin(column(frame, signal, name).index)]
    return column(frame, signal, name)[expected.index].to_numpy(), expected.to_numpy()


def smooth_images(count: int) -> Tensor:
    x = nn.functional.interpolate(draw(count, 3, 4, 4), size=32, mode="bilinear") + 0.3 * draw(count, 3, 32, 32, seed=8)
    return (x - x.mean()) / x.std()
