"""Variants of the normalizer-free net: the noise's size and place, and the equation of the sums."""

from __future__ import annotations

import math

import pytest
import torch

from sppbench.models import NFEfficientNet, NFEfficientNetVariant
from sppbench.models.nf_efficientnet import NFMBConv
from sppbench.models.scaled_convolution import ScaledConv2d


def test_without_anything_more_it_is_the_net() -> None:
    x = torch.randn(2, 3, 32, 32)
    outputs = []
    for make in (NFEfficientNet, NFEfficientNetVariant):
        torch.manual_seed(0)
        outputs.append(make().eval()(x))
    assert torch.equal(*outputs)


def test_noise_is_a_factor_of_each_channel_in_training_alone() -> None:
    torch.manual_seed(0)
    layer = ScaledConv2d(16, 2000, 1, sigma=0.04)
    clean = layer.scaled_weight()
    layer.noise = 0.05
    factors = layer.scaled_weight() / clean
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert factors[:, 0].mean().item() == pytest.approx(1, abs=0.005)
    assert factors[:, 0].std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(layer.scaled_weight(), layer.scaled_weight())
    assert torch.equal(layer.eval().scaled_weight(), clean)


def test_noise_is_where_batch_normalization_was() -> None:
    net = NFEfficientNetVariant(noise=0.05)
    noisy = {name for name, layer in net.named_modules() if isinstance(layer, ScaledConv2d) and layer.noise}
    assert len(noisy) == 49  # batch normalizations of EfficientNet-B0
    assert not any(name.endswith(("fc1", "fc2")) for name in noisy)


def test_magnitude_preserving_sums() -> None:
    net = NFEfficientNetVariant(mp_weight=0.3).eval()
    block = net.features[11]
    assert isinstance(block, NFMBConv)
    x = torch.randn(2, 112, 2, 2)
    torch.testing.assert_close(block(x), (0.7 * x + 0.3 * block.block(x)) / math.hypot(0.7, 0.3))
    assert not [name for name, _ in net.named_parameters() if "branch_gain" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"noise": -0.1}, "noise must be at least 0"), ({"mp_weight": 1.5}, "mp_weight must be None or in")],
)
def test_impossible_values(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NFEfficientNetVariant(**arguments)  # type: ignore[arg-type]
