"""Distance from published values, order, spikes: known answers for curves with known departures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sppbench.evidence.runs import Run
from sppbench.study.figures.drawing import Match
from sppbench.study.figures.drawn_runs import Values
from sppbench.study.figures.match import decades, fit, highest_peaks, match_figure
from sppbench.study.figures.published_figures import (
    Anchor,
    Merging,
    Order,
    PublishedFigure,
    Ratio,
    Spikes,
    read_published_figures,
)
from tests.fabricate.figures import figure1, gradient
from tests.fabricate.histories import Statistics, ffnn_layers, write_signals

EPOCHS = (0, 9, 19)
Write = Callable[..., Values]


@pytest.fixture
def values(tmp_path: Path) -> Write:
    """What a figure draws of a run with these statistics."""
    count = 0

    def write(statistics: Statistics, epochs: tuple[int, ...] = EPOCHS, **arguments: object) -> Values:
        nonlocal count
        count += 1
        path = tmp_path / str(count)
        write_signals(path, statistics, epochs=epochs, **arguments)  # type: ignore[arg-type]
        run = Run(path, "figures", "net", 0.001, count, {}, "completed", None, None)
        return Values(run, "all", "study", EPOCHS)

    return write


@pytest.fixture(scope="module")
def published() -> PublishedFigure:
    return read_published_figures().figures[0]


def only(published: PublishedFigure, **parts: object) -> PublishedFigure:
    """The figure without anything that is not given."""
    empty = dict.fromkeys(("anchors", "orders", "spikes", "ratios", "merging"), ())
    return dataclasses.replace(published, **{**empty, **parts})  # type: ignore[arg-type]


def anchor(layer: str, epoch: int | None, low: float, high: float | None = None, largest: bool = False) -> Anchor:
    return Anchor("gradient", "acsm", layer, layer, epoch, low, high or low, largest)


def by_layer(numbers: dict[str, float], other: float = 1.0) -> Statistics:
    return lambda layer, depth, epoch, signal: (0.0, numbers.get(layer, other))


def test_the_published_curves_match_in_everything(values: Write, published: PublishedFigure) -> None:
    matches = match_figure(published, {868: values(gradient(figure1))})
    assert [match.agrees for match in matches] == [True] * len(matches)
    assert len(matches) == 7
    assert matches[0].ours.startswith("0.000")


@pytest.mark.parametrize(
    ("shift", "agrees"), [(0.07, True), (-0.07, True), (0.099, True), (0.101, False), (-0.5, False)]
)
def test_rmse_is_the_shift_in_decades(values: Write, published: PublishedFigure, shift: float, agrees: bool) -> None:
    found = values(gradient(figure1, 10**shift))
    assert fit(found, published.anchors).rmse == pytest.approx(abs(shift), abs=1e-6)
    [match, *_] = match_figure(published, {868: found})
    assert match.agrees is agrees
    assert match.ours.startswith(f"{abs(shift):.3f}; farthest: ")
    assert (match.published, match.criterion) == ("10 values", "≤ 0.1")


def test_rmse_is_that_of_all_values(values: Write) -> None:
    found = values(by_layer({"block0.activation": 10.0, "block1.activation": 0.01}))
    anchors = [anchor("block0.activation", 0, 1.0), anchor("block1.activation", 9, 1.0), anchor("classifier", 19, 1.0)]
    assert fit(found, anchors).rmse == pytest.approx(math.sqrt((1 + 4 + 0) / 3))
    farthest = fit(found, anchors).farthest
    assert farthest is not None
    assert farthest.anchor is anchors[1]
    assert farthest.ours == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("value", "expected"), [(2.0, 0.0), (1.0, 0.0), (3.0, 0.0), (0.1, 1.0), (300.0, 2.0), (0.0, math.inf)]
)
def test_a_range_has_no_distance_inside(value: float, expected: float) -> None:
    assert decades(value, 1.0, 3.0) == pytest.approx(expected)


def test_a_range_from_zero_has_no_lower_end() -> None:
    assert decades(0.0, 0.0, 0.02) == 0
    assert decades(0.2, 0.0, 0.02) == pytest.approx(1)


def test_a_pattern_stands_for_its_farthest_layer_or_for_its_largest(values: Write) -> None:
    found = values(by_layer({"block3.activation": 0.01, "block5.activation": 10.0}))
    both = [anchor("block*.activation", 0, 1.0), anchor("block*.activation", 0, 1.0, largest=True)]
    assert [one.decades for one in fit(found, both).distances] == pytest.approx([2.0, 1.0])


def test_any_epoch_is_the_largest_of_the_drawn(values: Write) -> None:
    found = values(lambda layer, depth, epoch, signal: (0.0, {0: 1.0, 9: 100.0, 19: 10.0}[epoch]))
    assert [one.ours for one in fit(found, [anchor("classifier", None, 100.0)]).distances] == pytest.approx([100.0])
    assert fit(found, [anchor("classifier", None, 100.0)]).rmse == pytest.approx(0.0)
    dead = values(lambda layer, depth, epoch, signal: (0.0, {0: 1.0, 9: 100.0, 19: math.nan}[epoch]))
    assert fit(dead, [anchor("classifier", None, 100.0)]).rmse is None, "the largest is not known"


def test_the_other_seeds_are_told(values: Write, published: PublishedFigure) -> None:
    shifts = {868: 0.05, 67: 0.2, 472: 0.01}
    of_seeds = {seed: values(gradient(figure1, 10**shift)) for seed, shift in shifts.items()}
    matches = match_figure(published, of_seeds)
    assert matches[0].ours.startswith("0.050 (3 seeds: 0.010 to 0.200); ")
    assert matches[0].agrees is True, "of the drawn seed"
    assert "agrees in 3 of 3 seeds" in matches[1].ours


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_leaves_it_open(values: Write, published: PublishedFigure, value: float) -> None:
    def broken(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        return (value, value) if epoch == 9 else gradient(figure1)(layer, depth, epoch, signal)

    matches = match_figure(published, {868: values(broken)})
    assert matches[0].agrees is None
    assert "3 of 10 values are missing or not finite" in matches[0].ours
    agrees = {match.quantity.partition(",")[0]: match.agrees for match in matches[1:]}
    assert agrees == {"order": True, "spikes": True, "ratio": None, "distance of the epochs": None}
    assert matches[1].agrees is None, "the order of the epochs needs all of them"


def test_missing_epochs_leave_it_open(values: Write, published: PublishedFigure) -> None:
    matches = match_figure(published, {868: values(gradient(figure1), epochs=(0, 9))})
    assert matches[0].agrees is None
    assert "3 of 10 values are missing" in matches[0].ours
    assert matches[0].ours.startswith("0.000"), "what is there is compared"


def test_other_layers_leave_it_open(values: Write, published: PublishedFigure) -> None:
    matches = match_figure(published, {868: values(by_layer({}), layers=[("one", "Linear"), ("two", "ReLU")])})
    assert [match.agrees for match in matches] == [None] * len(matches)


def test_a_value_of_zero_is_infinitely_far(values: Write, published: PublishedFigure) -> None:
    [match, *_] = match_figure(published, {868: values(by_layer({"block4.activation": 0.0}))})
    assert match.agrees is False
    assert match.ours.startswith("inf")


def test_order(values: Write, published: PublishedFigure) -> None:
    def judge(numbers: dict[int, float]) -> Match:
        order = Order("gradient", "acsm", "epochs", (("classifier", 0), ("classifier", 19), ("classifier", 9)))
        found = values(lambda layer, depth, epoch, signal: (0.0, numbers[epoch]))
        return match_figure(only(published, anchors=published.anchors[:1], orders=(order,)), {868: found})[-1]

    assert judge({0: 3.0, 19: 2.0, 9: 1.0}).agrees is True
    wrong = judge({0: 3.0, 19: 1.0, 9: 2.0})
    assert wrong.agrees is False
    assert wrong.published == "epoch 0 > epoch 19 > epoch 9"
    assert wrong.ours == "epoch 0 (3) > epoch 9 (2) > epoch 19 (1)"
    assert judge({0: 2.0, 19: 2.0, 9: 1.0}).agrees is False, "equal is not larger"


def test_the_highest_peaks_are_higher_than_their_neighbors(values: Write) -> None:
    heights = {"block2.norm": 9.0, "block2.activation": 10.0, "block5.norm": 4.0, "flatten": 3.0, "classifier": 2.0}
    found = values(by_layer(heights))
    assert highest_peaks(found, "gradient", "acsm", 4) == ["block2.activation", "block5.norm", "flatten", "classifier"]
    assert highest_peaks(found, "gradient", "acsm", 1) == ["block2.activation"]


def spike_match(published: PublishedFigure, found: Values, layers: tuple[str | int, ...], top: int) -> Match:
    spikes = Spikes("gradient", "acsm", "", layers, top)
    return match_figure(only(published, anchors=published.anchors[:1], spikes=(spikes,)), {868: found})[-1]


def test_spikes(values: Write, published: PublishedFigure) -> None:
    found = values(by_layer({"block2.activation": 10.0, "block5.norm": 4.0}))  # layers 9 and 17
    assert spike_match(published, found, ("block*.activation",), 1).agrees is True
    assert spike_match(published, found, (9, 17), 2).agrees is True
    assert spike_match(published, found, (9, 18), 2).agrees is False
    two = spike_match(published, found, ("block*.activation",), 2)
    assert two.agrees is False
    assert two.ours == "9 block2.activation, 17 block5.norm"


def test_swish_outputs_are_not_compared(values: Write, published: PublishedFigure) -> None:
    layers = [("a", "Conv2d"), ("swish", "SiLU"), ("b", "Conv2d"), ("gate", "Sigmoid"), ("c", "Conv2d")]
    found = values(by_layer({"swish": 100.0, "gate": 10.0}), layers=layers)
    match = spike_match(published, found, (1, 3), 2)
    assert match.agrees is True
    assert match.ours.startswith("3 gate; not compared: 1, Swish outputs")
    assert spike_match(published, found, (1, 4), 2).agrees is False


def test_layers_have_the_studys_numbers(values: Write, published: PublishedFigure) -> None:
    layers = [("a", "Conv2d"), ("sum", "Sum"), ("b", "Conv2d"), ("scale", "MPScale"), ("c", "Conv2d"), ("d", "Conv2d")]
    found = values(by_layer({"c": 10.0, "sum": 99.0}), layers=layers)
    assert spike_match(published, found, (2,), 1).agrees is True
    assert found.all_layers.index("c") == 4


@pytest.mark.parametrize(("below", "agrees"), [(0.5, True), (0.6, True), (0.64, False), (0.39, False)])
def test_ratio(values: Write, published: PublishedFigure, below: float, agrees: bool) -> None:
    # Within 0.1 decades of ½: 0.397 to 0.629.
    pairs = (("block1.linear", "block0.activation"), ("block2.linear", "block1.activation"))
    found = values(by_layer({"block1.linear": below * 2, "block2.linear": below / 2}))
    ratio = Ratio("gradient", "acsm", "Linear over ReLU", pairs, (), 0.5, 0.5)
    match = match_figure(only(published, anchors=published.anchors[:1], ratios=(ratio,)), {868: found})[-1]
    assert match.agrees is agrees
    assert match.ours == f"{below:.3g} ({below / 2:.3g} to {below * 2:.3g})"


@pytest.mark.parametrize(("last", "agrees"), [(1.2, True), (1.3, False), (0.75, False)])
def test_merging(values: Write, published: PublishedFigure, last: float, agrees: bool) -> None:
    found = values(lambda layer, depth, epoch, signal: (0.0, last if epoch == 19 else 1.0))
    merging = Merging("gradient", "acsm", "last layer", "classifier")
    match = match_figure(only(published, anchors=published.anchors[:1], merging=(merging,)), {868: found})[-1]
    assert match.agrees is agrees
    assert match.ours == f"{abs(math.log10(last)):.3f} in log10"


def test_the_published_layers_are_those_of_our_nets() -> None:
    """Names and patterns in the file match layers of the nets, and numbers lie where the text says what is there."""
    from sppbench.models import EfficientNet

    merges = ("Sum", "MPSum", "Scale", "MPScale")

    def leaves(**settings: object) -> dict[str, str]:
        net = EfficientNet(**settings)  # type: ignore[arg-type]
        kinds = {name: type(module).__name__ for name, module in net.named_modules() if not list(module.children())}
        return {name: kind for name, kind in kinds.items() if kind not in merges}

    nets = {
        "figure4": leaves(),
        "figure5": leaves(activation="SELU", normalization=None, init="lecun", skip="mp_sum", gate="mp_scale"),
    }
    assert [len(net) for net in nets.values()] == [215, 166]
    for figure in read_published_figures().figures:
        names = list(nets.get(figure.name) or dict(ffnn_layers(figure.name != "figure3")))
        wanted = [one.layer for one in (*figure.anchors, *figure.merging)]
        wanted += [layer for order in figure.orders for layer, _ in order.points]
        wanted += [layer for ratio in figure.ratios for pair in ratio.pairs for layer in pair]
        wanted += [layer for spikes in figure.spikes for layer in spikes.layers if isinstance(layer, str)]
        for layer in wanted:
            assert layer in names or any(Path(name).match(layer) for name in names), (figure.name, layer)
    bn, sn = (list(net.items()) for net in nets.values())
    assert [bn[number][1] for number in (8, 10, 47)] == ["SiLU", "Sigmoid", "SiLU"]
    assert (sn[8][1], sn[17][0]) == ("Sigmoid", "features.2.0.block.2.fc2")
