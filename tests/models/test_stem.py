"""Nets on small images whose stem does not halve them."""

import pytest
import torch
from torch import nn

from sppbench.models import EfficientNet, NFEfficientNet, with_stem_stride


@pytest.mark.parametrize("make", [EfficientNet, NFEfficientNet])
def test_every_layer_sees_four_times_as_many_pixels(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    sizes: dict[int, list[int]] = {}
    net = make().eval()
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    for stride in (2, 1):
        assert with_stem_stride(net, stride) is net
        found = sizes.setdefault(stride, [])
        hooks = [
            layer.register_forward_hook(lambda layer, inputs, output, found=found: found.append(output.shape[-1]))
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Conv2d) and not name.endswith(("fc1", "fc2"))
        ]
        assert net(torch.randn(2, 3, 32, 32)).shape == (2, 100)
        for hook in hooks:
            hook.remove()
    assert sizes[1][0] == 32
    assert sizes[1] == [2 * size for size in sizes[2]]
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="stride must be"):
        with_stem_stride(EfficientNet(), 0)
    with pytest.raises(ValueError, match="Linear has no convolution"):
        with_stem_stride(nn.Linear(1, 1))
