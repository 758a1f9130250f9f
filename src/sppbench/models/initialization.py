"""Initialization of weights: He and LeCun, normal (not truncated), and He rescaled layer by layer (LSUV)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import SqueezeExcitation

from sppbench.checks import check_choice

# (mode, nonlinearity) of `torch.nn.init.kaiming_normal_`. Its standard deviation is gain / sqrt(fan): the mode chooses
# the fan, and the gain is √2 for "relu" and 1 for "linear".
_KAIMING: dict[str, tuple[Literal["fan_in", "fan_out"], Literal["relu", "linear"]]] = {
    "he_fan_out": ("fan_out", "relu"),
    "he_fan_in": ("fan_in", "relu"),
    "lecun": ("fan_in", "linear"),
    "lsuv": ("fan_out", "relu"),  # what it starts from: the directions of the weights are the study's
}
INITS = tuple(_KAIMING)


def initialize(net: nn.Module, init: str) -> None:
    """Draw the weights of all convolutions and linear layers in `net` anew, in place; nothing else is drawn.

    ================== ========== ==============================================================
    init               variance   source
    ================== ========== ==============================================================
    ``"he_fan_out"``   2/fan_out  He et al. 2015, eq. 14: keeps the gradient's second moment
    ``"he_fan_in"``    2/fan_in   He et al. 2015, eq. 10: keeps the activation's second moment
    ``"lecun"``        1/fan_in   LeCun et al. 1998, eq. 16; for SELU: Klambauer et al. 2017
    ``"lsuv"``         by layer   Mishkin & Matas 2016: ``"he_fan_out"``, rescaled so that each
                                  layer's output has variance 1
    ================== ========== ==============================================================

    For a weight of shape (C_out, C_in / groups, k, k), fan_in = C_in / groups · k², what one output really sums over,
    and fan_out = C_out · k², **not** divided by groups, as in torchvision and the study. A depthwise convolution thus
    has variance 1/k² under `"lecun"`, but 2/(k²·C) under `"he_fan_out"`, too small by a factor C. For a linear
    weight of shape (out, in), fan_in = in and fan_out = out. Biases become 0; batch normalization γ = 1, β = 0.

    Raises:
        ValueError: unknown `init`.

    Example:
        >>> layer = nn.Linear(1000, 1000)
        >>> initialize(layer, "lecun")
        >>> abs(layer.weight.var().item() * 1000 - 1) < 0.01
        True
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
    if init == "lsuv":
        rescale_to_unit_variance(net)


@torch.no_grad()
def rescale_to_unit_variance(net: nn.Module, count: int = 128, image_size: int = 32) -> None:
    """Scale the weights of convolutions and linear layers, in place, so that each layer's output has variance 1.

    Layer-sequential unit variance (Mishkin & Matas 2016, "All you need is a good init", algorithm 1): in the order of
    their calls, each weight is divided by the standard deviation of the layer's output over all its elements, with the
    layers before it rescaled already. Biases must be 0: then one division is exact, and nothing is left to iterate.

    Squeeze-and-excitation is left as it is. Its input is a mean over pixels, which for noise is far smaller than for
    real images: rescaled by it, its gates would saturate on those.

    Args:
        net: A net whose first layer is given the images: (N, in_channels, image_size, image_size), or flat if that
            layer is a linear one. Batch normalization is in evaluation mode meanwhile.
        count: Number of images. They are standard normal, and drawn by a generator of their own, so that the global
            one is not touched; the same for all nets and seeds.
        image_size: Height and width in pixels. It is not checked against the net: most nets accept any size, and the
            variances depend on it where there is padding.
    """
    gates = {layer for block in net.modules() if isinstance(block, SqueezeExcitation) for layer in block.modules()}
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in gates]
    first = layers[0]
    shape = (first.in_features,) if isinstance(first, nn.Linear) else (first.in_channels, image_size, image_size)
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))

    def rescale(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        std = output.std(correction=0)
        if std == 0:  # no signal arrives here, so no scale would help
            return output
        layer.get_parameter("weight").div_(std)
        return output / std

    handles = [layer.register_forward_hook(rescale) for layer in layers]
    modes = {module: module.training for module in net.modules()}
    net.eval()(images)
    for module, training in modes.items():
        module.training = training
    for handle in handles:
        handle.remove()


def initialize_classifier(layer: nn.Linear, std: float | None) -> None:
    """Draw the weight of `layer` from N(0, std²), in place, and set its bias to 0; `None` is LeCun, 1/sqrt(fan_in)."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features) if std is None else std)
    nn.init.zeros_(layer.bias)
