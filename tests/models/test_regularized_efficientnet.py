"""EfficientNet with batch normalization and more regularization: what it leaves out, what the size of weights does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppbench.models import EfficientNet, RegularizedEfficientNet
from sppbench.models.efficientnet import MBConv


def test_without_regularization_it_is_the_net_of_the_study() -> None:
    nets = []
    for make in (EfficientNet, RegularizedEfficientNet):
        torch.manual_seed(0)
        off = {} if make is EfficientNet else {"stochastic_depth": 0.0, "weight_std": None}
        nets.append(make(dropout=0.2, **off))
    for (name, one), (other_name, other) in zip(*(net.state_dict().items() for net in nets), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    images = torch.randn(4, 3, 32, 32)
    outputs = []
    for net in nets:
        torch.manual_seed(1)
        outputs.append(net(images))
    assert torch.equal(*outputs)


def test_branches_are_left_out_for_a_sample_or_doubled() -> None:
    net = RegularizedEfficientNet(stochastic_depth=0.5)
    blocks = [block for block in net.features.modules() if isinstance(block, MBConv) and block.use_res_connect]
    drops = [block.stochastic_depth.p for block in blocks]
    assert drops == pytest.approx([0.5 * place / 15 for place in (2, 4, 6, 7, 9, 10, 12, 13, 14)])
    assert [name for name, _ in blocks[0].named_children()] == ["block", "stochastic_depth", "sum"]
    block = blocks[-1].train()
    x = torch.randn(64, 192, 1, 1)
    block.block.eval()
    branch, keep = block.block(x), 1 - drops[-1]
    change = block(x) - x
    share = (change * branch).sum((1, 2, 3)) / branch.square().sum((1, 2, 3))  # of each sample: 0, or 1 / (1 - p)
    assert (torch.minimum(share.abs(), (share - 1 / keep).abs()) < 1e-3).all()
    assert 0.25 < (share > 0.5).float().mean() < 0.8
    assert torch.equal(block.eval()(x), x + branch)


def test_before_batch_normalization_the_scale_of_weights_does_not_matter() -> None:
    torch.manual_seed(0)
    net = RegularizedEfficientNet(weight_std=0.04, dropout=0.0, stochastic_depth=0.0, num_classes=10)
    scaled = [
        layer
        for name, layer in net.features.named_modules()
        if isinstance(layer, nn.Conv2d) and not name.endswith(("fc1", "fc2"))
    ]
    assert torch.cat([layer.weight.flatten() for layer in scaled]).std().item() == pytest.approx(0.04, rel=0.02)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-12  # beside the variances behind weights of 0.04, ε = 1e-5 is not small everywhere
    images = torch.randn(16, 3, 32, 32)
    before = net(images)
    with torch.no_grad():
        for layer in scaled:
            layer.weight.mul_(10)
    torch.testing.assert_close(net(images), before, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("arguments", [{"stochastic_depth": 1}, {"weight_std": 0}, {"dropout": -0.1}])
def test_impossible_values(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        RegularizedEfficientNet(**arguments)
