"""Interactive figures hold exactly what the drawings hold, and nothing that floods the pointer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.study.figures.drawing import Drawing, Panel
from sppbench.study.report.plotly_conversion import chart, figure
from tests.fabricate import report as fabricate


def shown(drawing: Drawing, curve: str) -> list[Any]:
    """The traces that are read off: not bands, not the names of points."""
    return [trace for trace in figure(drawing).data if trace.name == curve and trace.fill is None]


def test_every_value_is_there_in_its_panel() -> None:
    drawing = fabricate.profiles("figure3", 20)
    result = figure(drawing)
    for panel in drawing.panels:
        [subplot] = {trace.yaxis for trace in result.select_traces(row=panel.row + 1, col=panel.column + 1)}
        for curve in fabricate.EPOCHS:
            rows = drawing.curves.query("panel == @panel.name and curve == @curve")
            [trace] = [trace for trace in result.data if trace.yaxis == subplot and trace.name == curve]
            assert np.array_equal(trace.x, rows["x"])
            assert np.array_equal(trace.y, rows["value"].astype("float32"))
        axis = next(result.select_yaxes(row=panel.row + 1, col=panel.column + 1))
        assert axis.type == panel.y_scale
    assert [title.text for title in result.layout.annotations] == [panel.name for panel in drawing.panels]


def test_what_cannot_be_drawn_leaves_gaps_and_is_counted() -> None:
    drawing = fabricate.bands()
    [first], [second] = shown(drawing, "epoch 0"), shown(drawing, "epoch 19")
    assert np.isnan(first.y).tolist() == [False, False, True, False, False, True, False]
    assert second.y[-1] == np.float32(1.0000001e-7)
    assert chart(drawing).undrawn == (
        "Not drawn: 1 value that is not finite; 1 value that is zero, which has no place on a logarithmic axis."
    )
    assert chart(fabricate.profiles("figure3", 20)).undrawn == ""


def test_a_point_without_neighbors_is_seen_where_there_are_many() -> None:
    values = np.full(100, np.nan)
    values[50] = 1.0
    panel = Panel("p", 0, 0, "layer", "value")
    drawing = fabricate.make_drawing("lonely", [panel], fabricate.make_curve("p", "epoch 0", values))
    [trace] = shown(drawing, "epoch 0")
    assert "markers" in trace.mode
    drawing = fabricate.make_drawing("dense", [panel], fabricate.make_curve("p", "epoch 0", np.arange(100)))
    [trace] = shown(drawing, "epoch 0")
    assert trace.mode == "lines"


def test_bands_are_areas_in_pieces_that_say_nothing_on_pointing() -> None:
    [band] = [trace for trace in figure(fabricate.bands()).data if trace.fill == "toself"]
    assert (band.name, band.legendgroup, band.hoverinfo, band.showlegend) == ("epoch 0", "epoch 0", "skip", False)
    gap = np.flatnonzero(np.isnan(band.y))
    assert band.x[: gap[0]].tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(band.y[: gap[0]], [1.3e-7, 2.6e-7, 2e-7 / 1.3, 1e-7 / 1.3], rtol=1e-6)
    assert band.x[gap[0] + 1 : gap[1]].tolist() == [3, 4, 4, 3]
    assert band.x[gap[1] + 1 :].tolist() == [6, 6]


def test_the_band_is_read_off_with_the_value_and_the_layer_once() -> None:
    drawing = fabricate.bands()
    [first], [second] = shown(drawing, "epoch 0"), shown(drawing, "epoch 19")
    assert "customdata[1]" in first.hovertemplate
    np.testing.assert_allclose(first.customdata[0], [1e-7 / 1.3, 1.3e-7], rtol=1e-6)
    assert "customdata" not in second.hovertemplate
    [names] = [trace for trace in figure(drawing).data if trace.name is None]
    assert list(names.customdata) == [f"block{i}.linear" for i in range(7)], "also where one of the curves has a gap"
    assert figure(drawing).layout.hovermode == "x unified"


def test_one_click_takes_a_curve_out_of_all_panels() -> None:
    result = figure(fabricate.profiles("figure3", 20))
    for curve in fabricate.EPOCHS:
        traces = [trace for trace in result.data if trace.name == curve]
        assert len(traces) == 6
        assert {trace.legendgroup for trace in traces} == {curve}
        assert sum(trace.showlegend for trace in traces) == 1


def test_stacks_go_both_ways_with_the_sum_over_them() -> None:
    result = figure(fabricate.stack())
    assert result.layout.barmode == "relative"
    assert [trace.type for trace in result.data if trace.name in ("γ²", "p")] == ["bar"] * 4
    lines = [trace for trace in result.data if trace.name == "epoch 19"]
    assert [trace.type for trace in lines] == ["scatter"] * 2
    for number, line in enumerate(lines):
        parts = [trace for trace in result.data if trace.type == "bar"][2 * number : 2 * number + 2]
        np.testing.assert_allclose(sum(np.asarray(part.y) for part in parts), line.y, atol=1e-6)


def test_colors_are_those_on_paper_and_dashes_only_distinguish_equal_ones() -> None:
    drawing = fabricate.profiles("figure3", 20)
    for curve in fabricate.EPOCHS:
        assert {trace.line.color for trace in shown(drawing, curve)} == {fabricate.COLORS[curve]}
    panel = Panel("p", 0, 0, "layer", "value")
    curves = [fabricate.make_curve("p", curve, [1.0, 2.0]) for curve in ("one", "other", "epoch 0")]
    curves_of_all = pd.concat(curves, ignore_index=True)
    drawing = fabricate.make_drawing("dashes", [panel], curves_of_all, dashed=("other", "epoch 0"))
    dashes = {trace.name: trace.line.dash for trace in figure(drawing).data if trace.name}
    assert dashes == {"one": "solid", "other": "dash", "epoch 0": "solid"}


def test_a_threshold_is_a_plain_line() -> None:
    panel = Panel("p", 0, 0, "layer", "ratio")
    curves = [fabricate.make_curve("p", "ratio ½", [0.5, 0.5, 0.5]), fabricate.make_curve("p", "on / off", [1, 2, 3])]
    drawing = fabricate.make_drawing("threshold", [panel], pd.concat(curves, ignore_index=True))
    [trace] = shown(drawing, "ratio ½")
    assert (trace.mode, trace.hoverinfo) == ("lines", "skip")


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [0.0, -1.0]])
def test_nothing_to_draw_is_no_error(values: list[float]) -> None:
    panel = Panel("p", 0, 0, "layer", "value", "log")
    drawing = fabricate.make_drawing("nothing", [panel], fabricate.make_curve("p", "epoch 0", values))
    assert 'id="plot-nothing"' in chart(drawing).html


def test_names_cannot_break_out_of_the_script() -> None:
    panel = Panel("p", 0, 0, "layer", "value")
    curve = fabricate.make_curve("p", "</script><script>alert(1)", [1.0, 2.0], names=["</script>", "<!--"])
    html = chart(fabricate.make_drawing("hostile", [panel], curve)).html
    assert html.count("</script>") == 1
    assert "<!--" not in html
    assert "http" not in html
    assert '"showSendToCloud": false' in html
