"""UN-EfficientNet: its equations, and why it is dead at first with one initialization and not with the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppbench.models import UNEfficientNet
from sppbench.models.efficientnet import b0_blocks
from sppbench.models.scaled_convolution import pink_noise
from sppbench.models.un_efficientnet import StandardizedConv2d, Times, UnitSiLU, UNMBConv


def blocks(net: nn.Module) -> list[UNMBConv]:
    return [module for module in net.modules() if isinstance(module, UNMBConv)]


def test_unit_silu_keeps_the_second_moment_and_not_the_variance() -> None:
    """By quadrature on a fine grid, apart from the constant in the code."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    y = UnitSiLU()(z)
    mean, second = (y * weight).sum().item(), (y.square() * weight).sum().item()
    assert second == pytest.approx(1, abs=1e-5)
    assert second - mean**2 == pytest.approx(0.88, abs=0.001)
    torch.testing.assert_close(y, z / (1 + torch.exp(-z)) * 1.67653, rtol=1e-5, atol=0)


def test_a_standardized_weight_is_its_equation() -> None:
    torch.manual_seed(0)
    layer = StandardizedConv2d(6, 4, 1)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    raw = layer.weight.detach().numpy()[:, :, 0, 0]
    expected = (raw - raw.mean(1, keepdims=True)) / (6 * raw.var(1, ddof=1, keepdims=True)) ** 0.5
    found = layer.standardized_weight().detach().numpy()[:, :, 0, 0]
    assert found == pytest.approx(expected * [[1.0], [2.0], [3.0], [4.0]], rel=1e-5)
    x = torch.randn(2, 6, 1, 1)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.standardized_weight(), layer.bias))


def test_a_standardized_weight_of_hardly_any_variance_is_not_blown_up() -> None:
    layer = StandardizedConv2d(6, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1, 1, -1, 1, -1]).view(1, 6, 1, 1) * 1e-4)
    assert layer.standardized_weight().abs().max().item() == pytest.approx(1e-4 / math.sqrt(1e-4))


def test_a_block_is_its_equation() -> None:
    net = UNEfficientNet(alpha=0.3, alpha_without_skip=0.5, init="he_fan_in").eval()
    first, third = blocks(net)[0], blocks(net)[2]
    assert [first.has_skip, third.has_skip] == [False, True]
    for block, alpha, beta in ((first, 0.5, 1.0), (third, 0.3, math.sqrt(1 + 2 * 0.09))):
        *layers, factor = block.block
        assert isinstance(factor, Times)
        x = torch.randn(2, 32 if block is first else 24, 8, 8)
        branch = nn.Sequential(*layers)(F.silu(x) / 0.596469 / beta) * alpha
        torch.testing.assert_close(block(x), x + branch if block.has_skip else branch)


def test_beta_never_begins_anew() -> None:
    assert [block.beta**2 for block in blocks(UNEfficientNet())] == pytest.approx([1 + 0.04 * i for i in range(16)])
    assert sum(block.has_skip for block in blocks(UNEfficientNet())) == 9


def test_parameters_are_those_of_the_net_without_batch_normalization_and_the_gains_of_the_gates() -> None:
    count = sum(parameter.numel() for parameter in UNEfficientNet().parameters())
    assert count == 4_093_632 + sum(ratio * inputs + inputs // 4 for ratio, _, _, inputs, _ in b0_blocks())


def test_weights_at_first() -> None:
    """N(0, 2/(k² C_out)), also of depthwise convolutions and in the gates, where it goes into Adam's step alone."""
    torch.manual_seed(0)
    net = UNEfficientNet()
    for name, layer in net.features.named_modules():
        if isinstance(layer, nn.Conv2d):
            ratio = layer.weight.square().mean().item() * layer.kernel_size[0] ** 2 * layer.out_channels / 2
            assert ratio == pytest.approx(1, abs=6 * math.sqrt(2 / layer.weight.numel())), name
            assert layer.bias is None or not layer.bias.any()
    assert net.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    torch.manual_seed(0)
    mixed = UNEfficientNet(depthwise_init="lecun")
    for layer in mixed.features.modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.kernel_size[0] ** 2 if layer.groups > 1 else layer.out_channels * layer.kernel_size[0] ** 2 / 2
            expected = pytest.approx(1, abs=6 * math.sqrt(2 / layer.weight.numel()))
            assert layer.weight.square().mean().item() * fan == expected


def test_depthwise_convolutions_kill_the_signal_and_fan_in_keeps_it() -> None:
    """By fan_out, a depthwise convolution multiplies a second moment by 2τ/C in place of 2τ."""
    torch.manual_seed(0)
    images = pink_noise(16, 3, 32, torch.Generator().manual_seed(0))  # with spectra as of photographs
    x = torch.randn(8, 96, 16, 16)
    tau = ((8 * 3 - 1) / (8 * 3)) ** 2  # of 3 taps at 8 places along an axis all but one meet a pixel
    for init, factor, dead in ((None, 2 * tau / 96, True), ("he_fan_in", 2 * tau, False)):
        net = UNEfficientNet(depthwise_init=init).eval()
        depthwise = blocks(net)[1].block[2]
        assert (depthwise(x).square().mean() / x.square().mean()).item() == pytest.approx(factor, rel=0.15)
        nn.functional.cross_entropy(net(images), torch.arange(16)).backward()
        largest = max(parameter.grad.abs().max().item() for parameter in net.features.parameters())
        # Adam's ε is 1e-8: a gradient far below it moves nothing.
        assert (largest < 1e-12) is dead
        assert (largest > 1e-8) is not dead


def test_leaves_are_called_once_each_in_the_order_of_registration() -> None:
    net = UNEfficientNet().eval()
    called: list[str] = []
    leaves = [name for name, module in net.named_modules() if not list(module.children())]
    for name in leaves:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    net(torch.zeros(1, 3, 32, 32))
    assert called == leaves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "alpha must be above 0"),
        ({"alpha_without_skip": math.nan}, "alpha_without_skip must be above 0"),
        ({"init": "lsuv"}, "init must be one of"),
        ({"depthwise_init": "he"}, "depthwise_init must be one of"),
        ({"classifier_std": -1.0}, "classifier_std must be at least 0"),
        ({"dropout": 1}, "dropout must be in"),
        ({"num_classes": 0}, "num_classes must be"),
    ],
)
def test_impossible_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNEfficientNet(**arguments)
