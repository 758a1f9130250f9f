"""Histories like those of the study, with invented values, and what the axes of a figure hold."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from sppbench.models import FFNN, EfficientNet

STEPS_PER_EPOCH = 79

BATCH, PARTIAL_BATCH = 512, 64

SIGNALS = ("activation", "gradient", "parameter")

SIGNALS_OF_PANELS = ("activation", "parameter", "gradient")


def make_history(net: nn.Module, epochs: list[int], steps_per_epoch: int, seed: int = 0) -> pd.DataFrame:
    """A history like those of the study, with the leaves of a real net and invented, plausible values."""
    generator = np.random.default_rng(seed)
    leaves = [(name, module) for name, module in net.named_modules() if name and not list(module.children())]
    parts = []
    for depth, (name, module) in enumerate(leaves):
        weight = dict(module.named_parameters()).get("weight")
        for signal, epoch in itertools.product(SIGNALS, epochs):
            if signal == "parameter" and weight is None:
                continue
            ndim = weight.dim() if weight is not None and signal == "parameter" else _output_ndim(net, name)
            rows = _epoch_rows(generator, depth / len(leaves), module, signal, epoch, steps_per_epoch)
            texts = {"depth": depth, "layer": name, "kind": type(module).__name__, "signal": signal, "ndim": ndim}
            parts.append({**rows, **{key: np.full(steps_per_epoch, value) for key, value in texts.items()}})
    frame = pd.DataFrame({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    frame["second_moment"] = frame["acsm"] + frame["acv"]
    return frame.sort_values(["step", "depth", "signal"], kind="stable", ignore_index=True)


def _output_ndim(net: nn.Module, name: str) -> int:
    return 2 if isinstance(net, FFNN) or name.startswith(("flatten", "classifier")) else 4


def _epoch_rows(
    generator: np.random.Generator, depth: float, module: nn.Module, signal: str, epoch: int, steps: int
) -> dict[str, np.ndarray]:
    """All steps of one epoch for one layer; `depth` goes from 0 at the input to 1."""
    if signal == "activation":
        spike = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.bias is not None
        acsm = 0.02 + (2 + epoch / 3) * spike * generator.random()
        acv = 0.5 + (58 if generator.random() < 0.03 else 1.5) * depth * (1 + epoch / 19) / 2
    elif signal == "gradient":
        tooth = 1.0 if isinstance(module, nn.ReLU | nn.BatchNorm2d | nn.SELU) else 0.45
        acsm = (
            1e-9 if isinstance(module, nn.Linear) else 0.3e-7 * tooth * (1 + 1.5 * (1 - depth) ** 4 * (1 + epoch / 9))
        )
        acv = 1e-7 * tooth * (1 + 2 * (1 - depth) ** 3 * (1 + epoch / 5))
    else:
        gamma = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        acsm = 1.0 - 0.01 * epoch if gamma else 1e-4
        acv = 0.0 if gamma else 0.004 * (1 + 0.002 * epoch) + 0.5 * generator.random() ** 12
    noise = generator.lognormal(0, 0.05, (2, steps))
    samples = np.full(steps, BATCH)
    samples[-1] = PARTIAL_BATCH
    weights = (BATCH / samples) ** 2 if signal == "gradient" else np.ones(steps)
    mean = np.sqrt(acsm * weights) * generator.normal(0, 0.5, steps)
    largest = np.sqrt(acsm * weights * noise[0])
    return {
        "step": epoch * steps + np.arange(steps),
        "epoch": np.full(steps, epoch),
        "samples": samples,
        "acsm": acsm * noise[0] * weights,
        "acv": acv * noise[1] * weights,
        "mean": np.clip(mean, -largest, largest),
        "nonfinite": np.zeros(steps, dtype=np.int64),
    }


def make_ffnn(epochs: list[int], steps_per_epoch: int = STEPS_PER_EPOCH) -> pd.DataFrame:
    return make_history(FFNN(normalization="batch_norm"), epochs, steps_per_epoch)


def make_efficientnet(epochs: list[int], steps_per_epoch: int, **arguments: Any) -> pd.DataFrame:
    with torch.device("meta"):
        net = EfficientNet(**arguments)
    return make_history(net, epochs, steps_per_epoch)


STATISTICS = ["acsm", "acv", "second_moment", "mean"]


def curve(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of an epoch, also where they are several lines, such as one for each kind of weights."""
    lines = [line for line in ax.get_lines() if str(line.get_label()).split(", ")[0] == label]
    x, y = (
        np.concatenate([np.asarray(get(line), dtype=float) for line in lines])
        for get in (Line2D.get_xdata, Line2D.get_ydata)
    )
    order = np.argsort(x, kind="stable")
    return x[order].astype(np.int64), y[order]


def marks(ax: Axes, gid: str) -> list[list[float]]:
    return [list(np.asarray(line.get_xdata())) for line in ax.get_lines() if line.get_gid() == gid]


def cells(ax: Axes, image: int) -> np.ma.MaskedArray[Any, Any]:
    array = ax.images[image].get_array()
    assert isinstance(array, np.ma.MaskedArray)
    return array


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]
