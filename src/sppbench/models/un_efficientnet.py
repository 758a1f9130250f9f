"""UN-EfficientNet, the normalizer-free EfficientNet-B0 of the thesis behind the study, as it was and mended."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppbench.checks import check_choice, check_integer, check_number
from sppbench.models.convolution import Conv2d
from sppbench.models.efficientnet import b0_blocks
from sppbench.models.initialization import initialize, initialize_classifier
from sppbench.models.merges import Sum
from sppbench.models.nf_efficientnet import SQUEEZE, NFSqueezeExcitation

INITS = ("he_fan_out", "he_fan_in", "lecun")  # LSUV would undo α


class UnitSiLU(nn.Module):
    """SiLU over its root mean square for a standard normal input, x·σ(x) / 0.5965; any shape.

    It keeps a second moment of 1. It does not keep a variance of 1: for a standard normal x, SiLU has the mean 0.2066
    and the standard deviation 0.5595.

    Example:
        >>> x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
        >>> round(UnitSiLU()(x).square().mean().item(), 2)
        1.0
    """

    ROOT_MEAN_SQUARE = 0.596469  # √E[silu(z)²], z ~ N(0, 1), by quadrature

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) * (1 / self.ROOT_MEAN_SQUARE)


class StandardizedConv2d(Conv2d):
    """A convolution with scaled weight standardization (Brock et al. 2021 a) and a gain by channel, from 1.

    Its weight is gain · (raw − mean) / √max(variance · fan_in, 1e-4), with mean and unbiased variance over the raw
    weights of each output. (N, C, H, W) → (N, C', H', W'), without padding.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.gain = nn.Parameter(torch.ones(out_channels))

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.standardized_weight())

    def standardized_weight(self) -> Tensor:
        """The weight that the convolution has, shape (C', C, k, k)."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        scale = torch.rsqrt((variance * self.weight[0].numel()).clamp_min(1e-4))
        return (self.weight - mean) * (scale * self.gain.view(-1, 1, 1, 1))


class Times(nn.Module):
    """A constant factor, as a leaf: what it gives can be observed; any shape."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class UNMBConv(nn.Module):
    """Inverted residual block that is activated first: x + α·f(a(x)/β), or α·f(a(x)/β) where the shapes differ.

    (N, C_in, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉).
    """

    def __init__(
        self, stage: tuple[int, int, int, int, int], *, alpha: float, alpha_without_skip: float, beta: float
    ) -> None:
        super().__init__()
        ratio, kernel, stride, inputs, outputs = stage
        expanded = inputs * ratio
        self.has_skip = stride == 1 and inputs == outputs
        self.beta = beta
        self.activation = UnitSiLU()
        layers: list[nn.Module] = []
        if ratio != 1:
            layers += [Conv2d(inputs, expanded, 1, bias=False), UnitSiLU()]
        layers += [
            Conv2d(expanded, expanded, kernel, stride, kernel // 2, groups=expanded, bias=False),
            UnitSiLU(),
            NFSqueezeExcitation(expanded, inputs // SQUEEZE, UnitSiLU, StandardizedConv2d),
            Conv2d(expanded, outputs, 1, bias=False),
            Times(alpha if self.has_skip else alpha_without_skip),
        ]
        self.block = nn.Sequential(*layers)
        if self.has_skip:
            self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.block(self.activation(x) / self.beta)
        if self.has_skip:
            branch = self.sum(branch, x)
        return branch


class UNEfficientNet(nn.Module):
    """EfficientNet-B0 without normalization as in the thesis; the defaults are its values, with which it stays dead.

    Input: images of shape (N, in_channels, H, W), 32×32 in the study. Output: logits of shape (N, num_classes). Leaves
    are registered in the order of their calls, and each is called once.

    Source: the thesis "Designing Normalizer-Free EfficientNets", JKU Linz, and facts of its public code,
    https://github.com/PDewyse/MT_Normalizer_free_Neural_Nets; its parts are of Brock et al. 2021 a and b (see
    `NFEfficientNet`). In words:

    - every block is activated first, and x + α·f(a(x)/β) with α = 0.2, β = √(1 + α²·i) for block i = 0 … 15. In
      Brock et al. 2021 a, i begins anew at each block without a skip connection, and α is not applied there;
    - SiLU / 0.5965, see `UnitSiLU`; squeeze-and-excitation with standardized weights and a doubled gate;
    - all other convolutions plain, without bias; no stochastic depth.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        alpha: α of blocks with a skip connection, above 0.
        alpha_without_skip: α of the others, above 0.
        init: of convolutions: `"he_fan_out"`, `"he_fan_in"` or `"lecun"`, see `initialize`.
        depthwise_init: of the depthwise ones; None is `init`.
        classifier_std: standard deviation of the classifier's initial weights.
        dropout: probability before the classifier, in [0, 1).

    Raises:
        ValueError: unknown `init` or `depthwise_init`, or a number out of its range.

    Example:
        >>> net = UNEfficientNet()
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        alpha: float = 0.2,
        alpha_without_skip: float = 0.2,
        init: str = "he_fan_out",
        depthwise_init: str | None = None,
        classifier_std: float = 0.01,
        dropout: float = 0.2,
    ) -> None:
        check_integer("in_channels", in_channels, 1)
        check_integer("num_classes", num_classes, 1)
        check_number("alpha", "above 0", alpha, alpha > 0)
        check_number("alpha_without_skip", "above 0", alpha_without_skip, alpha_without_skip > 0)
        check_choice("init", init, INITS)
        check_choice("depthwise_init", depthwise_init, (None, *INITS))
        check_number("classifier_std", "at least 0", classifier_std, classifier_std >= 0)
        check_number("dropout", "in [0, 1)", dropout, 0 <= dropout < 1)
        super().__init__()
        self.features = nn.Sequential(Conv2d(in_channels, 32, 3, 2, 1, bias=False), UnitSiLU())
        for place, stage in enumerate(b0_blocks()):
            beta = math.sqrt(1 + alpha**2 * place)
            self.features.append(UNMBConv(stage, alpha=alpha, alpha_without_skip=alpha_without_skip, beta=beta))
        self.features.append(Conv2d(320, 1280, 1, bias=False))
        self.features.append(UnitSiLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(dropout), linear := nn.Linear(1280, num_classes))
        initialize(self.features, init)
        if depthwise_init is not None:
            for layer in self.features.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    initialize(layer, depthwise_init)
        initialize_classifier(linear, classifier_std)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits
