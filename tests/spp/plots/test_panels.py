"""Figures are checked by the data, ticks and texts in their axes, against numbers computed here another way."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.plots.curves import Convention
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.panels import plot_gradient, plot_spp
from tests.spp.plots.invented import BATCH, STATISTICS, curve, legend_texts, make_efficientnet, marks


def expected(frame: pd.DataFrame, signal: str, epoch: int, column: str, study: bool) -> dict[int, float]:
    """Depth to value, step by step and without pandas' means."""
    values: dict[int, list[float]] = {}
    rows = frame[(frame["signal"] == signal) & (frame["epoch"] == epoch)]
    for row in rows.itertuples():
        if study and (row.ndim <= 2 or signal == "parameter"):
            value = row.acsm + row.acv if column == "acsm" else row.acsm + row.acv - row.mean**2
        else:
            value = getattr(row, column)
        values.setdefault(row.depth, []).append(value)
    return {depth: float(np.mean(values[depth])) for depth in sorted(values)}


@pytest.mark.parametrize("convention", ["definition", "study"])
@pytest.mark.parametrize("net", ["ffnn", "efficientnet"])
def test_each_panel_draws_the_mean_over_the_epochs_steps(
    net: str, convention: Any, request: pytest.FixtureRequest
) -> None:
    frame = request.getfixturevalue(net)
    panels = plot_spp(frame, convention=convention, yscale="linear").axes[:6]
    for ax, (signal, column) in zip(
        panels, itertools.product(("activation", "parameter", "gradient"), ("acsm", "acv")), strict=True
    ):
        for epoch in (0, 9, 19):
            x, y = curve(ax, f"Epoch {epoch}")
            values = expected(frame, signal, epoch, column, convention == "study")
            assert list(x) == list(values)
            np.testing.assert_allclose(y, list(values.values()), rtol=1e-9)


@pytest.mark.parametrize("convention", ["definition", "study"])
def test_history_and_epoch_mean_give_the_same_curves(ffnn: pd.DataFrame, convention: Convention) -> None:
    from_history, from_means = (plot_spp(frame, convention=convention).axes for frame in (ffnn, epoch_mean(ffnn)))
    for one, other in zip(from_history, from_means, strict=True):
        for line, same in zip(one.get_lines(), other.get_lines(), strict=True):
            np.testing.assert_allclose(np.asarray(line.get_ydata()), np.asarray(same.get_ydata()), rtol=1e-12)
    # The overall variance of an epoch is the mean of its steps' variances: not the variance of a mean over steps.
    rows = ffnn[(ffnn["signal"] == "gradient") & (ffnn["epoch"] == 9)]
    variances = (rows["acsm"] + rows["acv"] - rows["mean"] ** 2).groupby(rows["depth"]).mean()
    if convention == "study":
        np.testing.assert_allclose(curve(from_means[5], "Epoch 9")[1], variances)


def test_full_batches_only(ffnn: pd.DataFrame) -> None:
    figure = plot_gradient(ffnn, full_batches_only=True)
    values = expected(ffnn[ffnn["samples"] == BATCH], "gradient", 0, "acsm", study=True)
    np.testing.assert_allclose(curve(figure.axes[0], "Epoch 0")[1], list(values.values()))
    assert "full batch" in figure.legends[0].get_title().get_text()
    assert "partial batch included" in plot_gradient(ffnn).legends[0].get_title().get_text()
    with pytest.raises(ValueError, match="averaged"):
        plot_gradient(epoch_mean(ffnn), full_batches_only=True)


def test_second_moments_on_a_logarithmic_scale_by_default(ffnn: pd.DataFrame) -> None:
    figure = plot_spp(ffnn)
    names = ("activation", "activations"), ("parameter", "weights"), ("gradient", "gradients")
    for ax, (signal, name) in zip(figure.axes[:3], names, strict=True):
        assert ax.get_yscale() == "log"
        assert ax.get_ylabel() == f"{name}\nsecond moment mean(x²)"
        values = expected(ffnn, signal, 9, "second_moment", study=False)
        np.testing.assert_allclose(curve(ax, "Epoch 9")[1], list(values.values()))
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (3, 1)  # type: ignore[union-attr]
    (ax,) = plot_gradient(ffnn).axes[:1]
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "gradients\nsecond moment mean(x²)")
    assert "convention" not in figure.legends[0].get_title().get_text()
    assert "study's convention" in plot_gradient(ffnn, convention="study").legends[0].get_title().get_text()


def test_statistics_are_columns(ffnn: pd.DataFrame) -> None:
    labels = [
        ax.get_ylabel().split("\n")[1].split(" ")[0] for ax in plot_spp(ffnn, statistics=["acv", "acsm"]).axes[:6]
    ]
    assert labels == ["ACV", "ACSM"] * 3
    assert plot_spp(ffnn, statistics="acv").axes[0].get_ylabel() == "activations\nACV mean_c(var(x))"


def test_without_epochs_the_first_the_middle_and_the_last_are_drawn(ffnn: pd.DataFrame) -> None:
    for number, found in ((1, [0]), (2, [0, 1]), (4, [0, 1, 3]), (5, [0, 2, 4])):
        frame = pd.concat(ffnn[ffnn["epoch"] == 0].assign(epoch=epoch) for epoch in range(number))
        assert legend_texts(plot_gradient(frame)) == [f"Epoch {epoch}" for epoch in found]


def test_epochs_and_legend(ffnn: pd.DataFrame) -> None:
    assert legend_texts(plot_spp(ffnn)) == ["Epoch 0", "Epoch 9", "Epoch 19"]
    assert legend_texts(plot_gradient(ffnn, epochs=(19, 5, 0))) == ["Epoch 19", "Epoch 0"]
    assert legend_texts(plot_gradient(ffnn, epochs=(3,))) == ["Epoch 0", "Epoch 9", "Epoch 19"]
    assert legend_texts(plot_gradient(epoch_mean(ffnn[ffnn["epoch"] == 9]), epochs=(9,))) == ["Epoch 9"]


def test_one_step(ffnn: pd.DataFrame) -> None:
    step = int(ffnn["step"].iloc[-1])
    frame = ffnn[ffnn["step"] == step]
    figure = plot_spp(frame)
    assert legend_texts(figure) == [f"step {step}"]
    assert "a single step" in figure.legends[0].get_title().get_text()
    rows = frame[frame["signal"] == "activation"]
    np.testing.assert_array_equal(curve(figure.axes[0], f"step {step}")[1], rows["second_moment"])


def test_labels_say_which_statistic(ffnn: pd.DataFrame, efficientnet: pd.DataFrame) -> None:
    acsm, acv = "ACSM mean_c(mean(x)²)", "ACV mean_c(var(x))"
    moment, variance = "second moment mean(x²)", "overall variance var(x)"

    def labels(frame: pd.DataFrame, convention: Any) -> list[str]:
        return [ax.get_ylabel() for ax in plot_spp(frame, convention=convention).axes[:6]]

    names = ("activations", "weights", "gradients")
    assert labels(ffnn, "definition") == [f"{name}\n{text}" for name in names for text in (acsm, acv)]
    assert labels(ffnn, "study") == [f"{name}\n{text}" for name in names for text in (moment, variance)]
    mixed = labels(efficientnet, "study")
    assert mixed[0] == f"activations\n{acsm}\nndim ≤ 2: {moment}"
    assert mixed[2:4] == [f"weights\n{moment}", f"weights\n{variance}"]
    assert mixed[5] == f"gradients\n{acv}\nndim ≤ 2: {variance}"


def test_without_merges_layers_have_the_studys_numbers() -> None:
    frame = make_efficientnet([0], 1, activation="SELU", normalization=None, skip="mp_sum", gate="mp_scale")
    ax = plot_gradient(frame, merges=False).axes[0]
    x, y = curve(ax, "step 0")
    assert list(x) == list(range(166))
    gate = frame[(frame["kind"] == "Sigmoid") & (frame["signal"] == "gradient")].iloc[0]
    assert y[8] == gate["second_moment"]
    assert len(curve(plot_gradient(frame).axes[0], "step 0")[0]) == 166 + 25


def test_layers_are_chosen_by_name_or_pattern(efficientnet: pd.DataFrame) -> None:
    ax = plot_gradient(efficientnet, layers=["features.0.*", "classifier.1"]).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        *("0 Conv2d", "1 BatchNorm2d", "2 SiLU", "classifier.1 Linear")
    ]
    assert list(curve(ax, "Epoch 0")[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("yscale", ["linear", "log"])
def test_values_that_cannot_be_drawn_are_gaps_marked_and_counted(ffnn: pd.DataFrame, yscale: Any) -> None:
    frame = ffnn.copy()
    gradient = (frame["signal"] == "gradient") & (frame["epoch"] == 9)
    # One step of many is enough.
    frame.loc[gradient & (frame["depth"] == 3) & (frame["step"] == frame["step"][gradient].min()), STATISTICS] = np.nan
    frame.loc[gradient & (frame["depth"] == 4), STATISTICS] = np.inf
    frame.loc[gradient & (frame["depth"] == 7), STATISTICS] = 0.0
    figure = plot_gradient(frame, convention="definition", yscale=yscale)
    ax = figure.axes[0]
    x, y = curve(ax, "Epoch 9")
    log = yscale == "log"
    assert list(x[np.isnan(y)]) == ([3, 4, 7] if log else [3, 4])
    assert not np.isnan(curve(ax, "Epoch 0")[1]).any()
    assert marks(ax, "not finite") == [[3, 4]]
    assert marks(ax, "zero") == ([[7]] if log else [])
    note = figure.get_supxlabel()
    assert "not finite: 2 values" in note
    assert ("logarithmic axis: 1 value" in note) == log
    assert ax.get_yscale() == yscale
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("yscale", ["linear", "log"])
@pytest.mark.parametrize("value", [0.0, np.nan, 1e-45, 3e38])
def test_a_dead_or_exploded_net_is_drawn(ffnn: pd.DataFrame, value: float, yscale: Any) -> None:
    frame = ffnn[ffnn["epoch"] == 0].assign(**dict.fromkeys(STATISTICS, value))
    plot_gradient(frame, yscale=yscale, layers="block0.*").savefig(io.BytesIO(), dpi=40)


def test_a_signal_that_is_missing_is_said(ffnn: pd.DataFrame) -> None:
    figure = plot_spp(ffnn[ffnn["signal"] == "activation"])
    assert [text.get_text() for text in figure.axes[1].texts] == ["no weights in this frame"]
    assert not figure.axes[0].texts


def test_arguments_are_checked(ffnn: pd.DataFrame) -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (plot_spp, {"convention": "poster"}, "convention must be one of 'definition', 'study'; got 'poster'"),
        (plot_gradient, {"yscale": "symlog"}, "yscale must be one of 'linear', 'log'; got 'symlog'"),
        (plot_spp, {"statistics": ["mean"]}, "statistics must be one of 'acsm', 'acv', 'second_moment'; got 'mean'"),
        (plot_spp, {"statistics": []}, "statistics must name at least one"),
        (plot_spp, {"axis": "time"}, "axis must be one of 'auto', 'blocks', 'depth'; got 'time'"),
        (plot_spp, {"axis": "blocks"}, "does not give the roles of layers in at least 4 blocks"),
        (plot_spp, {"layers": ["block9.*", "nowhere"]}, "no layer matches"),
        (plot_spp, {"layers": []}, "no layer is left"),
        (plot_heatmap, {"signal": "weight"}, "signal must be one of 'activation', .*; got 'weight'"),
        (plot_heatmap, {"signal": "update"}, "no rows of signal 'update'"),
        (plot_heatmap, {"statistic": "mean"}, "statistic must be one of 'acsm', 'acv', 'second_moment'; got 'mean'"),
        (plot_heatmap, {"limits": (1.0, 0.0)}, "limits must be"),
    ]
    for plot, arguments, message in wrong:
        with pytest.raises(ValueError, match=message) as error:
            plot(ffnn, **arguments)
        assert "\n" not in str(error.value)
    for plot in (plot_spp, plot_gradient, plot_heatmap):
        with pytest.raises(ValueError, match="lacks the columns second_moment"):
            plot(ffnn.drop(columns=["second_moment"]))
        with pytest.raises(ValueError, match="no rows"):
            plot(ffnn.iloc[:0])


def test_the_frame_is_not_changed(ffnn: pd.DataFrame) -> None:
    before = ffnn.copy()
    plot_spp(ffnn, convention="study")
    plot_heatmap(ffnn)
    pd.testing.assert_frame_equal(ffnn, before)
