"""What the tests hold the probe against: all outputs and gradients kept whole, and reduced in NumPy's float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

Axis = Callable[[str, nn.Module, Tensor], int]


def second_or_last(name: str, module: nn.Module, x: Tensor) -> int:
    """The channel axis of nets for images: second where there are pixels."""
    return 1 if x.ndim >= 4 else x.ndim - 1


class Recorder:
    """Keeps the first tensor of what each module returns, and its gradient; the second call of ``fc`` is ``fc#2``."""

    def __init__(self, model: nn.Module, axis: Axis = second_or_last) -> None:
        self.tensors: dict[tuple[str, str], list[Tensor]] = {}
        self.axes: dict[str, int] = {}
        self._axis = axis
        self._calls: dict[str, int] = {}
        model.register_forward_pre_hook(lambda module, arguments: self._calls.clear())
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name or type(model).__name__))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            self._calls[name] = call = self._calls.get(name, 0) + 1
            label = name if call == 1 else f"{name}#{call}"
            self.axes[label] = self._axis(name, module, x)
            self._keep("activation", label, x)
            if x.requires_grad:
                x.register_hook(lambda gradient: self._keep("gradient", label, gradient))

        return hook

    def _keep(self, signal: str, name: str, x: Tensor) -> None:
        self.tensors.setdefault((signal, name), []).append(x.detach().double().clone())

    def expected(self, signal: str, name: str) -> dict[str, float]:
        """The statistics of one signal at one layer, all of its calls as one batch."""
        arrays = [np.moveaxis(x.numpy(), self.axes[name], 0) for x in self.tensors[signal, name]]
        channels = np.concatenate([array.reshape(array.shape[0], -1) for array in arrays], axis=1)
        return {
            "acsm": float((channels.mean(1) ** 2).mean()),
            "acv": float(channels.var(1).mean()),
            "second_moment": float((channels**2).mean()),
            "absmax": float(np.abs(channels).max()),
            "zeros": float((channels == 0).mean()),
        }


def check(frame: pd.DataFrame, recorder: Recorder) -> None:
    """Every activation and every gradient in the frame is as the recorder has it."""
    assert len(frame)
    for row in frame[frame.signal.isin(["activation", "gradient"])].itertuples():
        expected = recorder.expected(row.signal, row.layer)
        noise = 1e-12 * expected["second_moment"]
        where = f"{row.signal} of {row.layer}"
        assert row.acsm == pytest.approx(expected["acsm"], rel=1e-5, abs=noise), where
        assert row.acv == pytest.approx(expected["acv"], rel=1e-5, abs=noise), where
        assert row.second_moment == pytest.approx(expected["second_moment"], rel=1e-5, abs=0), where
        assert (row.nonfinite, row.absmax) == (0, expected["absmax"]), where
        assert row.zeros == pytest.approx(expected["zeros"], rel=1e-12, abs=0), where


def select(frame: pd.DataFrame, signal: str, layer: str | None = None) -> pd.DataFrame:
    """The rows of one signal, and of one layer if one is given."""
    return frame[(frame.signal == signal) & ((frame.layer == layer) if layer is not None else True)]


def same(left: pd.DataFrame, right: pd.DataFrame, rtol: float = 1e-5) -> None:
    """Both frames say the same, ACSM and ACV relative to the second moment."""
    keys = ["step", "depth", "layer", "kind", "signal", "ndim", "nonfinite", "samples"]
    pd.testing.assert_frame_equal(left[keys].reset_index(drop=True), right[keys].reset_index(drop=True))
    scale = left.second_moment.to_numpy()
    for name in ("acsm", "acv", "second_moment"):
        assert (np.abs(left[name].to_numpy() - right[name].to_numpy()) <= rtol * scale).all(), name
    np.testing.assert_allclose(left.absmax, right.absmax, rtol)
    for name in ("zeros", "subnormal"):
        np.testing.assert_allclose(left[name], right[name], 1e-12, err_msg=name)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with the weights that belong to a seed."""
    torch.manual_seed(seed)
    return make()
