"""Activations: every name on offer works, and SELU has the constants of its paper."""

import math

import pytest
import torch
from torch import nn

from sppbench.models.activation import ACTIVATIONS, make_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_name_gives_an_element_wise_module_that_leaves_its_input_alone(name: str) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    module = make_activation(name)
    assert type(module) is getattr(nn, name)
    y = module(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(y[1, 2, 3, 1:2], module(x[1, 2, 3, 1:2]))


def test_selu_has_the_constants_of_the_paper() -> None:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = torch.where(x > 0, scale * x, scale * alpha * (torch.exp(x) - 1))
    torch.testing.assert_close(make_activation("SELU")(x), expected, rtol=1e-12, atol=1e-12)


def test_selu_constants_solve_the_fixed_point_equations() -> None:
    """Klambauer et al. 2017: a unit-normal input gives mean 0 and variance 1; the backward gain is E[φ'²] = 1.0716."""
    x = torch.linspace(-12, 12, 400_001, dtype=torch.float64, requires_grad=True)
    density = torch.exp(-x.detach().square() / 2) / math.sqrt(2 * math.pi)
    step = 24 / 400_000
    y = make_activation("SELU")(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y * density).sum().item() * step == pytest.approx(0, abs=1e-4)
    assert (y.square() * density).sum().item() * step == pytest.approx(1, abs=1e-4)
    assert (slope.square() * density).sum().item() * step == pytest.approx(1.0716, abs=1e-4)


def test_silu_is_swish() -> None:
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(make_activation("SiLU")(x), x * torch.sigmoid(x))
