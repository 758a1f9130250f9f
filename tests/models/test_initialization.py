"""Moments of the initial weights, for every layer, against the formulas written out by the type of the layer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sppbench.models import FFNN, EfficientNet, initialize


def _assert_normal(weight: Tensor, variance: float, name: str) -> None:
    """Mean and variance within five standard errors: σ²/n and 2σ⁴/n are the variances of the sample moments."""
    values = weight.detach().double().flatten()
    assert abs(values.mean().item()) < 5 * math.sqrt(variance / len(values)), name
    assert abs(values.square().mean().item() / variance - 1) < 5 * math.sqrt(2 / len(values)), name


def _conv_variance(conv: nn.Conv2d, init: str) -> float:
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    depthwise = conv.groups > 1
    fan_in = taps if depthwise else taps * conv.in_channels
    fan_out = taps * conv.out_channels  # for depthwise layers, too
    return {"he_fan_out": 2 / fan_out, "he_fan_in": 2 / fan_in, "lecun": 1 / fan_in}[init]


@pytest.mark.parametrize("init", ["he_fan_out", "he_fan_in", "lecun"])
@pytest.mark.parametrize("normalization", [None, "batch_norm"])
def test_efficientnet_weights(init: str, normalization: str | None) -> None:
    torch.manual_seed(0)
    net = EfficientNet(init=init, normalization=normalization)
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convs) == 1 + 3 * 16 - 1 + 2 * 16 + 1  # stem, blocks (the first without expansion), SE, head
    for name, conv in convs.items():
        _assert_normal(conv.weight, _conv_variance(conv, init), name)
        assert (conv.bias is not None) == name.endswith((".fc1", ".fc2"))
    _assert_normal(net.classifier[1].weight, 0.01**2, "classifier")
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0), name
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)


@pytest.mark.parametrize(("classifier_std", "variance"), [(None, 1 / 1280), (0.1, 0.01)])
def test_efficientnet_classifier(classifier_std: float | None, variance: float) -> None:
    torch.manual_seed(0)
    net = EfficientNet(classifier_std=classifier_std)
    _assert_normal(net.classifier[1].weight, variance, "classifier")


@pytest.mark.parametrize("init", ["he_fan_out", "he_fan_in", "lecun"])
def test_ffnn_weights(init: str) -> None:
    torch.manual_seed(0)
    linears = [module for module in FFNN(init=init).modules() if isinstance(module, nn.Linear)]
    widths = [3072] + [500] * 9 + [100]
    assert len(linears) == 10
    for layer, fan_in, fan_out in zip(linears, widths[:-1], widths[1:], strict=True):
        variance = {"he_fan_out": 2 / fan_out, "he_fan_in": 2 / fan_in, "lecun": 1 / fan_in}[init]
        _assert_normal(layer.weight, variance, repr(layer))
        assert torch.all(layer.bias == 0)


def test_ffnn_forward_second_moment_follows_he() -> None:
    """He et al. 2015: 3072·(2/h)·E[x²] after the first layer, unchanged by each ReLU and Linear(h, h) after that."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    nets = []
    for _ in range(10):  # the moment of one finite net scatters by about sqrt(5 / h) per layer
        net = FFNN(depth=2, hidden_features=200)
        moments: list[Tensor] = []
        for i in range(3):
            net.get_submodule(f"block{i}.linear").register_forward_hook(
                lambda module, inputs, output, moments=moments: moments.append(output.square().mean())
            )
        net(images)
        nets.append(torch.stack(moments))
    expected = 3072 * 2 / 200 * images.square().mean()
    torch.testing.assert_close(torch.stack(nets).mean(0), expected.expand(3), rtol=0.2, atol=0)


def test_same_seed_same_weights_and_pairing_over_variants() -> None:
    def weights(seed: int, **arguments: Any) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return dict(EfficientNet(width_mult=0.25, depth_mult=0.3, **arguments).named_parameters())

    first, again, other = weights(1), weights(1), weights(2)
    without = weights(1, normalization=None, skip="mp_sum", gate="mp_scale")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])
    # The variants differ in modules that draw no random numbers, so a seed gives all of them the same weights.
    assert all(torch.equal(first[name], without[name]) for name in without)


def test_same_seed_same_ffnn() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(FFNN(hidden_features=16, normalization="batch_norm").state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_unknown_init_is_refused() -> None:
    with pytest.raises(ValueError, match="init must be one of 'he_fan_out', 'he_fan_in', 'lecun'; got 'xavier'"):
        initialize(nn.Linear(2, 2), "xavier")
