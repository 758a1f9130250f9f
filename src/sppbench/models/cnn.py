"""Small convolutional net of the thesis behind the study, with normalization where it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from sppbench.checks import check_choice, check_integer
from sppbench.models.activation import Activation, make_activation
from sppbench.models.initialization import initialize

NORMALIZATIONS = (None, "conv", "linear", "both")
CHANNELS = (32, 64, 128)


class CNN(nn.Sequential):
    """3 × (Conv2d → [BatchNorm2d] → activation → MaxPool2d), then 2 × (Linear → [BatchNorm1d] → activation) → Linear.

    Input: images of shape (N, in_channels, image_size, image_size). Output: logits of shape (N, num_classes).
    Convolutions have 3×3 kernels and 32, 64 and 128 channels and keep the size of the image; each pooling halves it.
    Linear layers have hidden_features and hidden_features / 2 outputs. All layers have a bias, also before
    normalization. Biases are 0, γ = 1, β = 0.

    Source: facts of the public code of the thesis "Designing Normalizer-Free EfficientNets", JKU Linz,
    https://github.com/PDewyse/MT_Normalizer_free_Neural_Nets (`cnn.py`, `cnn1.py`, `cnn2.py`).

    Leaves, in order: for i = 0 … 2 `conv{i}.conv`, `conv{i}.norm` (with its normalization only), `conv{i}.activation`,
    `conv{i}.pool`; `flatten`; for i = 0, 1 `block{i}.linear`, `block{i}.norm` (likewise), `block{i}.activation`;
    `classifier`.

    Args:
        in_channels: channels of the images.
        image_size: height and width of the images in pixels, at least 8.
        num_classes: number of logits.
        hidden_features: width of the first linear layer, at least 2; the second one has half of it.
        activation: name of a `torch.nn` class, or a callable that returns a module. The thesis' code has SiLU by
            default; which one its Table 3 has is not known.
        normalization: which layers batch normalization (Ioffe & Szegedy 2015) follows: None, `"conv"`, `"linear"` (but
            not the last one) or `"both"`.
        init: of all weights: `"he_fan_out"`, as in the thesis' code, `"he_fan_in"`, `"lecun"` or `"lsuv"`, see
            `initialize`.

    Raises:
        ValueError: unknown `activation`, `normalization` or `init`, or a size below its least.

    Example:
        >>> import torch
        >>> net = CNN(normalization="conv")
        >>> net(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 100])
        >>> [name for name, _ in net.named_modules() if name.startswith("conv1.")]
        ['conv1.conv', 'conv1.norm', 'conv1.activation', 'conv1.pool']
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 100,
        hidden_features: int = 512,
        activation: Activation = "SiLU",
        normalization: str | None = None,
        init: str = "he_fan_out",
    ) -> None:
        check_integer("in_channels", in_channels, 1)
        check_integer("image_size", image_size, 2 ** len(CHANNELS))
        check_integer("num_classes", num_classes, 1)
        check_integer("hidden_features", hidden_features, 2)
        check_choice("normalization", normalization, NORMALIZATIONS)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i, outputs in enumerate(CHANNELS):
            norm = nn.BatchNorm2d if normalization in ("conv", "both") else None
            conv = nn.Conv2d(channels, outputs, kernel_size=3, padding=1)
            layers[f"conv{i}"] = _block("conv", conv, outputs, norm, activation)
            layers[f"conv{i}"].add_module("pool", nn.MaxPool2d(2))
            channels = outputs
        layers["flatten"] = nn.Flatten()
        features = channels * (image_size // 2 ** len(CHANNELS)) ** 2
        for i, outputs in enumerate((hidden_features, hidden_features // 2)):
            norm_of_linear = nn.BatchNorm1d if normalization in ("linear", "both") else None
            layers[f"block{i}"] = _block("linear", nn.Linear(features, outputs), outputs, norm_of_linear, activation)
            features = outputs
        layers["classifier"] = nn.Linear(features, num_classes)
        super().__init__(layers)
        initialize(self, init)


def _block(
    name: str, layer: nn.Module, outputs: int, norm: Callable[[int], nn.Module] | None, activation: Activation
) -> nn.Sequential:
    """Layer → [norm] → activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict({name: layer})
    if norm is not None:
        layers["norm"] = norm(outputs)
    layers["activation"] = make_activation(activation)
    return nn.Sequential(layers)
