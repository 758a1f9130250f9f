"""Nets that keep the resolution of their images for longer."""

from __future__ import annotations

from torch import nn

from sppbench.checks import check_integer


def with_stem_stride(net: nn.Module, stride: int = 1) -> nn.Module:
    """The net, whose first convolution has another stride from now on; its weights stay.

    A stem of stride 2 is made for images of 224×224. With stride 1 the layers of a net on 32×32 images see four times
    as many pixels, and a step takes as many times as long.

    Args:
        net: of which the first convolution takes the images; changed in place.
        stride: in both directions, at least 1.

    Raises:
        ValueError: the net has no convolution, or the number is out of its range.

    Example:
        >>> import torch
        >>> from sppbench.models import NFEfficientNet
        >>> net = with_stem_stride(NFEfficientNet())
        >>> net.features[0](torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32, 32, 32])
    """
    check_integer("stride", stride, 1)
    stem = next((layer for layer in net.modules() if isinstance(layer, nn.Conv2d)), None)
    if stem is None:
        raise ValueError(f"{type(net).__name__} has no convolution")
    stem.stride = (stride, stride)
    return net
