"""Convolutions whose raw weights have one standard deviation, and their gains and biases at first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppbench.models.convolution import Conv2d


class ScaledConv2d(Conv2d):
    """A convolution whose raw weights have one standard deviation σ, whatever its size; (N, C, H, W) → (N, C', H', W').

    Its weight is gain · raw / (σ √fan_in), which at first has LeCun's variance 1/fan_in (LeCun et al. 1998, eq. 16).
    One step of Adam moves each raw weight by about the learning rate, and so each layer by the share lr/σ. With
    LeCun's own initialization this share is lr · √fan_in: from 0.4 % for 16 inputs to 3 % for 1,152, at lr 0.001.

    Args:
        in_channels, out_channels, kernel_size, stride, groups: As in ``nn.Conv2d``; padding keeps the size.
        sigma: σ, the standard deviation of the raw weights, above 0.
        standardize: Whether the raw weights of each output are taken relative to their own mean and standard deviation
            (Qiao et al. 2019; scaled: Brock et al. 2021 a): the weight is then gain · ŵ / √fan_in. As before
            batch normalization, their scale does not matter.
        gain: Whether each output has a learned gain, from 1 (Salimans & Kingma 2016, section 2).
        bias: Whether each output has a learned bias, from 0.

    Attributes:
        noise: Standard deviation of a factor 1 + ε on each gain, drawn anew in each training step; 0 at first.

    Example:
        >>> layer = ScaledConv2d(3, 8, 3, sigma=0.04)
        >>> layer(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 8, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        sigma: float,
        standardize: bool = False,
        gain: bool = True,
        bias: bool = True,
    ) -> None:
        padding = (kernel_size - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.sigma, self.standardize, self.noise = sigma, standardize, 0.0
        self.fan_in = in_channels // groups * kernel_size**2
        nn.init.normal_(self.weight, std=sigma)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.ones(out_channels)) if gain else None

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.scaled_weight())

    def scaled_weight(self) -> Tensor:
        """The weight that the convolution has, shape (C_out, C_in / groups, k, k)."""
        raw, share = self.weight, 1 / math.sqrt(self.fan_in)
        if self.standardize:
            raw = F.layer_norm(raw.flatten(1), (self.fan_in,), eps=1e-12).view_as(raw)
        else:
            share /= self.sigma
        gain: Tensor | None = self.gain
        if gain is not None and self.noise and self.training:
            gain = gain * (1 + self.noise * torch.randn_like(gain))
        return raw * (share if gain is None else share * gain.view(-1, 1, 1, 1))

    def extra_repr(self) -> str:
        usual: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{usual}, sigma={self.sigma}, standardize={self.standardize}"


def pink_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Images (count, channels, size, size) of mean 0 and variance 1 with amplitudes of 1/f, as photographs have.

    Source: Field 1987, "Relations between the statistics of natural images and the response properties of cortical
    cells". The mean over an image is drawn as its lowest frequency is.
    """
    white = torch.randn(count, channels, size, size, generator=generator)
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    frequency = torch.sqrt(rows**2 + columns**2).clamp_min(1 / size)
    images: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(size, size))
    return (images - images.mean()) / images.std(correction=0)


@torch.no_grad()
def set_gains_and_biases(net: nn.Module, in_channels: int, count: int = 256, size: int = 32) -> None:
    """Sets the gains and biases of all `ScaledConv2d` that have both so that each of their outputs begins with mean 0
    and variance 1 on noise; in the order of their calls, each behind those before it.

    Layer-sequential unit variance (Mishkin & Matas 2016) by channel, with the mean: what batch normalization does in
    its first step, but once, and of no data. It accounts for taps that meet no pixel, too. In a depthwise convolution
    the mean is by channel, but the variance is 1 over all channels: on an image of one pixel a channel's output has one
    tap, and a gain of 1/|tap| is 100 where the tap happens to be 0.01. One step of Adam would then turn that channel
    over: with such gains the loss rises in the first ten steps, and accuracy after an epoch is 7 instead of 12 %.

    Args:
        net: a net that is called with images; in evaluation mode meanwhile.
        in_channels: of the images.
        count, size: of the images, which are the same for all nets and seeds.
    """
    scaled = (layer for layer in net.modules() if isinstance(layer, ScaledConv2d))
    layers = [layer for layer in scaled if layer.gain is not None and layer.bias is not None]

    def adjust(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        assert isinstance(layer, ScaledConv2d)
        assert layer.gain is not None
        assert layer.bias is not None
        std, mean = torch.std_mean(output, (0, 2, 3), correction=0)
        if layer.groups > 1:
            std = std.square().mean().sqrt().expand_as(std)
        layer.gain.div_(std)
        layer.bias.sub_(mean).div_(std)
        return (output - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    handles = [layer.register_forward_hook(adjust) for layer in layers]
    modes = {module: module.training for module in net.modules()}
    net.eval()(pink_noise(count, in_channels, size, torch.Generator().manual_seed(0)))
    for module, training in modes.items():
        module.training = training
    for handle in handles:
        handle.remove()
