"""Theory against wide random nets, as the probe records them, and against closed forms derived another way.

Tolerances. A second moment over h channels of one sample has the relative standard deviation √(2/h), after ReLU √(5/h);
over layers variances add up, over samples they average as far as samples are not correlated. With h = 2000 and four
layers that is at most 0.10, and 0.05 is seen; for ratios of neighbouring layers, √(5/2000) = 0.05 at most.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from sppbench.models import FFNN, EfficientNet, MPSum, Sum, initialize, mp_scale
from sppbench.models import mp_sum as mp_sum_of_tensors
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.theory.chain import expected_of_chain
from sppbench.spp.theory.closed_forms import (
    ACTIVATIONS,
    batch_norm_relu_growth,
    depthwise_fan_out_gain,
    gate_second_moment,
    gaussian_covariance,
    gaussian_mean,
    gaussian_second_moment,
    mp_gate,
    mp_gate_slope,
    mp_sum,
    residual_sum,
    selu_backward_gain,
    selu_gain,
    tap_share,
    taps_inside,
    weight_gain,
)
from sppbench.spp.theory.net import expected_of_net

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772
LAYERS = 4
CORRELATIONS = np.linspace(-1, 1, 21)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(net: nn.Module, x: Tensor, shared: float = 0.0) -> pd.DataFrame:
    """One step with a loss whose gradient is random; `shared` is the part of it that all samples have in common."""
    probe = SignalProbe(net.train())
    y = net(x)
    gradient = draw(*y.shape, seed=2) + shared * draw(1, *y.shape[1:], seed=3)
    (y * gradient).sum().backward()
    frame = probe.collect()
    probe.close()
    return frame


def wide(seed: int = 0, **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"in_channels": 1, "image_size": 16, "num_classes": 500, "hidden_features": 2000, "depth": LAYERS}
    return FFNN(**{**sizes, **arguments})


def column(frame: pd.DataFrame, signal: str, name: str) -> pd.Series:
    return frame[frame["signal"] == signal].set_index("layer")[name]


def both(frame: pd.DataFrame, table: pd.DataFrame, signal: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Recorded and expected values of a statistic, where the theory says something."""
    expected = column(table, signal, name).dropna()
    expected = expected[expected.index.isin(column(frame, signal, name).index)]
    return column(frame, signal, name)[expected.index].to_numpy(), expected.to_numpy()


# -- Gaussian means --------------------------------------------------------------------------------------------------


def arc_cosine_1(rho: np.ndarray) -> np.ndarray:
    """E[relu(u)·relu(v)] at unit variance (Cho & Saul 2009)."""
    return (np.sqrt(1 - rho**2) + rho * (math.pi - np.arccos(rho))) / (2 * math.pi)


@pytest.mark.parametrize("variance", [1e-20, 1.0, 50.0])
def test_relu_is_the_arc_cosine_kernel(variance: float) -> None:
    relu = ACTIVATIONS["ReLU"]
    found = gaussian_covariance(relu.function, variance, variance * CORRELATIONS) / variance
    np.testing.assert_allclose(found, arc_cosine_1(CORRELATIONS), atol=1e-6)
    assert found[-1] == pytest.approx(0.5, rel=1e-9)
    slopes = gaussian_covariance(relu.slope, variance, variance * CORRELATIONS)
    np.testing.assert_allclose(slopes, (math.pi - np.arccos(CORRELATIONS)) / (2 * math.pi), atol=1e-4)
    assert gaussian_mean(relu.function, variance) == pytest.approx(math.sqrt(variance / (2 * math.pi)))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_covariances_are_those_of_a_grid_in_two_dimensions(name: str) -> None:
    x = np.linspace(-8, 8, 1601)
    weights = norm.pdf(x) * (x[1] - x[0])
    for variance, rho in ((0.01, 0.3), (1.0, -0.5), (9.0, 0.9)):
        u = math.sqrt(variance) * x
        v = rho * u[:, None] + math.sqrt(variance * (1 - rho**2)) * x
        for function in (ACTIVATIONS[name].function, ACTIVATIONS[name].slope):
            expected = (weights * function(u)) @ function(v) @ weights
            scale = gaussian_second_moment(function, variance)
            found = float(gaussian_covariance(function, variance, variance * rho))
            assert found == pytest.approx(expected, abs=5e-3 * scale)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_and_slopes_are_torchs(name: str) -> None:
    x = torch.tensor([-9.0, -1.0, -1e-9, 1e-9, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    y = getattr(nn, name)()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    points = x.detach().numpy()
    np.testing.assert_allclose(ACTIVATIONS[name].function(points), y.detach().numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ACTIVATIONS[name].slope(points), slope.numpy(), rtol=1e-9, atol=1e-12)


def test_a_variance_that_is_not_finite_is_nan() -> None:
    for variance in (math.inf, math.nan):
        assert np.isnan(gaussian_covariance(np.tanh, variance, np.ones(2))).all()
        assert math.isnan(gaussian_mean(np.tanh, variance))


def test_selu() -> None:
    function = ACTIVATIONS["SELU"].function
    assert gaussian_mean(function, 1.0) == pytest.approx(0, abs=1e-9)
    assert selu_gain(1.0) == pytest.approx(1, abs=1e-9)
    # E[e^{2z}; z < 0] = e²·Φ(−2), by completing the square.
    closed = LAMBDA**2 * (0.5 + ALPHA**2 * math.exp(2) * norm.cdf(-2))
    assert selu_backward_gain() == pytest.approx(closed, rel=1e-9)
    assert closed == pytest.approx(1.0716, abs=5e-5)
    assert selu_gain(1e-12) == pytest.approx(LAMBDA**2 * (1 + ALPHA**2) / 2, rel=1e-5)
    assert selu_gain(1e-12) == pytest.approx(2.10, abs=5e-3)


# -- chains ----------------------------------------------------------------------------------------------------------


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


CHAINS: dict[str, tuple[dict[str, Any], Any]] = {
    "relu": ({}, "he"),
    "relu, fan in": ({"init": "he_fan_in"}, "he"),
    "selu": ({"activation": "SELU", "init": "lecun"}, "lecun"),
    "batch norm": ({"normalization": "batch_norm"}, "he"),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains_by_name_and_by_net(case: str) -> None:
    arguments, name = CHAINS[case]
    net = wide(**arguments)
    x = draw(128, 1, 16, 16) + 0.3  # samples have a mean in common
    frame = record(net, x, shared=0.5)
    for table in (expected_of_chain(frame, name), expected_of_net(net, x, frame)):
        for signal in ("activation", "gradient"):
            for statistic in ("second_moment", "acv"):
                recorded, expected = both(frame, table, signal, statistic)
                np.testing.assert_allclose(recorded, expected, rtol=0.15)
            recorded, expected = both(frame, table, signal, "acsm")
            scale = both(frame, table, signal, "second_moment")[0]
            # Where batch normalization takes the mean out, theory says zero.
            assert (recorded[expected == 0] <= 1e-9 * scale[expected == 0]).all()
            np.testing.assert_allclose(recorded[expected > 0], expected[expected > 0], rtol=0.25)
    chain = expected_of_chain(frame, name)
    hidden = [layer for layer in dict.fromkeys(frame["layer"]) if layer not in ("flatten", "classifier")]
    assert list(column(chain, "activation", "acsm").index) == hidden
    assert set(column(chain, "gradient", "acsm").index) == set(hidden)
    whole = expected_of_net(net, x, frame)
    assert set(column(frame, "gradient", "acsm").index) <= set(column(whole, "gradient", "acsm").index)
    assert set(column(whole, "activation", "acsm").index) == set(column(frame, "activation", "acsm").index)
    # The mean over everything is that which the overall variance of the study's convention needs.
    recorded, expected = both(frame, chain, "activation", "mean")
    np.testing.assert_allclose(recorded, expected, atol=0.08 * math.sqrt(moment_of(frame)))


def moment_of(frame: pd.DataFrame) -> float:
    return float(column(frame, "activation", "second_moment").max())


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


# -- sums, gates, depthwise convolutions -----------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.8])
@pytest.mark.parametrize("weight", [0.5, 0.3, 1.0])
def test_sums_of_correlated_signals(rho: float, weight: float) -> None:
    a, noise = draw(1000, 2000, seed=4).double(), draw(1000, 2000, seed=5).double()
    main, skip = 2 * a, 3 * (rho * a + math.sqrt(1 - rho**2) * noise)
    assert float((main + skip).var()) == pytest.approx(residual_sum(4, 9, rho), rel=0.01)
    merged = mp_sum_of_tensors(main, skip, weight)
    assert float(merged.var()) == pytest.approx(mp_sum(4, 9, weight, rho), rel=0.01)


def test_sums_at_equal_variances_and_with_a_dead_branch() -> None:
    assert mp_sum(1, 1, 0.5, 0.3) == pytest.approx(1.3)
    assert mp_sum(0, 1) == pytest.approx(0.5)
    assert residual_sum(0, 1) == 1


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


def test_gates() -> None:
    s = np.linspace(0.01, 0.99, 99)
    np.testing.assert_allclose(mp_gate(s) ** 2 + mp_gate(1 - s) ** 2, 1)
    np.testing.assert_allclose(mp_gate_slope(s), (mp_gate(s + 1e-6) - mp_gate(s - 1e-6)) / 2e-6, rtol=1e-6)
    for variance in (1e-6, 1.0, 100.0):
        assert gate_second_moment(variance, magnitude_preserving=True) == pytest.approx(0.5)
    assert gate_second_moment(1.0) == pytest.approx(0.293, abs=5e-4)
    assert gate_second_moment(1e-9) == pytest.approx(0.25)
    x, z = draw(1_000_000, seed=6), draw(1_000_000, seed=7)
    assert float((x * z.sigmoid()).square().mean()) == pytest.approx(gate_second_moment(1.0), rel=0.01)
    assert float(mp_scale(x, (2 * z).sigmoid()).square().mean()) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (3, 2, 0), (5, 1, 2)])
def test_taps_inside_are_counted(size: int, kernel: int, stride: int, padding: int) -> None:
    if size + 2 * padding < kernel:
        return
    one_hot = torch.eye(kernel).unsqueeze(1)  # a filter for each tap, over an image of ones
    image = torch.ones(1, 1, size)
    counts = nn.functional.conv1d(image, one_hot, stride=stride, padding=padding).sum((0, 2))
    assert taps_inside(size, kernel, stride, padding).tolist() == counts.tolist()
    square = nn.functional.conv2d(
        torch.ones(1, 1, size, size), torch.ones(1, 1, kernel, kernel), stride=stride, padding=padding
    )
    assert tap_share((size, size), kernel, stride, padding) == pytest.approx(float(square.mean()) / kernel**2)


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


# -- whole nets ------------------------------------------------------------------------------------------------------


def smooth_images(count: int) -> Tensor:
    x = nn.functional.interpolate(draw(count, 3, 4, 4), size=32, mode="bilinear") + 0.3 * draw(count, 3, 32, 32, seed=8)
    return (x - x.mean()) / x.std()


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


# -- nets of others --------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self, add: bool, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.relu, self.last = nn.ReLU(inplace=inplace), nn.Linear(64, 10)
        self._add = add

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.view(len(x), -1))
        y = self.second(self.relu(x))
        if self._add:
            y += 1
        return self.last(y)


def test_what_is_not_a_layer_ends_the_theory() -> None:
    net, x = Functional(add=True), draw(32, 1, 8, 8)
    frame = record(net, x)
    with pytest.warns(UserWarning, match="no expected values from last on: it takes what is not the output of a layer"):
        table = expected_of_net(net, x, frame)
    activation = column(table, "activation", "second_moment")
    assert activation[["first", "relu", "second"]].notna().all()
    assert math.isnan(activation["last"])
    gradient = column(table, "gradient", "second_moment")
    assert gradient["last"] == column(frame, "gradient", "second_moment")["last"]
    assert gradient.drop("last").isna().all()


@pytest.mark.parametrize("inplace", [False, True])
def test_views_and_layers_that_work_in_place_are_followed(inplace: bool) -> None:
    net, x = Functional(add=False, inplace=inplace), draw(32, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = expected_of_net(net, x)
    assert list(table["layer"]) == ["first", "relu", "second", "last"]
    assert table["second_moment"].notna().all()
    # torch's own init: weights and biases with variance 1/(3·fan_in).
    assert table["second_moment"][0] == pytest.approx(float(x.square().mean()) / 3 + 1 / 192, rel=0.2)


def test_an_unknown_kind_ends_the_theory() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    with pytest.warns(UserWarning, match="from 1 on: nothing is known of MaxPool2d"):
        table = expected_of_net(net, draw(4, 3, 12, 12))
    assert table["second_moment"].isna().tolist() == [False, True, True]


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


def test_a_chain_is_asked_for_what_is_none() -> None:
    net = EfficientNet(width_mult=0.1, depth_mult=0.1)
    frame = record(net, smooth_images(4))
    with pytest.raises(ValueError, match="two layers of kind Linear; the frame has 1"):
        expected_of_chain(frame, "he")
    chain = record(nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 8)), draw(4, 8))
    with pytest.raises(ValueError, match="no theory by name for 1, a Softplus"):
        expected_of_chain(chain, "he")
    with pytest.raises(ValueError, match="unknown theory 'poster'; there are he, lecun"):
        expected_of_chain(chain, "poster")  # type: ignore[arg-type]


def test_a_chain_without_numbers_of_samples_says_nothing_of_the_gradients_split() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Linear(8, 8), b=nn.ReLU(), c=nn.Linear(8, 8)))
    frame = record(net, draw(4, 8)).drop(columns="samples")
    table = expected_of_chain(frame, "he")
    assert column(table, "gradient", "acsm").isna().all()
    assert column(table, "gradient", "second_moment").notna().all()
