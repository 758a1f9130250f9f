"""Nets with repeated blocks have a panel a role; weights have a curve a kind, at their layer's depth."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from sppbench.spp.places import with_places
from sppbench.spp.plots.floor import ROUNDING
from sppbench.spp.plots.panels import plot_gradient, plot_spp
from tests.spp.plots.invented import curve, marks

BLOCKS = {f"block{i}": i for i in range(9)}


@pytest.fixture
def placed(ffnn: pd.DataFrame) -> pd.DataFrame:
    return with_places(ffnn, BLOCKS)


def titles(axes: list[Axes]) -> list[str]:
    return [ax.get_title("left").split("\n")[-1] for ax in axes]


def test_each_role_has_a_panel_and_no_layer_is_lost(placed: pd.DataFrame) -> None:
    axes = plot_spp(placed).axes
    of_others = [f"{name} of other layers, mean(x²)" for name in ("activations", "weights", "gradients")]
    roles = [["linear", "norm", "activation"], ["linear", "norm"], ["linear", "norm", "activation"]]
    assert titles(axes) == [title for one, last in zip(roles, of_others, strict=True) for title in (*one, last)]
    assert axes[0].get_title("left") == "activations: second moment mean(x²), by block\nlinear"
    norm = placed[(placed["role"] == "norm") & (placed["signal"] == "activation") & (placed["epoch"] == 9)]
    x, y = curve(axes[1], "Epoch 9")
    assert list(x) == list(range(9))
    np.testing.assert_allclose(y, norm.groupby("block")["second_moment"].mean())
    assert [tick.get_text() for tick in axes[3].get_xticklabels()] == ["flatten", "classifier"]
    assert axes[0].get_ylim() == axes[1].get_ylim() == axes[3].get_ylim()
    classifier = placed[(placed["layer"] == "classifier") & (placed["epoch"] == 0)]
    for ax, signal in ((axes[6], "parameter"), (axes[10], "gradient")):
        rows = classifier[classifier["signal"] == signal]
        assert curve(ax, "Epoch 0")[1][-1] == pytest.approx(rows["second_moment"].mean())


def test_panels_over_blocks_need_four(placed: pd.DataFrame) -> None:
    assert titles(plot_gradient(placed).axes)[:2] == ["linear", "norm"]
    for options in ({"axis": "depth"}, {"layers": "block[012].*"}):
        (ax, *_) = plot_gradient(placed, **options).axes  # type: ignore[arg-type]
        assert len(curve(ax, "Epoch 0")[0]) == (29 if "axis" in options else 9)
    assert len(plot_gradient(placed, layers="block[0123].*").axes) == 3


def test_no_line_runs_over_blocks_that_lack_a_role(placed: pd.DataFrame) -> None:
    frame = placed[(placed["role"] != "norm") | placed["block"].isin([0, 3, 4, 8])]
    ax = plot_gradient(frame).axes[1]
    (line,) = [line for line in ax.get_lines() if line.get_label() == "Epoch 0"]
    np.testing.assert_array_equal(np.asarray(line.get_xdata(), dtype=float), [0, np.nan, 3, 4, np.nan, 8])


def test_a_residual_stream_and_roles_of_one_block(placed: pd.DataFrame) -> None:
    """Outputs of blocks have a panel; what only one block has is among the other layers."""
    own = placed["role"] == "activation"
    frame = placed.assign(role=placed["role"].mask(own, "."))
    frame["role"] = frame["role"].mask((frame["layer"] == "block4.norm"), "gate")
    axes = plot_gradient(frame).axes
    assert titles(axes)[:3] == ["linear", "norm", "block output"]
    assert [tick.get_text() for tick in axes[3].get_xticklabels()] == ["flatten", "block4.norm", "classifier"]


def test_weights_have_a_curve_a_kind(ffnn: pd.DataFrame) -> None:
    ax = plot_spp(ffnn).axes[1]
    kinds = dict(zip(ffnn["depth"], ffnn["kind"], strict=True))
    lines = [line for line in ax.get_lines() if str(line.get_label()).startswith("Epoch 0")]
    assert [str(line.get_label()) for line in lines] == ["Epoch 0, Linear", "Epoch 0, BatchNorm1d γ"]  # noqa: RUF001
    found = [{kinds[int(x)] for x in np.asarray(line.get_xdata())} for line in lines]
    assert found == [{"Linear"}, {"BatchNorm1d"}]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["Linear", "BatchNorm1d γ"]  # noqa: RUF001


def recurrent() -> pd.DataFrame:
    """An embedding, a GRU with two layers and a head, as a probe records them."""
    rows: list[dict[str, Any]] = []
    layers = [("embedding", "Embedding"), ("gru", "GRU"), ("head", "Linear")]
    for depth, (layer, kind) in enumerate(layers):
        rows += [{"depth": depth, "layer": layer, "kind": kind, "signal": s} for s in ("activation", "gradient")]
        own = [f"gru.weight_{one}_l{i}" for one, i in itertools.product(("hh", "ih"), (0, 1))]
        names = own if layer == "gru" else [layer]
        rows += [{"depth": depth, "layer": name, "kind": kind, "signal": "parameter"} for name in names]
    frame = pd.DataFrame(rows).assign(step=0, epoch=0, samples=4, ndim=2, nonfinite=0, mean=0.0)
    values = np.arange(1.0, 1 + len(frame))
    return frame.assign(acsm=values, acv=values, second_moment=2 * values)


def test_weights_are_at_their_layers_depth() -> None:
    frame = recurrent()
    figure = plot_spp(frame)
    ticks = [tick.get_text() for tick in figure.axes[2].get_xticklabels()]
    assert ticks == ["embedding", "gru", "head"]
    ax = figure.axes[1]
    lines = {str(line.get_label()): line for line in ax.get_lines() if str(line.get_label()).startswith("step 0, ")}
    assert list(lines) == [f"step 0, {kind}" for kind in ("Embedding", "GRU weight_hh", "GRU weight_ih", "Linear")]
    own = lines["step 0, GRU weight_hh"]
    assert list(np.asarray(own.get_xdata())) == [1, 1]
    assert own.get_linestyle() == "None"
    rows = frame[frame["layer"].str.startswith("gru.weight_hh")]
    assert list(np.asarray(own.get_ydata())) == list(rows["second_moment"])


def test_what_is_zero_up_to_rounding_is_drawn_as_zero(ffnn: pd.DataFrame) -> None:
    """ACSM up to the floor, and not what is just above it; nothing of it where second moments are drawn."""
    frame = ffnn[ffnn["epoch"] == 0].copy()
    gradient = frame["signal"] == "gradient"
    moment = frame["second_moment"]
    frame["acsm"] = frame["acsm"].mask(gradient & (frame["depth"] == 4), 0.9 * ROUNDING * moment)
    frame["acsm"] = frame["acsm"].mask(gradient & (frame["depth"] == 7), 1.1 * ROUNDING * moment)
    figure = plot_gradient(epoch_means(frame), convention="definition")
    (ax,) = figure.axes[:1]
    assert marks(ax, "zero") == [[4]]
    x, y = curve(ax, "Epoch 0")
    assert list(x[np.isnan(y)]) == [4]
    assert "zero up to rounding, below (4ε)² mean(x²): 1 value" in figure.get_supxlabel()
    assert ax.texts[0].get_text().startswith("rounding floor, up to ")
    (floor,) = [line for line in ax.get_lines() if line.get_gid() == "rounding floor"]
    height = float(np.asarray(floor.get_ydata())[0])
    low, high = np.log10(ax.get_ylim())
    shown = [tick for tick in ax.get_yticks() if tick <= 10**high]
    assert shown
    assert min(shown) >= 10 ** (low + height * (high - low))
    assert not marks(plot_gradient(epoch_means(frame)).axes[0], "zero")
    assert not plot_gradient(frame, convention="study").get_supxlabel()


def epoch_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Of frames whose steps differ by noise that the test is not about: one step."""
    return frame[frame["step"] == frame["step"].min()].assign(steps=1, variance=frame["acv"])


@pytest.mark.parametrize("options", [{}, {"axis": "depth"}])
def test_later_epochs_do_not_hide_earlier_ones(placed: pd.DataFrame, options: Any) -> None:
    """Where curves coincide each is drawn above those before it, and is thinner and has smaller markers."""
    for ax in plot_spp(placed, **options).axes:
        lines = [line for line in ax.get_lines() if str(line.get_label()).startswith("Epoch")]
        for kind in {str(line.get_label()).partition(", ")[2] for line in lines}:
            same = [line for line in lines if str(line.get_label()).partition(", ")[2] == kind]
            assert [str(line.get_label()).partition(",")[0] for line in same] == ["Epoch 0", "Epoch 9", "Epoch 19"]
            for before, after in itertools.pairwise(same):
                assert before.get_zorder() < after.get_zorder()
                assert before.get_markersize() > after.get_markersize()
                assert before.get_linestyle() == "None" or before.get_linewidth() > after.get_linewidth()
                assert before.get_color() != after.get_color()


def test_panels_and_their_labels_do_not_touch(placed: pd.DataFrame) -> None:
    """Names of layers and titles of the next row of panels, in a net with long names."""
    long = placed["layer"].str.replace("block", "encoder.layers.some_long_name_of_a_block_")
    figure = plot_spp(placed.assign(layer=long), layers=["*0.*", "*1.*", "*2.*", "*3.*", "flatten", "classifier"])
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox(for_layout_only=True) for ax in figure.axes]
    for one, other in itertools.combinations([box for box in boxes if box is not None], 2):
        overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(overlap) <= 1
