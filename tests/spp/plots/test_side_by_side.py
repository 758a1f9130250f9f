"""Comparisons are checked by the images and curves in their axes."""

from __future__ import annotations

import io

import numpy as np
import pytest

from sppbench.spp.comparison.departures import compare
from sppbench.spp.plots.side_by_side import plot_compare
from tests.spp.comparison.built import built, one
from tests.spp.plots.invented import cells, curve, legend_texts


def doubled(step: int, depth: int, signal: str) -> float:
    """From step 3 on gradients of the head and all before it are twice as large, in the other one."""
    return 2.0 if signal == "gradient" and step >= 3 and depth >= 2 else 1.0


def test_the_image_holds_the_ratios_and_the_curves_both_runs() -> None:
    a, b = built(), built(doubled)
    figure = plot_compare(a, b, labels=("old", "new"))
    activations, gradients, _, below = figure.axes[:4]
    assert (cells(activations, 0) == 0).all()
    expected = np.zeros((4, 6))
    expected[2:, 3:] = np.log10(2)
    np.testing.assert_allclose(cells(gradients, 0).data, expected, atol=1e-12)
    low, high = gradients.images[0].get_clim()
    assert -low == high == pytest.approx(np.log10(2))
    assert legend_texts(figure) == ["a: old", "b: new"]
    np.testing.assert_allclose(curve(below, "a: old")[1], 1)
    np.testing.assert_allclose(curve(below, "b: new")[1], [1, 1, 2, 2])
    assert below.get_title() == "step 3"


def test_the_departure_is_marked() -> None:
    figure = plot_compare(built(), built(doubled))
    activations, gradients, left, right = figure.axes[:4]

    def marks(ax: object) -> list[tuple[list[float], list[float]]]:
        return [
            (list(line.get_xdata()), list(line.get_ydata()))
            for line in ax.get_lines()  # type: ignore[attr-defined]
            if line.get_gid() == "departure"
        ]

    assert marks(gradients) == [([3], [3])] * 2
    assert marks(right) == [([3, 3], [0, 1])]
    assert marks(activations) == marks(left) == []
    title = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert title.startswith("a and b first differ in step 3 (epoch 0) at head (Linear, gradient)")


def test_without_a_departure_the_last_step_is_drawn_and_what_has_no_ratio_is_left_out() -> None:
    a = built()
    zero = (a["layer"] == "blocks.0") & (a["signal"] == "activation")
    a = a.assign(**{name: a[name].where(~zero, 0.0) for name in ("acsm", "acv", "mean")})
    lost = a["signal"] == "gradient"
    a = a.assign(acv=a["acv"].where(~lost | (a["step"] < 5)))
    figure = plot_compare(a, a)
    activations, gradients, left, _ = figure.axes[:4]
    assert left.get_title() == "step 5"
    assert not np.ma.getmaskarray(cells(activations, 0)).any()  # equal zeros are equal
    assert np.ma.getmaskarray(cells(gradients, 0)).sum(axis=0).tolist() == [0, 0, 0, 0, 0, 4]
    assert "zero, below a logarithmic axis: 2 values" in figure.get_supxlabel()
    figure.savefig(io.BytesIO(), dpi=40)


def test_weights_are_drawn_where_they_depart() -> None:
    b = built(lambda step, depth, signal: 1.0 + (signal == "parameter"))
    assert len(plot_compare(built(), b).axes[0].figure.axes) == 3 * 3
    assert len(plot_compare(built(), built()).axes) == 3 * 2


def test_a_single_step_and_a_single_signal() -> None:
    a, b = (built(value, steps=[4], signals=["update"]) for value in (lambda *_: 1.0, lambda *_: 3.0))
    assert compare(a, b).departures[0].step == 4
    figure = plot_compare(a, b)
    assert cells(figure.axes[0], 0).shape == (4, 1)
    figure.savefig(io.BytesIO(), dpi=40)


def test_of_steps_that_share_a_column_the_largest_difference_is_drawn() -> None:
    a, b = (built(value, steps=range(900), layers=[("x", "ReLU")], signals=["activation"]) for value in (one, odd))
    figure = plot_compare(a, b, tolerance=20)
    drawn = cells(figure.axes[0], 0)
    assert drawn.shape == (1, 450)
    np.testing.assert_allclose(drawn[0, :3], np.log10([1, 0.1, 10]), atol=1e-6)
    assert figure.get_supxlabel() == "each column shows the largest difference in 2 steps"


def odd(step: int, depth: int, signal: str) -> float:
    return {3: 0.1, 2: 2.0, 5: 10.0}.get(step, 1.0)
