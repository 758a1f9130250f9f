"""The normalizer-free EfficientNet: what its weights, gains and branches are at first, and how a step moves them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppbench.models import EfficientNet, NFEfficientNet
from sppbench.models.nf_efficientnet import NFMBConv, ScaledGate
from sppbench.models.scaled_convolution import ScaledConv2d, pink_noise, set_gains_and_biases


def scaled(standardize: bool = False, gain: bool = True, groups: int = 1, sigma: float = 0.04) -> ScaledConv2d:
    torch.manual_seed(0)
    return ScaledConv2d(64, 64, 3, groups=groups, sigma=sigma, standardize=standardize, gain=gain)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("groups", [1, 64])
def test_the_weight_has_lecuns_variance_at_first(standardize: bool, groups: int) -> None:
    layer = scaled(standardize, groups=groups)
    fan_in = 64 // groups * 9
    assert layer.weight.std().item() == pytest.approx(0.04, rel=0.05)
    # Standardized by each output's own n weights, not by σ: exactly 1.
    assert layer.scaled_weight().square().mean().item() * fan_in == pytest.approx(1, rel=1e-4 if standardize else 0.1)
    x = torch.randn(2, 64, 5, 5)
    assert torch.equal(layer(x), F.conv2d(x, layer.scaled_weight(), layer.bias, 1, 1, 1, groups))


def test_a_standardized_weight_has_mean_zero_and_no_scale() -> None:
    layer = scaled(standardize=True)
    before = layer.scaled_weight()
    assert before.mean((1, 2, 3)).abs().max() < 1e-6
    with torch.no_grad():
        layer.weight.mul_(3).add_(1)
    torch.testing.assert_close(layer.scaled_weight(), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.2, 0.04])
def test_a_step_of_adam_changes_every_layer_by_the_same_share(sigma: float) -> None:
    """Adam's first step moves each weight by the learning rate: lr/σ of the root mean square, whatever the fan-in."""
    torch.manual_seed(0)
    net = NFEfficientNet(sigma=sigma, calibrate=False)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, ScaledConv2d)}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    F.cross_entropy(net(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    optimizer.step()
    for name, layer in layers.items():
        moved = layer.weight.grad.abs() > 1e-6  # others are near Adam's ε, or are taps that meet no pixel
        if moved.sum() > 100:
            share = (layer.weight.detach() - before[name])[moved].square().mean().sqrt() / before[name].std()
            assert share.item() == pytest.approx(0.001 / sigma, rel=0.15), name


def test_each_channel_begins_with_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    net = NFEfficientNet(bias=True)
    seen = {}
    for name, layer in net.named_modules():
        if isinstance(layer, ScaledConv2d) and layer.gain is not None:
            layer.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    net.eval()(pink_noise(256, 3, 32, torch.Generator().manual_seed(0)))
    assert len(seen) == 1 + 16 * 3 - 1 + 1  # the first block has no expansion
    for name, output in seen.items():
        std, mean = torch.std_mean(output, (0, 2, 3), correction=0)
        assert mean.abs().max() < 1e-3, name
        if net.get_submodule(name).groups > 1:  # of all channels, see the next test
            std = std.square().mean().sqrt()
        assert (std - 1).abs().max() < 1e-3, name


def test_no_gain_makes_one_tap_larger_than_its_layer() -> None:
    """A depthwise convolution of one pixel has one tap a channel; 1/|tap| as its gain would be over 1,000."""
    torch.manual_seed(0)
    for name, layer in NFEfficientNet(bias=True).named_modules():
        if isinstance(layer, ScaledConv2d) and layer.groups > 1:
            assert layer.gain.max().item() < 6, name  # at most √25 of 25 taps meet a pixel, and variance over channels
            assert layer.gain.min().item() == pytest.approx(layer.gain.max().item()), name


def test_calibration_draws_no_random_numbers_and_leaves_modes_alone() -> None:
    net = NFEfficientNet(bias=True, calibrate=False)
    net.features[3].eval()
    state = torch.get_rng_state()
    set_gains_and_biases(net, 3, count=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not net.features[3].training


def test_pink_noise_has_amplitudes_of_one_over_f() -> None:
    images = pink_noise(512, 1, 32, torch.Generator().manual_seed(0))
    assert images.mean().abs() < 1e-6
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    power = torch.fft.rfft2(images).abs().square().mean((0, 1))
    assert (power[0, 2] / power[0, 8]).item() == pytest.approx(16, rel=0.15)
    assert (power[3, 4] / power[6, 8]).item() == pytest.approx(4, rel=0.15)


def test_beta_is_the_standard_deviation_of_independent_branches() -> None:
    net = NFEfficientNet(branch_gain=0.5)
    blocks = [block for block in net.features if isinstance(block, NFMBConv)]
    assert [len([1 for block in blocks if block.has_skip]), len(blocks)] == [9, 16]
    betas = [block.beta**2 for block in blocks]
    # A stage of n blocks: 1 at its first, which takes what the stage before left; then 1, 1.25, 1.5, ...
    assert betas == pytest.approx([1, 1, 1, 1.25, 1, 1.25, 1, 1.25, 1.5, 1, 1.25, 1.5, 1, 1.25, 1.5, 1.75])


def test_a_block_is_its_equation() -> None:
    net = NFEfficientNet(calibrate=False).eval()
    block = net.features[11]  # with a skip
    assert isinstance(block, NFMBConv)
    assert block.has_skip
    x = torch.randn(2, 112, 2, 2)
    torch.testing.assert_close(block(x), x + 0.5 * block.block(x / block.beta))
    drops = [block.stochastic_depth.p for block in net.features if isinstance(block, NFMBConv) and block.has_skip]
    assert drops == pytest.approx([0.25 * place / 15 for place in (2, 4, 6, 7, 9, 10, 12, 13, 14)])


def test_a_gate_of_half_lets_a_signal_pass() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ScaledGate(2.0)(x, torch.full((2, 3, 1, 1), 0.5)), x)


def test_without_its_parts_it_is_the_self_normalizing_net() -> None:
    """The same function as `sn_efficientnet_nomp`'s where the weights are the same."""
    off: dict[str, Any] = dict.fromkeys(("standardize", "weight_gain", "bias", "calibrate", "beta"), False)
    net = NFEfficientNet(**off, branch_gain=None, gate_scale=1.0, stochastic_depth=0.0, classifier_std=None).eval()
    theirs = EfficientNet(activation="SELU", normalization=None, init="lecun", classifier_std=None).eval()
    ours, others = ([one for one in each.modules() if isinstance(one, nn.Conv2d)] for each in (net, theirs))
    with torch.no_grad():
        for layer, other in zip(ours, others, strict=True):
            assert isinstance(layer, ScaledConv2d)
            layer.weight.copy_(other.weight * layer.sigma * math.sqrt(layer.fan_in))
            if layer.bias is not None:
                assert other.bias is not None
                layer.bias.copy_(other.bias)
        net.classifier.load_state_dict(theirs.classifier.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_leaves_are_called_once_each_in_the_order_of_registration() -> None:
    net = NFEfficientNet(calibrate=False).eval()
    called: list[str] = []
    for name, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
    net(torch.zeros(1, 3, 32, 32))
    assert called == [name for name, module in net.named_modules() if not list(module.children())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma must be above 0"),
        ({"depthwise_sigma": -1.0}, "depthwise_sigma must be above 0"),
        ({"stochastic_depth": 1}, "stochastic_depth must be in"),
        ({"dropout": math.nan}, "dropout must be in"),
        ({"activation": "Relu"}, "activation must be"),
        ({"in_channels": 0}, "in_channels must be"),
    ],
)
def test_impossible_values(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NFEfficientNet(**arguments)


def test_parameters_are_those_of_the_net_with_batch_normalization_and_one_a_skip() -> None:
    """Without biases it has a number a normalized channel less."""
    both = NFEfficientNet(bias=True), EfficientNet()
    ours, theirs = (sum(one.numel() for one in net.parameters()) for net in both)
    assert ours == theirs + 9
    channels = sum(layer.num_features for layer in both[1].modules() if isinstance(layer, nn.BatchNorm2d))
    assert sum(one.numel() for one in NFEfficientNet().parameters()) == theirs + 9 - channels
    assert isinstance(NFEfficientNet().classifier[1], nn.Linear)
