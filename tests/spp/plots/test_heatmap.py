"""Heatmaps are checked by the images and texts in their axes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.plots.heatmap import plot_heatmap
from tests.spp.plots.invented import cells, legend_texts


@pytest.mark.parametrize("statistic", ["acsm", "acv", "second_moment"])
def test_heatmap_holds_the_logarithms(ffnn: pd.DataFrame, statistic: Any) -> None:
    figure = plot_heatmap(ffnn, "gradient", statistic)
    ax = figure.axes[0]
    table = ffnn[ffnn["signal"] == "gradient"].pivot(index="depth", columns="step", values=statistic)
    np.testing.assert_allclose(cells(ax, 0).data, np.log10(table.to_numpy()))
    assert not figure.legends
    boundaries = [np.asarray(line.get_xdata())[0] for line in ax.get_lines() if line.get_gid() == "epoch boundary"]
    assert boundaries == [5.5, 11.5]
    (above,) = ax.child_axes
    assert [tick.get_text() for tick in above.get_xticklabels()] == ["0", "9", "19"]
    text = {"acsm": "ACSM", "acv": "ACV", "second_moment": "second moment"}[statistic]
    assert text in figure.axes[1].get_ylabel()


def test_heatmap_tells_cells_without_logarithm_apart(ffnn: pd.DataFrame) -> None:
    frame = ffnn.copy()
    steps = np.sort(frame["step"].unique())
    activation = frame["signal"] == "activation"
    frame.loc[activation & (frame["step"] == steps[3]) & (frame["depth"] < 2), "second_moment"] = np.nan
    frame.loc[activation & (frame["step"] == steps[4]) & (frame["depth"] == 5), "second_moment"] = 0.0
    frame = frame[~(activation & (frame["step"] == steps[2]) & (frame["depth"] == 8))]
    figure = plot_heatmap(frame)
    logarithms, others = cells(figure.axes[0], 0), cells(figure.axes[0], 1)
    mask = np.ma.getmaskarray(logarithms)
    assert {tuple(cell) for cell in np.argwhere(mask)} == {(0, 3), (1, 3), (5, 4), (8, 2)}
    assert (np.ma.getmaskarray(others) == ~mask).all()
    assert [others[0, 3], others[5, 4], others[8, 2]] == [0, 1, 2]
    assert legend_texts(figure) == [
        f"not finite: 2 of 522, first at step {steps[3]}",
        f"zero: 1 of 522, first at step {steps[4]}",
        f"not recorded: 1 of 522, first at step {steps[2]}",
    ]


def test_heatmap_of_weights_has_only_layers_with_weights(efficientnet: pd.DataFrame) -> None:
    figure = plot_heatmap(efficientnet, "parameter", limits=(-3.0, 0.0))
    image = figure.axes[0].images[0]
    depths = np.sort(efficientnet[efficientnet["signal"] == "parameter"]["depth"].unique())
    assert cells(figure.axes[0], 0).shape == (len(depths), 9)
    assert image.get_clim() == (-3.0, 0.0)
    assert figure.axes[0].yaxis.get_major_formatter()(10) == str(depths[10])


def test_heatmap_of_nothing_finite(ffnn: pd.DataFrame) -> None:
    plot_heatmap(ffnn.assign(acv=np.nan), statistic="acv").savefig(io.BytesIO(), dpi=40)
