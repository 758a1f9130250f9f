"""Expected values of whole nets, and the growth by layer that the theory names, against recorded ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sppbench.models import EfficientNet, MPSum, Sum, initialize
from sppbench.spp.theory.closed_forms import (
    batch_norm_relu_growth,
    depthwise_fan_out_gain,
    mp_sum,
    residual_sum,
    selu_backward_gain,
    selu_gain,
    tap_share,
    weight_gain,
)
from sppbench.spp.theory.net import expected_of_net
from tests.spp.theory.recorded import LAYERS, both, column, draw, record, smooth_images, wide


def test_relu_and_he() -> None:
    """Activations: constant from the second layer on. Gradients: flat over depth, ½ of ReLU's before each Linear."""
    x = draw(64, 1, 16, 16) * 1.5
    frame = record(wide(), x)
    moment = column(frame, "activation", "second_moment")
    linear = [f"block{i}.linear" for i in range(1 + LAYERS)]
    relu = [f"block{i}.activation" for i in range(1 + LAYERS)]
    first = weight_gain(2 / 2000, 256) * float(x.square().mean())
    assert moment[linear[0]] == pytest.approx(first, rel=0.03)
    np.testing.assert_allclose(moment[linear], first, rtol=0.15)
    np.testing.assert_allclose(moment[relu], moment[linear].to_numpy() / 2, rtol=0.03)
    gradient = column(frame, "gradient", "second_moment")
    following = [*linear[1:], "classifier"]
    np.testing.assert_allclose(gradient[relu], 2 * gradient[following].to_numpy(), rtol=0.05)
    np.testing.assert_allclose(gradient[linear], gradient[relu].to_numpy() / 2, rtol=0.05)
    np.testing.assert_allclose(gradient[linear], gradient["classifier"], rtol=0.15)


def test_the_gradient_grows_with_batch_norm_and_relu() -> None:
    assert batch_norm_relu_growth() == pytest.approx(1.467, abs=5e-4)
    net = wide(hidden_features=1000, normalization="batch_norm", depth=5)
    frame = record(net, draw(512, 1, 16, 16))
    gradient = column(frame, "gradient", "second_moment")
    layers = [f"block{i}.activation" for i in range(1, 5)]
    growth = (gradient[layers[0]] / gradient[layers[-1]]) ** (1 / 3)
    assert growth == pytest.approx(batch_norm_relu_growth(), rel=0.02)
    table = expected_of_net(net, draw(512, 1, 16, 16), frame)
    expected = column(table, "gradient", "second_moment")
    assert (expected[layers[0]] / expected[layers[-1]]) ** (1 / 3) == pytest.approx(growth, rel=0.02)


def test_selu_gains_by_layer() -> None:
    """At the fixed point gradients grow by 1.0716 a layer; weak signals by 2.10, which brings them back to it."""
    net = wide(activation="SELU", init="lecun", num_classes=2000)
    gradient = column(record(net, draw(128, 1, 16, 16)), "gradient", "second_moment")
    growth = (gradient["block0.linear"] / gradient[f"block{LAYERS}.linear"]) ** (1 / LAYERS)
    assert growth == pytest.approx(selu_backward_gain(), rel=0.015)
    moment = column(record(net, 1e-4 * draw(64, 1, 16, 16)), "activation", "second_moment")
    assert moment["block1.linear"] / moment["block0.linear"] == pytest.approx(selu_gain(1e-8), rel=0.03)


class Blocks(nn.Module):
    """Residual blocks x + W·selu(x)."""

    def __init__(self, merge: Callable[[], nn.Module], width: int = 1000, count: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        layers = {"selu": nn.SELU, "linear": lambda: nn.Linear(width, width), "sum": merge}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: make() for name, make in layers.items()}) for _ in range(count)
        )
        initialize(self, "lecun")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block["sum"](block["linear"](block["selu"](x)), x)
        return x


@pytest.mark.parametrize("merge", [Sum, MPSum])
def test_residual_blocks(merge: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = Blocks(merge), draw(256, 1000)
    frame = record(net, x)
    table = expected_of_net(net, x, frame)
    for signal in ("activation", "gradient"):
        recorded, expected = both(frame, table, signal, "second_moment")
        assert len(recorded) == 13
        np.testing.assert_allclose(recorded, expected, rtol=0.08)
    moment = column(frame, "activation", "second_moment")
    branch, skip = moment["blocks.0.linear"], moment["stem"]
    share = residual_sum(branch, skip) if merge is Sum else mp_sum(branch, skip)
    assert moment["blocks.0.sum"] == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (2, 5, 1), (1, 5, 1), (4, 5, 2)])
def test_a_depthwise_convolution_collapses_under_fan_out(size: int, kernel: int, stride: int) -> None:
    channels = 4000
    net = nn.Sequential(nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False))
    torch.manual_seed(0)
    initialize(net, "he_fan_out")
    x = draw(16, channels, size, size)
    frame = record(net, x)
    gain = depthwise_fan_out_gain(channels, tap_share((size, size), kernel, stride, kernel // 2))
    # 4000 channels with the weight of one tap or more each: √(2/4000) = 0.022.
    assert column(frame, "activation", "second_moment")["0"] == pytest.approx(gain, rel=0.06)
    expected = column(expected_of_net(net, x), "activation", "second_moment")["0"]
    assert expected == pytest.approx(gain * float(x.square().mean()), rel=0.06)


EFFICIENTNETS: dict[str, tuple[dict[str, Any], float]] = {
    "no normalization": ({"normalization": None}, 0.25),
    "normalizer-free": (
        {"activation": "SELU", "normalization": None, "init": "lecun", "skip": "mp_sum", "gate": "mp_scale"},
        0.2,
    ),
}


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_efficientnets_are_followed_through_all_layers(name: str) -> None:
    """Widths of 4 to 48 fluctuate by factors; over 15 and 30 decades the curve stays within a quarter of a decade."""
    arguments, tolerance = EFFICIENTNETS[name]
    torch.manual_seed(0)
    net, x = EfficientNet(**arguments), smooth_images(16)
    frame = record(net, x)
    table = expected_of_net(net, x, frame)
    for signal in ("activation", "gradient"):
        recorded, expected = both(frame, table, signal, "second_moment")
        assert len(recorded) == 191
        errors = np.log10(expected / recorded)
        assert math.sqrt((errors**2).mean()) < tolerance
    if name == "no normalization":
        logits = column(table, "activation", "second_moment")["classifier.1"]
        assert math.sqrt(logits) == pytest.approx(1e-15, rel=5)
        assert set(table["source"]) == {"He et al. 2015; Poole et al. 2016; De & Smith 2020"}


def test_batch_norm_behind_few_weights_has_large_gradients_there_only() -> None:
    """A depthwise 3×3 and batch normalization: 1/σ² is 9/7 of what the mean variance gives, and goes again."""
    torch.manual_seed(0)
    channels = 1000
    net = nn.Sequential(
        nn.Conv2d(500, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    )
    initialize(net, "lecun")
    x = draw(8, 500, 5, 5)
    frame = record(net, x)
    for layer in ("0", "1", "2"):
        recorded = column(frame, "gradient", "second_moment")[layer]
        expected = column(expected_of_net(net, x, frame), "gradient", "second_moment")[layer]
        assert recorded == pytest.approx(expected, rel=0.08), layer


class Functional(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.relu, self.last = nn.ReLU(inplace=inplace), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.view(len(x), -1))
        return self.last(self.between(self.second(self.relu(x))))

    def between(self, x: Tensor) -> Tensor:
        return x


class Cumulative(Functional):
    def between(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def test_an_operation_without_a_rule_ends_the_theory_and_is_named_in_one_line() -> None:
    net, x = Cumulative(), draw(32, 1, 8, 8)
    frame = record(net, x)
    with pytest.warns(UserWarning, match="expected_of_net") as caught:
        table = expected_of_net(net, x, frame)
    assert [str(one.message) for one in caught] == [
        "expected_of_net follows 3 of 4 layers; stopped at `Cumulative` (cumsum): no rule"
    ]
    assert caught[0].filename == __file__
    activation = column(table, "activation", "second_moment")
    assert activation[["first", "relu", "second"]].notna().all()
    assert math.isnan(activation["last"])
    gradient = column(table, "gradient", "second_moment")
    assert gradient["last"] == column(frame, "gradient", "second_moment")["last"]
    assert gradient.drop("last").isna().all()


@pytest.mark.parametrize("inplace", [False, True])
def test_views_and_layers_that_work_in_place_are_followed(inplace: bool) -> None:
    net, x = Functional(inplace=inplace), draw(32, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = expected_of_net(net, x)
    assert list(table["layer"]) == ["first", "relu", "second", "last"]
    assert table["second_moment"].notna().all()
    # torch's own init: weights and biases with variance 1/(3·fan_in).
    assert table["second_moment"][0] == pytest.approx(float(x.square().mean()) / 3 + 1 / 192, rel=0.2)


def test_the_net_is_not_touched() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8)).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    table = expected_of_net(net, draw(4, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    moments = table["second_moment"]
    assert moments[1] == pytest.approx(2 * moments[0])
