"""Expected curves over the recorded ones, against numbers computed here another way."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.plots.panels import plot_gradient, plot_spp
from tests.spp.plots.invented import SIGNALS_OF_PANELS, curve, legend_texts, make_efficientnet, marks


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
        assert y[list(x).index(place)] == 11 * value_of(table, gate, "gradient")


def test_of_acsm_acv_and_second_moment_two_are_enough(ffnn: pd.DataFrame) -> None:
    table = theory(ffnn)
    for left_out in ("acsm", "acv", "second_moment"):
        axes = plot_spp(ffnn, expected=table.drop(columns=left_out), convention="definition").axes
        for i, factor in ((0, 1), (1, 10)):
            expected_values = [factor * value_of(table, n, "activation") for n in ffnn["layer"].drop_duplicates()]
            np.testing.assert_allclose(curve(axes[i], LABEL)[1], expected_values)
    # A second moment alone is what the study's convention draws for these layers; its division is not known.
    alone = table[["layer", "signal", "second_moment", "source"]]
    first, second = plot_spp(ffnn, convention="study", expected=alone).axes[:2]
    assert np.isfinite(curve(first, LABEL)[1]).all()
    assert np.isnan(curve(second, LABEL)[1]).all()
    with pytest.raises(ValueError, match="says nothing about the layers, signals and statistics"):
        plot_spp(ffnn, expected=alone, convention="definition")
    expected_values = [11 * value_of(table, n, "activation") for n in ffnn["layer"].drop_duplicates()]
    np.testing.assert_allclose(curve(plot_spp(ffnn, expected=alone).axes[0], LABEL)[1], expected_values)


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
    figure = plot_spp(ffnn, expected=table[table["layer"] != layers[7]], convention="definition", yscale=yscale)
    ax = figure.axes[0]
    x, y = curve(ax, LABEL)
    assert list(x) == [i for i in range(len(layers)) if i != 7]
    assert list(x[np.isnan(y)]) == ([3, 5] if yscale == "log" else [3])
    assert not marks(ax, "not finite")
    figure.savefig(io.BytesIO(), dpi=40)


def test_a_source_without_a_curve_has_no_entry_in_the_legend(ffnn: pd.DataFrame) -> None:
    """One that says nothing of gradients, beside one that does: each keeps its line style."""
    silent = theory(ffnn, "Someone Else 2021")
    silent.loc[silent["signal"] == "gradient", ["acsm", "acv", "second_moment"]] = np.nan
    table = pd.concat([silent, theory(ffnn)])
    assert [text for text in legend_texts(plot_gradient(ffnn, expected=table)) if "expected" in text] == [LABEL]
    both = [text for text in legend_texts(plot_spp(ffnn, expected=table)) if "expected" in text]
    assert both == ["expected at initialization (Someone Else 2021)", LABEL]


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
        (efficientnet, table[table["layer"] == "block0.linear"], "says nothing about the layers"),
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
