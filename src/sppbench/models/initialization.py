"""Initialization of weights: He and LeCun, normal (not truncated)."""

import math
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sppbench.models.checks import check_choice

# (mode, nonlinearity) of `torch.nn.init.kaiming_normal_`. Its standard deviation is gain / sqrt(fan): the mode chooses
# the fan, and the gain is √2 for "relu" and 1 for "linear".
_KAIMING: dict[str, tuple[Literal["fan_in", "fan_out"], Literal["relu", "linear"]]] = {
    "he_fan_out": ("fan_out", "relu"),
    "he_fan_in": ("fan_in", "relu"),
    "lecun": ("fan_in", "linear"),
}
INITS = tuple(_KAIMING)


def initialize(net: nn.Module, init: str) -> None:
    """Draw the weights of all convolutions and linear layers in `net` anew, in place; nothing else is drawn.

    ============== ========== ==============================================================
    init           variance   source
    ============== ========== ==============================================================
    `"he_fan_out"` 2/fan_out  He et al. 2015, eq. 14: keeps the gradient's second moment
    `"he_fan_in"`  2/fan_in   He et al. 2015, eq. 10: keeps the activation's second moment
    `"lecun"`      1/fan_in   LeCun et al. 1998, eq. 16; for SELU: Klambauer et al. 2017
    ============== ========== ==============================================================

    For a weight of shape (C_out, C_in / groups, k, k), fan_in = C_in / groups · k², what one output really sums over,
    and fan_out = C_out · k², **not** divided by groups, as in torchvision and the study. A depthwise convolution thus
    has variance 1/k² under `"lecun"`, but 2/(k²·C) under `"he_fan_out"`, too small by a factor C. For a linear
    weight of shape (out, in), fan_in = in and fan_out = out. Biases become 0; batch normalization γ = 1, β = 0.

    Raises:
        ValueError: unknown `init`.
    """
    check_choice("init", init, INITS)
    mode, nonlinearity = _KAIMING[init]
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity=nonlinearity)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def initialize_classifier(layer: nn.Linear, std: float | None) -> None:
    """Draw the weight of `layer` from N(0, std²), in place, and set its bias to 0; `None` is LeCun, 1/sqrt(fan_in)."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features) if std is None else std)
    nn.init.zeros_(layer.bias)
