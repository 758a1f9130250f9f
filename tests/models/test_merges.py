"""Merges: closed forms of their gains."""

import math

import pytest
import torch

from sppbench.models import MPScale, MPSum, Scale, Sum, mp_scale, mp_sum


def _orthonormal(count: int, samples: int = 1000) -> torch.Tensor:
    """`count` rows of mean square 1 that are exactly uncorrelated: sampling error is not part of what is tested."""
    rows = torch.randn(samples, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q: torch.Tensor = torch.linalg.qr(rows).Q
    return q.T * math.sqrt(samples)


def _gate_gain(s: torch.Tensor) -> torch.Tensor:
    return mp_scale(torch.ones_like(s), s)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
def test_mp_sum_preserves_the_variance_of_uncorrelated_inputs(weight: float) -> None:
    main, skip = _orthonormal(2)
    assert mp_sum(main, skip, weight).square().mean().item() == pytest.approx(1)


def test_mp_sum_of_equal_inputs_has_gain_sqrt_two() -> None:
    (x,) = _orthonormal(1)
    torch.testing.assert_close(mp_sum(x, x, 0.5), math.sqrt(2) * x)


def test_mp_sum_with_extreme_weights_returns_one_input() -> None:
    main, skip = _orthonormal(2)
    assert torch.equal(mp_sum(main, skip, 0), main)
    assert torch.equal(mp_sum(main, skip, 1), skip)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.7])
@pytest.mark.parametrize(("v_m", "v_s", "rho"), [(1, 1, 0.4), (0.25, 4, 0.9), (3, 0.5, -0.6), (2, 2, -1), (0, 1, 0)])
def test_mp_sum_has_the_general_gain(weight: float, v_m: float, v_s: float, rho: float) -> None:
    a, b = _orthonormal(2)
    main = math.sqrt(v_m) * a
    skip = math.sqrt(v_s) * (rho * a + math.sqrt(1 - rho**2) * b)
    covariance = rho * math.sqrt(v_m * v_s)
    power = (1 - weight) ** 2 * v_m + weight**2 * v_s + 2 * weight * (1 - weight) * covariance
    expected = power / ((1 - weight) ** 2 + weight**2)
    assert mp_sum(main, skip, weight).square().mean().item() == pytest.approx(expected, abs=1e-12)


def test_mp_sum_halves_the_variance_when_the_branch_is_dead() -> None:
    (skip,) = _orthonormal(1)
    assert mp_sum(torch.zeros_like(skip), skip).square().mean().item() == pytest.approx(0.5)


def test_mp_gate_and_its_complement_share_the_power() -> None:
    s = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(_gate_gain(s).square() + _gate_gain(1 - s).square(), torch.ones_like(s))


def test_mp_gate_is_an_mp_sum_with_nothing() -> None:
    (x,) = _orthonormal(1)
    for s in (0.0, 0.2, 0.5, 0.9, 1.0):
        torch.testing.assert_close(mp_scale(x, torch.full_like(x, s)), mp_sum(torch.zeros_like(x), x, s))


@pytest.mark.parametrize("std", [0.1, 1.0, 10.0])
def test_gates_have_the_expected_power_at_symmetric_logits(std: float) -> None:
    logits = torch.linspace(-8, 8, 20001, dtype=torch.float64)  # in standard deviations
    density = torch.exp(-logits.square() / 2)
    s = torch.sigmoid(std * logits)

    def expectation(values: torch.Tensor) -> float:
        return ((values * density).sum() / density.sum()).item()

    assert expectation(_gate_gain(s).square()) == pytest.approx(0.5)
    if std == 1:
        assert expectation(Scale()(torch.ones_like(s), s).square()) == pytest.approx(0.293, abs=5e-4)


def test_modules_agree_with_functions() -> None:
    x, y = torch.randn(2, 2, 3, 4, 4)
    s = torch.rand(2, 3, 1, 1)
    assert torch.equal(Sum()(x, y), x + y)
    assert torch.equal(Scale()(x, s), x * s)
    assert torch.equal(MPSum(0.3)(x, y), mp_sum(x, y, 0.3))
    assert torch.equal(MPScale()(x, s), mp_scale(x, s))


def test_mp_gate_has_finite_gradients_at_saturated_gates() -> None:
    gate = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(mp_scale(torch.ones(3), gate).sum(), gate)
    # d/ds s·((1−s)² + s²)^(−1/2) = (1−s)·((1−s)² + s²)^(−3/2)
    torch.testing.assert_close(slope, torch.tensor([1.0, 0.5 * 0.5**-1.5, 0.0]))


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_weight_outside_the_unit_interval_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]"):
        MPSum(weight)
