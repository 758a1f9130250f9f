"""Figures are checked by the data, ticks and texts in their axes, against numbers computed here another way."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

from sppbench.models import FFNN, EfficientNet
from sppbench.spp.history.history import epoch_mean
from sppbench.spp.plots.axes import name_blocks, short_number
from sppbench.spp.plots.curves import Convention
from sppbench.spp.plots.heatmap import NOT_FINITE_COLOR, ZERO_COLOR, plot_heatmap
from sppbench.spp.plots.lines import COLORS, EXPECTED_COLOR, Style
from sppbench.spp.plots.panels import plot_gradient, plot_spp

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


@pytest.fixture(scope="module")
def ffnn() -> pd.DataFrame:
    return make_ffnn([0, 9, 19], 6)


@pytest.fixture(scope="module")
def efficientnet() -> pd.DataFrame:
    return make_efficientnet([0, 9, 19], 3)


def curve(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def marks(ax: Axes, gid: str) -> list[list[float]]:
    return [list(np.asarray(line.get_xdata())) for line in ax.get_lines() if line.get_gid() == gid]


def cells(ax: Axes, image: int) -> np.ma.MaskedArray[Any, Any]:
    array = ax.images[image].get_array()
    assert isinstance(array, np.ma.MaskedArray)
    return array


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


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
    panels = plot_spp(frame, convention=convention).axes[:6]
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
    np.testing.assert_array_equal(curve(figure.axes[0], f"step {step}")[1], rows["acsm"])


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


def test_few_layers_are_named_by_kind(ffnn: pd.DataFrame) -> None:
    for figure in (plot_spp(ffnn), plot_gradient(ffnn)):
        figure.draw_without_rendering()
        ticks = figure.axes[4 if len(figure.axes) > 1 else 0].get_xticklabels()
        assert len(ticks) == 29
        assert [tick.get_text() for tick in ticks[:4]] == ["Flatten", "Linear", "BatchNorm1d", "ReLU"]
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
    assert [b.label for b in name_blocks([f"net.layers.{i}" for i in range(3)])] == [
        f"net.layers.{i}" for i in range(3)
    ]
    assert [b.label for b in name_blocks(["alone"])] == ["alone"]


def test_without_merges_layers_have_the_studys_numbers() -> None:
    frame = make_efficientnet([0], 1, activation="SELU", normalization=None, skip="mp_sum", gate="mp_scale")
    ax = plot_gradient(frame, merges=False).axes[0]
    x, y = curve(ax, "step 0")
    assert list(x) == list(range(166))
    gate = frame[(frame["kind"] == "Sigmoid") & (frame["signal"] == "gradient")].iloc[0]
    assert y[8] == gate["acsm"]
    assert len(curve(plot_gradient(frame).axes[0], "step 0")[0]) == 166 + 25


def test_layers_are_chosen_by_name_or_pattern(efficientnet: pd.DataFrame) -> None:
    ax = plot_gradient(efficientnet, layers=["features.0.*", "classifier.1"]).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Conv2d", "BatchNorm2d", "SiLU", "Linear"]
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
    assert [text.get_text() for text in figure.axes[2].texts] == ["no weights in this frame"]
    assert not figure.axes[0].texts


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


def test_arguments_are_checked(ffnn: pd.DataFrame) -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (plot_spp, {"convention": "poster"}, "convention must be one of 'definition', 'study'; got 'poster'"),
        (plot_gradient, {"yscale": "symlog"}, "yscale must be one of 'linear', 'log'; got 'symlog'"),
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

    made_before = plot(ffnn)
    right = png(plot(ffnn))
    with matplotlib.rc_context():
        matplotlib.rcParams.update(USERS_SETTINGS)
        assert png(plot(ffnn)) == right
        assert png(made_before) == right
        assert matplotlib.rcParams["font.size"] == 40
        made_within = plot(ffnn)
    assert png(made_within) == right


@pytest.mark.parametrize("plot", [plot_spp, plot_gradient, plot_heatmap])
def test_a_figure_that_others_draw_is_the_same_whatever_the_users_settings(
    plot: Callable[..., Figure], ffnn: pd.DataFrame
) -> None:
    """As TensorBoard's logger does, by the canvas and without saving."""

    def pixels() -> bytes:
        canvas = FigureCanvasAgg(plot(ffnn))
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


# -- expected curves -------------------------------------------------------------------------------------------------


def theory(frame: pd.DataFrame, source: str = "Someone 2020", factor: float = 1.0) -> pd.DataFrame:
    """Invented values for each layer and signal."""
    table = frame[["layer", "signal"]].drop_duplicates().reset_index(drop=True)
    values = np.arange(1.0, 1 + len(table)) * factor
    return table.assign(acsm=values, acv=10 * values, second_moment=11 * values, mean=np.sqrt(values), source=source)


def value_of(table: pd.DataFrame, layer: str, signal: str) -> float:
    """ACSM of the invented table."""
    (value,) = table[(table["layer"] == layer) & (table["signal"] == signal)]["acsm"]
    return float(value)


LABEL = "expected at initialization (Someone 2020)"


@pytest.mark.parametrize("convention", ["definition", "study"])
@pytest.mark.parametrize("net", ["ffnn", "efficientnet"])
def test_expected_values_are_drawn_as_the_panels_statistic(
    net: str, convention: Any, request: pytest.FixtureRequest
) -> None:
    frame = request.getfixturevalue(net)
    table = theory(frame).sample(frac=1, random_state=0)
    figure = plot_spp(frame, convention=convention, expected=table)
    for ax, (signal, column) in zip(
        figure.axes[:6], itertools.product(SIGNALS_OF_PANELS, ("acsm", "acv")), strict=True
    ):
        x, y = curve(ax, LABEL)
        rows = frame[frame["signal"] == signal].drop_duplicates("layer").sort_values("depth")
        assert list(x) == list(rows["depth"])
        for row, drawn in zip(rows.itertuples(), y, strict=True):
            value = value_of(table, row.layer, signal)
            if convention == "study" and (row.ndim <= 2 or signal == "parameter"):
                assert drawn == pytest.approx(11 * value if column == "acsm" else 11 * value - value)
            else:
                assert drawn == pytest.approx(value if column == "acsm" else 10 * value)
    assert legend_texts(figure)[-1].replace("\n", " ") == LABEL


def test_expected_values_follow_the_chosen_layers() -> None:
    frame = make_efficientnet([0], 1, activation="SELU", normalization=None)
    table = theory(frame)
    gate = frame[frame["kind"] == "Sigmoid"]["layer"].iloc[0]
    for arguments, place in (({"merges": False}, 8), ({"layers": ["features.1.*"]}, 6)):
        x, y = curve(plot_gradient(frame, expected=table, **arguments).axes[0], LABEL)
        assert y[list(x).index(place)] == value_of(table, gate, "gradient")


def test_of_acsm_acv_and_second_moment_two_are_enough(ffnn: pd.DataFrame) -> None:
    table = theory(ffnn)
    for left_out in ("acsm", "acv", "second_moment"):
        axes = plot_spp(ffnn, expected=table.drop(columns=left_out)).axes
        for i, factor in ((0, 1), (1, 10)):
            expected_values = [factor * value_of(table, n, "activation") for n in ffnn["layer"].drop_duplicates()]
            np.testing.assert_allclose(curve(axes[i], LABEL)[1], expected_values)
    # A second moment alone is what the study's convention draws for these layers; its division is not known.
    alone = table[["layer", "signal", "second_moment", "source"]]
    first, second = plot_spp(ffnn, convention="study", expected=alone).axes[:2]
    assert np.isfinite(curve(first, LABEL)[1]).all()
    assert np.isnan(curve(second, LABEL)[1]).all()
    with pytest.raises(ValueError, match="says nothing of the layers, signals and statistics"):
        plot_spp(ffnn, expected=alone)


def test_each_source_is_a_curve_and_an_entry(ffnn: pd.DataFrame) -> None:
    other = "expected at initialization (Someone Else 2021)"
    tables = pd.concat([theory(ffnn), theory(ffnn, "Someone Else 2021", factor=2.0)])
    figure = plot_gradient(ffnn, expected=tables)
    ax = figure.axes[0]
    np.testing.assert_allclose(curve(ax, other)[1], 2 * curve(ax, LABEL)[1])
    assert [text.replace("\n", " ") for text in legend_texts(figure)[-2:]] == [LABEL, other]
    styles = {
        line.get_linestyle() + str(line._dash_pattern) for line in ax.get_lines() if "expected" in line.get_label()
    }
    assert len(styles) == 2
    assert not any("expected" in text for text in legend_texts(plot_gradient(ffnn)))


@pytest.mark.parametrize("yscale", ["linear", "log"])
def test_what_theory_does_not_say_is_a_gap_without_a_mark(ffnn: pd.DataFrame, yscale: Any) -> None:
    table = theory(ffnn)
    layers = list(ffnn["layer"].drop_duplicates())
    table.loc[table["layer"] == layers[3], ["acsm", "acv", "second_moment"]] = np.nan
    table.loc[table["layer"] == layers[5], "acsm"] = 0.0
    figure = plot_spp(ffnn, expected=table[table["layer"] != layers[7]], yscale=yscale)
    ax = figure.axes[0]
    x, y = curve(ax, LABEL)
    assert list(x) == [i for i in range(len(layers)) if i != 7]
    assert list(x[np.isnan(y)]) == ([3, 5] if yscale == "log" else [3])
    assert not marks(ax, "not finite")
    figure.savefig(io.BytesIO(), dpi=40)


def test_a_theory_by_name_starts_from_the_recorded_chain(ffnn: pd.DataFrame) -> None:
    """BN + ReLU from the last ReLU back: ×½ through ReLU, times 2/(1 − 1/π) through normalization and weights."""
    first = ffnn[ffnn["step"] == 0]
    figure = plot_gradient(ffnn[ffnn["epoch"] < 10], expected="he")
    ax = figure.axes[0]
    (label,) = [text for text in legend_texts(figure) if "expected" in text]
    assert label == "expected at initialization (He et al. 2015; Yang et al. 2019)"
    x, y = curve(ax, label)
    names = list(ffnn["layer"].drop_duplicates())
    assert [names[i] for i in x] == names[1:-1]
    row = first[(first["layer"] == "block8.activation") & (first["signal"] == "gradient")].iloc[0]
    assert y[-1] == pytest.approx(row["second_moment"])
    values = dict(zip([names[i] for i in x], y, strict=True))
    assert values["block8.norm"] == pytest.approx(y[-1] / 2)
    # The batch of 512 takes little out of the variance; the invented gradients have a mean, which is taken out.
    growth = values["block3.activation"] / values["block4.activation"]
    assert growth == pytest.approx(np.pi / (np.pi - 1), rel=0.01)


def test_expected_is_checked(ffnn: pd.DataFrame, efficientnet: pd.DataFrame) -> None:
    table = theory(ffnn)
    wrong: list[tuple[pd.DataFrame, Any, str]] = [
        (ffnn, "poster", "unknown theory 'poster'"),
        (efficientnet, "he", "two layers of kind Linear"),
        (ffnn, table.drop(columns="source"), "lacks the columns source"),
        (ffnn, table[["layer", "signal", "source"]], "none of the columns acsm"),
        (ffnn, pd.concat([table, table]), "two values of 'Someone 2020' for the activation of flatten"),
        (efficientnet, table[table["layer"] == "block0.linear"], "says nothing of the layers"),
    ]
    for frame, expected_values, message in wrong:
        for plot in (plot_spp, plot_gradient):
            with pytest.raises(ValueError, match=message) as error:
                plot(frame, expected=expected_values)
            assert "\n" not in str(error.value)


def test_a_long_source_is_not_cut(efficientnet: pd.DataFrame) -> None:
    table = theory(efficientnet, "Someone 2015; Someone Else 2016; A Third & A Fourth 2019; The Last 2024")
    for figure in (plot_spp(efficientnet, expected=table), plot_gradient(efficientnet, expected=table)):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 >= 0
        assert box.x1 <= 7.0


def test_numbers_at_ticks() -> None:
    assert [short_number(value) for value in (2e-07, 0.25, 58.0, 0.0, 1.5e30)] == ["2e-7", "0.25", "58", "0", "1.5e30"]


# Deuteranopia as in Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB colours, shape (n, 3), as seen by `vision`; a distance of 2.3 can just be seen."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ vision.T, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPIA], ids=["normal", "deuteranopia"])
def test_colors_can_be_told_apart(vision: np.ndarray) -> None:
    seen = lab(np.array([to_rgb(color) for color in (*COLORS, EXPECTED_COLOR, "white")]), vision)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(len(seen))
    assert distances.min() > 15
    first = distances[:3, :3]
    assert first.min() > 50
    scale = lab(matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3], vision)
    for color in (NOT_FINITE_COLOR, ZERO_COLOR, "white"):
        cell = lab(np.array([to_rgb(color)]), vision)
        assert np.linalg.norm(scale - cell, axis=1).min() > 30


@pytest.mark.parametrize("dense", [True, False])
def test_thirty_curves_differ(dense: bool) -> None:
    styles = [Style(index, 30, dense).arguments() for index in range(30)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 30
    widths = [style["linewidth"] for style in styles]
    assert widths == sorted(widths, reverse=True)
