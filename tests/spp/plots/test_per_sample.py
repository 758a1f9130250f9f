"""Gradients per sample are those of each sample's own loss, whatever the batch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sppbench.spp import SignalProbe, epoch_mean, plot_gradient, plot_heatmap, plot_spp
from sppbench.spp.plots.per_sample import gradients_per_sample

SIZES = (8, 2)


@pytest.fixture
def known() -> tuple[pd.DataFrame, torch.Tensor]:
    """A history of two batches, of 8 samples and of the first two of these, and the gradients of their own losses.

    The loss of sample i is the product of its outputs and row i of a matrix, which is therefore its gradient.
    """
    torch.manual_seed(0)
    net, x, gradients = nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4), torch.randn(8, 3)
    frames = []
    with SignalProbe(net, signals=("activation", "gradient", "parameter", "parameter_gradient")) as probe:
        for size in SIZES:
            net.zero_grad()
            (net(x[:size]) * gradients[:size]).sum(dim=1).mean().backward()
            frames.append(probe.collect())
    return pd.concat(frames, ignore_index=True), gradients


def test_statistics_are_those_of_the_gradients_of_each_sample(known: tuple[pd.DataFrame, torch.Tensor]) -> None:
    frame, gradients = known
    result = gradients_per_sample(frame)
    rows = result[result["signal"] == "gradient"].set_index("samples")
    for size in SIZES:
        own = gradients[:size].double()
        expected = {
            "acsm": own.mean(dim=0).square().mean(),
            "acv": own.var(dim=0, correction=0).mean(),
            "second_moment": own.square().mean(),
            "mean": own.mean(),
            "absmax": own.abs().max(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(rows.loc[size, name], float(value), rtol=1e-5)
    others = frame["signal"] != "gradient"
    pd.testing.assert_frame_equal(result[others], frame[others])
    rest = ["step", "samples", "layer", "signal", "zeros", "nonfinite"]
    pd.testing.assert_frame_equal(result[rest], frame[rest])


def test_a_heatmap_draws_them(known: tuple[pd.DataFrame, torch.Tensor]) -> None:
    frame, gradients = known
    figure = plot_heatmap(frame, "gradient", per_sample=True)
    expected = [float(gradients[:size].double().square().mean().log10()) for size in SIZES]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [expected], rtol=1e-5)
    assert figure.get_suptitle() == "Gradients during training, times the size of the batch"
    assert "times" not in plot_heatmap(frame, "activation", per_sample=True).get_suptitle()


def test_of_a_mean_over_steps_it_is_too_late(known: tuple[pd.DataFrame, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="per_sample needs a history with the column samples"):
        plot_heatmap(epoch_mean(known[0]), "gradient", per_sample=True)


def test_curves_are_of_them_too(known: tuple[pd.DataFrame, torch.Tensor]) -> None:
    """The mean over the steps of the epoch, each with its own batch."""
    frame, gradients = known
    expected = np.mean([float(gradients[:size].double().square().mean()) for size in SIZES])
    for plot, row in ((plot_gradient, 0), (plot_spp, 2)):
        figure = plot(frame, per_sample=True)
        (line,) = [line for line in figure.axes[row].get_lines() if line.get_label() == "Epoch 0"]
        np.testing.assert_allclose(line.get_ydata(), [expected], rtol=1e-5)
        assert figure.legends[0].get_title().get_text().endswith("gradients times the size of the batch")
