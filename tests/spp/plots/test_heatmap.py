"""Heatmaps are checked by the images and texts in their axes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sppbench.spp import epoch_mean
from sppbench.spp.plots import step_bins
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.step_bins import StepBins
from tests.spp.plots.invented import cells, legend_texts, marks


@pytest.mark.parametrize("statistic", ["acsm", "acv", "second_moment"])
def test_heatmap_holds_the_logarithms(ffnn: pd.DataFrame, statistic: Any) -> None:
    figure = plot_heatmap(ffnn, "gradient", statistic)
    ax = figure.axes[0]
    table = ffnn[ffnn["signal"] == "gradient"].pivot(index="depth", columns="step", values=statistic)
    np.testing.assert_allclose(cells(ax, 0).data, np.log10(table.to_numpy()))
    boundaries = [np.asarray(line.get_xdata())[0] for line in ax.get_lines() if line.get_gid() == "epoch boundary"]
    assert boundaries == [5.5, 11.5]
    (above,) = [child for child in ax.child_axes if child.get_xlabel() == "epoch"]
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
    right, _above = figure.axes[0].child_axes
    labels = [tick.get_text() for tick in right.get_yticklabels()]
    assert labels == [str(depths[round(place)]) for place in right.get_yticks()]
    assert len(labels) > 2


def test_heatmap_of_nothing_finite(ffnn: pd.DataFrame) -> None:
    plot_heatmap(ffnn.assign(acv=np.nan), statistic="acv").savefig(io.BytesIO(), dpi=40)


def alternating(layers: int, steps: int, name: str = "layer{0}") -> pd.DataFrame:
    """Even layers have the second moment 1, odd ones 0.001, at every step."""
    depth, step = (index.ravel() for index in np.indices((layers, steps)))
    frame = pd.DataFrame({"step": step, "epoch": step * 0, "depth": depth, "kind": "Linear", "signal": "activation"})
    frame["layer"] = [name.format(one, one // 10) for one in depth]
    return frame.assign(second_moment=np.where(depth % 2, 1e-3, 1.0))


def pixels(figure: Figure) -> np.ndarray:
    """The colors within the axes of a heatmap, but for its frame, as numbers; shape (height, width)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole = np.asarray(canvas.buffer_rgba())
    box = figure.axes[0].get_window_extent()
    top, bottom = round(len(whole) - box.y1), round(len(whole) - box.y0)
    within = whole[top + 4 : bottom - 4, round(box.x0) + 4 : round(box.x1) - 4]
    return np.ascontiguousarray(within).view(np.uint32)[..., 0]


@pytest.mark.parametrize(("layers", "steps", "bins"), [(8, 301, "mean"), (8, 5000, "max"), (900, 2, "mean")])
def test_no_color_is_invented(layers: int, steps: int, bins: Any) -> None:
    """Neither between layers nor between steps, also where there are more of them than pixels."""
    image = pixels(plot_heatmap(alternating(layers, steps, "blocks.{1}.layer{0}"), bins=bins))
    assert len(np.unique(image[:, 0])) == 2
    assert (image == image[:, :1]).all()
    heights = np.diff(np.flatnonzero(np.diff(image[:, 0])))  # of all rows but those at the frame
    assert heights.max() - heights.min() <= 1
    assert heights.mean() == pytest.approx(len(image) / layers, rel=0.05)


@pytest.mark.parametrize("bins", ["mean", "max"])
def test_neighboring_steps_share_a_column(bins: Any) -> None:
    """1,201 steps make 401 columns: 400 of three, and one of a single step."""
    frame = alternating(2, 1201)
    frame["second_moment"] = np.random.default_rng(0).lognormal(size=len(frame))
    values = frame["second_moment"].to_numpy().reshape(2, 1201)
    whole = values[:, :1200].reshape(2, 400, 3)
    expected = np.concatenate([whole.mean(axis=2) if bins == "mean" else whole.max(axis=2), values[:, 1200:]], axis=1)
    figure = plot_heatmap(frame, bins=bins)
    np.testing.assert_allclose(cells(figure.axes[0], 0).data, np.log10(expected))
    assert figure.get_suptitle().endswith(f"\neach column is the {bins} of 3 recorded steps")
    assert figure.axes[0].get_xlim() == (-0.5, 1200.5)
    assert "column" not in plot_heatmap(frame[frame["step"] < 600]).get_suptitle()


def test_cells_without_a_logarithm_in_shared_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_bins, "MOST_COLUMNS", 3)
    values = np.array([[1.0, 3.0, 0.0, 4.0, -1.0], [np.nan, 1.0, 0.0, 0.0, np.inf], [-1.0, -1.0, -1.0, 5.0, 7.0]])
    columns = StepBins.of(5)
    mean, largest = columns.values(values, "mean"), columns.values(values, "max")
    np.testing.assert_array_equal(mean, [[2.0, 2.0, -1.0], [np.nan, 0.0, np.inf], [-1.0, 5.0, 7.0]])
    np.testing.assert_array_equal(largest, [[3.0, 4.0, -1.0], [np.nan, 0.0, np.inf], [-1.0, 5.0, 7.0]])
    # What is counted below the figure are values, not columns.
    frame = alternating(3, 5).assign(second_moment=values.ravel())
    assert legend_texts(plot_heatmap(frame[frame["second_moment"] != -1])) == [
        "not finite: 2 of 15, first at step 0",
        "zero: 3 of 15, first at step 2",
        "not recorded: 4 of 15, first at step 0",
    ]


def test_smaller_batches_are_marked_and_leave_the_colors_to_the_others(ffnn: pd.DataFrame) -> None:
    """Of 18 steps each sixth has 64 of 512 samples."""
    figure = plot_heatmap(ffnn, "gradient")
    assert marks(figure.axes[0], "smaller batch") == [[5, 11, 17]]
    assert legend_texts(figure) == ["smaller batch, from 64 of 512 samples: second moments up to 64 times larger"]
    full = plot_heatmap(ffnn[ffnn["samples"] == 512], "gradient")
    assert figure.axes[0].images[0].get_clim() == full.axes[0].images[0].get_clim()
    for other in (full, plot_heatmap(ffnn), plot_heatmap(ffnn, "gradient", per_sample=True)):
        assert not marks(other.axes[0], "smaller batch")
        assert not other.legends
    assert not marks(plot_heatmap(epoch_mean(ffnn), "gradient").axes[0], "smaller batch")


def test_a_mark_is_in_the_middle_of_its_column(ffnn: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_bins, "MOST_COLUMNS", 4)  # of five steps, and the last of three
    assert marks(plot_heatmap(ffnn, "gradient").axes[0], "smaller batch") == [[7, 12, 16]]


def test_rounding_has_the_color_of_zero(ffnn: pd.DataFrame) -> None:
    rounded = (ffnn["signal"] == "gradient") & (ffnn["kind"] == "Linear")
    frame = ffnn.assign(acsm=ffnn["acsm"].where(~rounded, 1e-13 * ffnn["second_moment"]))
    figure = plot_heatmap(frame, "gradient", "acsm")
    linear = np.flatnonzero(frame.drop_duplicates("depth")["kind"] == "Linear")
    zero = np.ma.filled(cells(figure.axes[0], 1), -1) == 1
    assert (np.flatnonzero(zero.all(axis=1)) == linear).all()
    assert zero.any(axis=1).sum() == len(linear)
    assert legend_texts(figure)[0] == "zero, or only rounding: 180 of 522, first at step 0"


def test_a_heatmap_of_one_step(ffnn: pd.DataFrame) -> None:
    figure = plot_heatmap(ffnn[ffnn["step"] == 56])
    ax = figure.axes[0]
    figure.draw_without_rendering()
    (above,) = [child for child in ax.child_axes if child.get_xlabel() == "epoch"]
    for axis, label in ((ax, "56"), (above, "9")):
        assert [(tick.get_text(), tick.get_position()[0]) for tick in axis.get_xticklabels()] == [(label, 0)]


def test_rows_have_names() -> None:
    ax = plot_heatmap(alternating(24, 3, "encoder.layers.encoder_layer_{1}.attention.{0}")).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()][::10] == [
        *("encoder…attention.0 Linear", "encoder…attention.10 Linear", "encoder…attention.20 Linear"),
    ]
    assert not [line for line in ax.get_lines() if line.get_gid() == "bracket"]


def test_blocks_of_many_rows_have_brackets() -> None:
    ax = plot_heatmap(alternating(100, 3, "encoder.layers.encoder_layer_{1}.mlp.{0}")).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"encoder…encoder_layer_{i}" for i in range(10)]
    assert list(ax.get_yticks()) == [10 * i + 4.5 for i in range(10)]
    brackets = [np.asarray(line.get_ydata()) for line in ax.get_lines() if line.get_gid() == "bracket"]
    assert [(round(low + 0.5), round(high + 0.5)) for low, high in brackets] == [
        (10 * i, 10 * i + 10) for i in range(10)
    ]


def test_numbers_of_rows_are_the_depths_of_the_table(ffnn: pd.DataFrame) -> None:
    ax = plot_heatmap(ffnn, "activation", layers=["block4.*", "block7.*"]).axes[0]
    (right,) = [child for child in ax.child_axes if child.get_ylabel() == "depth"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["13", "14", "15", "22", "23", "24"]
