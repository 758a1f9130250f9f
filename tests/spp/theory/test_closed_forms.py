"""Closed forms against independent closed forms, numerical integrals, and drawn samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from sppbench.models import mp_scale
from sppbench.models import mp_sum as mp_sum_of_tensors
from sppbench.spp.theory.closed_forms import (
    ACTIVATIONS,
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
    softmax_squares,
    tap_share,
    taps_inside,
)
from tests.spp.theory.recorded import draw

LAMBDA, ALPHA = 1.0507009873554805, 1.6732632423543772

CORRELATIONS = np.linspace(-1, 1, 21)


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


@pytest.mark.parametrize("variance", [0.0, 0.3, 1.0, 4.0])
def test_squares_of_softmax(variance: float) -> None:
    logits = math.sqrt(variance) * np.random.default_rng(0).standard_normal((200_000, 16))
    for keys in (1, 2, 5, 16):
        weights = np.exp(logits[:, :keys])
        weights /= weights.sum(1, keepdims=True)
        expected = softmax_squares(keys, variance)
        np.testing.assert_allclose(expected, np.square(weights).sum(1).mean(), rtol=5e-3)
    np.testing.assert_allclose(softmax_squares(np.array([1e6]), 0.5), np.exp(0.5) / 1e6, rtol=1e-4)
