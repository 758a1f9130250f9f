"""Figures are alike whatever the settings, and their axes and ticks are where they should be."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sppbench.spp.names import short_name
from sppbench.spp.plots.axes import layer_labels, name_blocks, short_number
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.panels import plot_gradient, plot_spp


def test_few_layers_are_named(ffnn: pd.DataFrame) -> None:
    for figure in (plot_spp(ffnn), plot_gradient(ffnn)):
        figure.draw_without_rendering()
        ticks = figure.axes[2 if len(figure.axes) > 1 else 0].get_xticklabels()
        assert len(ticks) == 29
        assert [tick.get_text() for tick in ticks[:4]] == ["flatten", "linear", "norm", "activation"]
        (above,) = figure.axes[0].child_axes
        assert [tick.get_text() for tick in above.get_xticklabels()] == [f"block{i}" for i in range(9)]
        brackets = [line for line in figure.axes[0].get_lines() if line.get_gid() == "bracket"]
        assert [list(line.get_xdata()) for line in brackets][1] == [3.7, 6.3]
        boxes = [tick.get_window_extent() for tick in ticks]
        assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))


def test_many_layers_are_numbered_with_blocks(efficientnet: pd.DataFrame) -> None:
    figure = plot_spp(efficientnet)
    ax = figure.axes[0]
    names = list(efficientnet.drop_duplicates("depth").sort_values("depth")["layer"])
    heads = [".".join(name.split(".")[:2]) if name.startswith("features") else name.split(".")[0] for name in names]
    boundaries = [i - 0.5 for i in range(1, len(heads)) if heads[i] != heads[i - 1]]
    drawn = [np.asarray(line.get_xdata())[0] for line in ax.get_lines() if line.get_gid() == "block boundary"]
    assert drawn == boundaries
    figure.draw_without_rendering()
    (above,) = ax.child_axes
    labels = {tick.get_text(): place for tick, place in zip(above.get_xticklabels(), above.get_xticks(), strict=True)}
    middle = np.mean([i for i, head in enumerate(heads) if head == "features.4"])
    assert labels["features.4"] == middle
    boxes = [tick.get_window_extent() for tick in above.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(boxes))


def test_blocks_of_other_nets() -> None:
    names = ["conv1", *(f"layer{i}.{j}.conv" for i in (1, 2, 3) for j in range(3)), "fc"]
    assert [(b.label, b.start, b.stop) for b in name_blocks(names)] == [
        *(("conv1", 0, 1), ("layer1", 1, 4), ("layer2", 4, 7), ("layer3", 7, 10), ("fc", 10, 11)),
    ]
    # A bracket around each layer of a long Sequential would say nothing.
    assert [b.label for b in name_blocks([f"net.layers.{i}" for i in range(3)])] == ["net.layers"]
    assert [b.label for b in name_blocks(["alone"])] == ["alone"]


def test_names_are_shortened_in_the_middle() -> None:
    name = "encoder.layers.encoder_layer_0.mlp.fc2"
    assert short_name(name, 15) == "encoder…mlp.fc2"
    assert short_name(name, 38) == name
    assert short_name(name, 8) == "…fc2"
    assert short_name("post_attention_layernorm", 16) == "post_…_layernorm"
    assert all(len(short_name(name, longest)) <= longest for longest in range(4, 40))
    names, kinds = ["encoder.layers.3.ffn.0", "ffn.1#2", "head", name], ["Linear", "GELU", "Linear", "Linear"]
    assert layer_labels(names, kinds) == ["encoder…3.ffn.0 Linear", "ffn.1#2 GELU", "head", "encoder…mlp.fc2"]


def test_chosen_layers_keep_their_depth(efficientnet: pd.DataFrame) -> None:
    ax = plot_gradient(efficientnet, layers=["features.[4-8].*", "classifier.*"]).axes[0]
    chosen = efficientnet[efficientnet["layer"].str.match(r"features\.[4-8]\.|classifier")]
    depths = sorted(set(chosen["depth"]))
    formatter = ax.xaxis.get_major_formatter()
    assert [formatter(place) for place in range(len(depths))] == [str(depth) for depth in depths]


def test_pictures_are_sharp(ffnn: pd.DataFrame) -> None:
    file = io.BytesIO()
    plot_gradient(ffnn, layers="block0.*").savefig(file, format="png")
    assert file.getvalue()[16:20] == (2 * 910).to_bytes(4, "big")  # the width in the header of a PNG


def test_pyplot_knows_of_no_figure(ffnn: pd.DataFrame) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    for plot in (plot_spp, plot_gradient, plot_heatmap):
        plot(ffnn)
    assert pyplot.get_fignums() == before
    assert "pyplot" not in vars(sys.modules["sppbench.spp.plots.panels"]) | vars(sys.modules["sppbench.spp.plots.axes"])


#: Settings of a user that would change every figure, or end it where there is no LaTeX.
USERS_SETTINGS = {
    "text.usetex": True,
    "font.size": 40,
    "font.family": "serif",
    "axes.grid": True,
    "backend": "svg",
    "savefig.dpi": 20,
    "savefig.bbox": "tight",
    "lines.linestyle": ":",
    "xtick.labelsize": 30,
    "image.cmap": "jet",
    "figure.constrained_layout.h_pad": 1.0,
    "axes.unicode_minus": False,
    "path.simplify": False,
}


@pytest.mark.parametrize("plot", [plot_spp, plot_gradient, plot_heatmap])
def test_figures_are_the_same_whatever_the_users_settings(plot: Callable[..., Figure], ffnn: pd.DataFrame) -> None:
    """Made under the user's settings or saved under them, with ticks that are made only when the figure is drawn."""

    def png(figure: Figure) -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    few = ffnn[ffnn["depth"] < 5]
    made_before = plot(few)
    right = png(plot(few))
    with matplotlib.rc_context():
        matplotlib.rcParams.update(USERS_SETTINGS)
        assert png(plot(few)) == right
        assert png(made_before) == right
        assert matplotlib.rcParams["font.size"] == 40
        made_within = plot(few)
    assert png(made_within) == right


@pytest.mark.parametrize("plot", [plot_spp, plot_gradient, plot_heatmap])
def test_a_figure_that_others_draw_is_the_same_whatever_the_users_settings(
    plot: Callable[..., Figure], ffnn: pd.DataFrame
) -> None:
    """As TensorBoard's logger does, by the canvas and without saving."""

    def pixels() -> bytes:
        canvas = FigureCanvasAgg(plot(ffnn[ffnn["depth"] < 5]))
        canvas.draw()
        return bytes(canvas.buffer_rgba())

    right = pixels()
    with matplotlib.rc_context():
        matplotlib.rcParams.update(USERS_SETTINGS)
        assert pixels() == right


def test_figures_are_as_wide_as_a_page_and_nothing_is_cut(efficientnet: pd.DataFrame) -> None:
    for figure in (plot_spp(efficientnet, convention="study"), plot_gradient(efficientnet), plot_heatmap(efficientnet)):
        figure.draw_without_rendering()
        width, height = figure.get_size_inches()
        assert width == 7.0
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_numbers_at_ticks() -> None:
    assert [short_number(value) for value in (2e-07, 0.25, 58.0, 0.0, 1.5e30)] == ["2e-7", "0.25", "58", "0", "1.5e30"]
