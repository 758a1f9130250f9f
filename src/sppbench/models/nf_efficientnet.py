"""A normalizer-free EfficientNet-B0 in which one step of Adam changes every layer by the same share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import ops

from sppbench.checks import check_integer, check_number
from sppbench.models.activation import Activation, make_activation
from sppbench.models.efficientnet import b0_blocks
from sppbench.models.initialization import initialize_classifier
from sppbench.models.merges import Sum
from sppbench.models.scaled_convolution import ScaledConv2d, set_gains_and_biases

SQUEEZE = 4  # Hu et al. 2018; Tan & Le 2019: of a block's input channels


class ScaledGate(nn.Module):
    """Squeeze-and-excitation's gate times a number c: x (N, C, H, W), s (N, C, 1, 1) → c·s·x.

    A sigmoid of small logits is near ½: doubled (Brock et al. 2021 b), it lets a signal pass as it is.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.scale * gate * x

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class NFSqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018) whose gate is times a number; (N, C, H, W) → (N, C, H, W)."""

    def __init__(
        self,
        channels: int,
        squeezed: int,
        activation: Activation,
        convolution: Callable[[int, int, int], nn.Module],
        scale: float = 2.0,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = convolution(channels, squeezed, 1)
        self.activation = make_activation(activation)
        self.fc2 = convolution(squeezed, channels, 1)
        self.scale_activation = nn.Sigmoid()
        self.scale = ScaledGate(scale)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        gated: Tensor = self.scale(x, self.scale_activation(logits))
        return gated


class NFMBConv(nn.Module):
    """Inverted residual block without normalization: x + g·f(x/β), or f(x/β) where the shapes differ.

    (N, C_in, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉). β is the standard deviation that x has by the theory of
    independent branches (Brock et al. 2021 a), g a learned scalar (De & Smith 2020: SkipInit, but not from
    0), or 1 and not learned. Stochastic depth (Huang et al. 2016) leaves f out for some of the samples, in training.
    """

    def __init__(
        self,
        stage: tuple[int, int, int, int, int],
        *,
        beta: float,
        branch_gain: float | None,
        drop: float,
        activation: Activation,
        gate_scale: float,
        pointwise: dict[str, Any],
        depthwise: dict[str, Any],
    ) -> None:
        super().__init__()
        ratio, kernel, stride, inputs, outputs = stage
        expanded = inputs * ratio
        gate_convolution = partial(ScaledConv2d, sigma=pointwise["sigma"], gain=False)
        self.beta = beta
        layers: list[nn.Module] = []
        if ratio != 1:
            layers += [ScaledConv2d(inputs, expanded, 1, **pointwise), make_activation(activation)]
        layers += [
            ScaledConv2d(expanded, expanded, kernel, stride, expanded, **depthwise),
            make_activation(activation),
            NFSqueezeExcitation(expanded, max(1, inputs // SQUEEZE), activation, gate_convolution, gate_scale),
            ScaledConv2d(expanded, outputs, 1, **pointwise),
        ]
        self.block = nn.Sequential(*layers)
        self.has_skip = stride == 1 and inputs == outputs
        if self.has_skip:
            self.stochastic_depth = ops.StochasticDepth(drop, "row")
            self.branch_gain = None if branch_gain is None else nn.Parameter(torch.tensor(float(branch_gain)))
            self.sum: nn.Module = Sum()

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.block(x / self.beta if self.beta != 1 else x)
        if self.has_skip:
            branch = self.stochastic_depth(branch)
            branch = self.sum(branch if self.branch_gain is None else branch * self.branch_gain, x)
        return branch


class NFEfficientNet(nn.Module):
    """EfficientNet-B0 (Tan & Le 2019) without normalization, for the study's protocol.

    Input: images of shape (N, in_channels, H, W), 32×32 in the study. Output: logits of shape (N, num_classes). Leaves
    are registered in the order of their calls, and each is called once.

    =========================================  ============================================================
    part                                       source
    =========================================  ============================================================
    SELU                                       Klambauer et al. 2017: keeps mean 0 and variance 1
    weights of one σ (`ScaledConv2d`)          Karras et al. 2024: equal relative steps in all layers
    `standardize`                              Brock et al. 2021 a; 1×1 convolutions and the stem, not depthwise ones
    `weight_gain`                              Salimans & Kingma 2016
    `bias`, `calibrate`                        as batch normalization has it; Mishkin & Matas 2016. Worse, and off
    `beta`, `branch_gain`: x + g·f(x/β)        Brock et al. 2021 a; g from 0.5, not 0: Adam moves it 0.001 a step
    `gate_scale`                               Brock et al. 2021 b
    `stochastic_depth`                         Huang et al. 2016: linear in depth
    `dropout`                                  before the classifier, as in EfficientNet
    =========================================  ============================================================

    With all parts off (`standardize`, `weight_gain`, `bias`, `calibrate`, `beta` False, `branch_gain` None,
    `gate_scale` 1, no stochastic depth) it computes what `sn_efficientnet_nomp` does, but with raw weights of one σ.

    a: "Characterizing signal propagation to close the performance gap in unnormalized ResNets"; b: "High-performance
    large-scale image recognition without normalization".

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        activation: as in `EfficientNet`; the theory of β is for SELU.
        sigma: σ of the raw weights, above 0: a step of Adam moves each layer by lr/σ.
        depthwise_sigma: that of the depthwise convolutions; None is `sigma`.
        standardize: whether 1×1 convolutions and the stem standardize their weights.
        weight_gain: whether convolutions outside squeeze-and-excitation have a gain by channel.
        bias: whether they have a bias by channel.
        calibrate: whether gains and biases, where there are both, are set by noise of a spectrum of 1/f, see
            `set_gains_and_biases`; else they are 1 and 0.
        beta: whether a branch is given x/β; else x.
        branch_gain: g at first; None: 1, and not learned.
        gate_scale: by what the gates of squeeze-and-excitation are multiplied.
        stochastic_depth: probability at the last block, in [0, 1); 0 at the first, linear between.
        dropout: probability before the classifier, in [0, 1).
        classifier_std: standard deviation of the classifier's initial weights; None is LeCun's, 1/sqrt(fan_in).

    Raises:
        ValueError: unknown `activation`, or a number out of its range.

    Example:
        >>> net = NFEfficientNet()
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        activation: Activation = "SELU",
        sigma: float = 0.04,
        depthwise_sigma: float | None = None,
        standardize: bool = True,
        weight_gain: bool = True,
        bias: bool = False,
        calibrate: bool = True,
        beta: bool = True,
        branch_gain: float | None = 0.5,
        gate_scale: float = 2.0,
        stochastic_depth: float = 0.25,
        dropout: float = 0.35,
        classifier_std: float | None = 0.01,
    ) -> None:
        check_integer("in_channels", in_channels, 1)
        check_integer("num_classes", num_classes, 1)
        depthwise_sigma = sigma if depthwise_sigma is None else depthwise_sigma
        for name, value in (("sigma", sigma), ("depthwise_sigma", depthwise_sigma)):
            check_number(name, "above 0", value, value > 0)
        for name, value in (("stochastic_depth", stochastic_depth), ("dropout", dropout)):
            check_number(name, "in [0, 1)", value, 0 <= value < 1)
        check_number("gate_scale", "above 0", gate_scale, gate_scale > 0)
        if classifier_std is not None:
            check_number("classifier_std", "None or at least 0", classifier_std, classifier_std >= 0)
        super().__init__()
        depthwise: dict[str, Any] = {"sigma": depthwise_sigma, "gain": weight_gain, "bias": bias}
        pointwise = {**depthwise, "sigma": sigma, "standardize": standardize}
        self.features = nn.Sequential(ScaledConv2d(in_channels, 32, 3, 2, **pointwise), make_activation(activation))
        blocks = b0_blocks()
        variance = 1.0
        for place, stage in enumerate(blocks):
            block = NFMBConv(
                stage,
                beta=math.sqrt(variance) if beta else 1.0,
                branch_gain=branch_gain,
                drop=stochastic_depth * place / (len(blocks) - 1),
                activation=activation,
                gate_scale=gate_scale,
                pointwise=pointwise,
                depthwise=depthwise,
            )
            variance = variance + (1 if branch_gain is None else branch_gain) ** 2 if block.has_skip else 1.0
            self.features.append(block)
        self.features.append(ScaledConv2d(320, 1280, 1, **pointwise))
        self.features.append(make_activation(activation))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear := nn.Linear(1280, num_classes))
        initialize_classifier(linear, classifier_std)
        if calibrate:
            set_gains_and_biases(self, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits
