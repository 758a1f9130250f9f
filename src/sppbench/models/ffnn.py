"""Fully connected net of equally wide layers."""

from collections import OrderedDict

from torch import nn

from sppbench.checks import check_choice, check_integer
from sppbench.models.activation import Activation, make_activation
from sppbench.models.initialization import initialize

NORMALIZATIONS = (None, "batch_norm")
AFFINE = (True, False, "scale", "shift")


class FFNN(nn.Sequential):
    """Flatten → (1 + depth) × (Linear → [BatchNorm1d] → activation) → Linear.

    Input: images of shape (N, in_channels, image_size, image_size). Output: logits of shape (N, num_classes).

    Leaves, in order: `flatten`; for i = 0 … depth `block{i}.linear`, `block{i}.norm` (with normalization only),
    `block{i}.activation`; `classifier`. With the defaults these are 20, or 29 with normalization.

    Args:
        in_channels: channels of the images.
        image_size: height and width of the images in pixels.
        num_classes: number of logits.
        hidden_features: width h of every hidden layer.
        depth: number of Linear(h, h) blocks; the block that maps the image to h features comes on top.
        activation: name of a `torch.nn` class, or a callable that returns a module.
        normalization: None, or `"batch_norm"` (Ioffe & Szegedy 2015, algorithm 1).
        affine: what the `depth` normalizations after the first one learn: `True` a scale γ and a shift β, `False`
            neither, `"scale"` γ alone with β kept at 0, `"shift"` β alone with γ kept at 1.
        first_affine: the same for the first one, which learns both in the study's variant without affine.
        init: `"he_fan_out"`, `"he_fan_in"`, `"lecun"` or `"lsuv"`, see `initialize`; applies to the last layer, too.

    Raises:
        ValueError: unknown `activation`, `normalization`, `affine`, `first_affine` or `init`, a negative `depth`, or
            another size below 1.

    Example:
        >>> import torch
        >>> net = FFNN(hidden_features=100, depth=2, normalization="batch_norm", affine=False)
        >>> net(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 100])
        >>> [name for name, _ in net.named_modules() if name.startswith("block1.")]
        ['block1.linear', 'block1.norm', 'block1.activation']
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 100,
        hidden_features: int = 512,
        depth: int = 8,
        activation: Activation = "ReLU",
        normalization: str | None = None,
        affine: bool | str = True,
        first_affine: bool | str = True,
        init: str = "he_fan_out",
    ) -> None:
        check_integer("in_channels", in_channels, 1)
        check_integer("image_size", image_size, 1)
        check_integer("num_classes", num_classes, 1)
        check_integer("hidden_features", hidden_features, 1)
        check_integer("depth", depth, 0)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("affine", affine, AFFINE)
        check_choice("first_affine", first_affine, AFFINE)

        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        features = in_channels * image_size**2
        for i in range(1 + depth):
            norm = None
            if normalization is not None:
                norm = _batch_norm(hidden_features, affine if i > 0 else first_affine)
            layers[f"block{i}"] = _block(nn.Linear(features, hidden_features), norm, make_activation(activation))
            features = hidden_features
        layers["classifier"] = nn.Linear(features, num_classes)
        super().__init__(layers)
        initialize(self, init)


def _batch_norm(features: int, affine: bool | str) -> nn.BatchNorm1d:
    """Return a normalization with γ = 1 and β = 0; those that are not learned need no gradient.

    No optimizer moves them then, not even one with weight decay.
    """
    norm = nn.BatchNorm1d(features, affine=affine is not False)
    if affine == "scale":
        norm.bias.requires_grad_(False)
    elif affine == "shift":
        norm.weight.requires_grad_(False)
    return norm


def _block(linear: nn.Linear, norm: nn.Module | None, activation: nn.Module) -> nn.Sequential:
    """Linear → [norm] → activation, (N, features) → (N, hidden_features)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(linear=linear)
    if norm is not None:
        layers["norm"] = norm
    layers["activation"] = activation
    return nn.Sequential(layers)
