"""CNN: structure, counts from its sizes, arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppbench.models import CNN

CONV, LINEAR = ["Conv2d", "SiLU", "MaxPool2d"], ["Linear", "SiLU"]
CONV_BN, LINEAR_BN = ["Conv2d", "BatchNorm2d", "SiLU", "MaxPool2d"], ["Linear", "BatchNorm1d", "SiLU"]


@pytest.mark.parametrize(
    ("normalization", "conv", "linear", "extra"),
    [
        (None, CONV, LINEAR, 0),
        ("conv", CONV_BN, LINEAR, 2 * (32 + 64 + 128)),
        ("linear", CONV, LINEAR_BN, 2 * (512 + 256)),
        ("both", CONV_BN, LINEAR_BN, 2 * (32 + 64 + 128 + 512 + 256)),
    ],
)
def test_leaves_and_parameters(normalization: str | None, conv: list[str], linear: list[str], extra: int) -> None:
    net = CNN(normalization=normalization)
    leaves = [type(module).__name__ for module in net.modules() if not list(module.children())]
    assert leaves == [*conv * 3, "Flatten", *linear * 2, "Linear"]
    convolutions = sum(9 * inputs * outputs + outputs for inputs, outputs in ((3, 32), (32, 64), (64, 128)))
    linears = sum(inputs * outputs + outputs for inputs, outputs in ((2048, 512), (512, 256), (256, 100)))
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + linears + extra


def test_forward_is_the_written_out_net() -> None:
    torch.manual_seed(0)
    net = CNN(in_channels=1, image_size=8, num_classes=5, hidden_features=6)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 1, 8, 8)
    p = dict(net.named_parameters())
    x = images
    for i in range(3):
        x = F.max_pool2d(F.silu(F.conv2d(x, p[f"conv{i}.conv.weight"], p[f"conv{i}.conv.bias"], padding=1)), 2)
    x = x.flatten(1)
    for i in range(2):
        x = F.silu(x @ p[f"block{i}.linear.weight"].T + p[f"block{i}.linear.bias"])
    torch.testing.assert_close(net(images), x @ p["classifier.weight"].T + p["classifier.bias"])


@pytest.mark.parametrize(("init", "axis"), [(None, 0), ("he_fan_out", 0), ("he_fan_in", 1)])
def test_weights_at_first(init: str | None, axis: int) -> None:
    torch.manual_seed(0)
    net = CNN(normalization="both") if init is None else CNN(normalization="both", init=init)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan = layer.weight.shape[axis] * layer.weight[0, 0].numel()
            assert layer.weight.square().mean().item() * fan == pytest.approx(2, rel=0.2), name
            assert layer.bias is not None
            assert not layer.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalization": "batch_norm"}, "normalization must be one of None, 'conv', 'linear', 'both'"),
        ({"activation": "Swish"}, "activation must be one of"),
        ({"init": "he"}, "init must be one of"),
        ({"image_size": 7}, "image_size must be an integer of at least 8"),
        ({"hidden_features": 1}, "hidden_features must be an integer of at least 2"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"num_classes": 0}, "num_classes must be"),
    ],
)
def test_impossible_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNN(**arguments)
