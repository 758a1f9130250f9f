"""EfficientNet-B0 with and without batch normalization, and the normalizer-free variants of the study.

Built on torchvision's own parts: its parameters have the same names, shapes and order. torchvision ships no type
information, so its classes are `Any` to mypy; hence the `type: ignore[misc]` where they are subclassed.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision import ops
from torchvision.models import efficientnet as torchvision_efficientnet
from torchvision.models.efficientnet import MBConvConfig

from sppbench.checks import check_choice, check_integer, check_number
from sppbench.models.activation import Activation, make_activation
from sppbench.models.convolution import Conv2d
from sppbench.models.initialization import INITS, initialize, initialize_classifier
from sppbench.models.merges import MPScale, MPSum, Scale, Sum

NORMALIZATIONS = (None, "batch_norm")
SKIPS = ("sum", "mp_sum")
GATES: dict[str, type[nn.Module]] = {"scale": Scale, "mp_scale": MPScale}

# Tan & Le 2019, table 1: expansion, kernel size, stride, input channels, output channels, blocks.
B0_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def b0_blocks() -> list[tuple[int, int, int, int, int]]:
    """The 16 blocks of B0, each with its expansion, kernel size, stride, input channels and output channels."""
    return [
        (ratio, kernel, stride if place == 0 else 1, inputs if place == 0 else outputs, outputs)
        for ratio, kernel, stride, inputs, outputs, count in B0_STAGES
        for place in range(count)
    ]


class SqueezeExcitation(ops.SqueezeExcitation):  # type: ignore[misc]
    """Squeeze-and-excitation (Hu et al. 2018) that scales in a leaf `scale`; (N, C, H, W) → (N, C, H, W)."""

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[[], nn.Module],
        gate: Callable[[], nn.Module],
    ) -> None:
        super().__init__(input_channels, squeeze_channels, activation)
        # torchvision registers fc2 before the activation; leaves must be registered in the order of their calls.
        move_to_end(self, "fc2")
        move_to_end(self, "scale_activation")
        self.scale = gate()

    def forward(self, input: Tensor) -> Tensor:
        scaled: Tensor = self.scale(input, self._scale(input))
        return scaled


class MBConv(torchvision_efficientnet.MBConv):  # type: ignore[misc]
    """Inverted residual block that adds its skip connection, if any, in a leaf `sum`; without stochastic depth, unless
    it is given a module of that name (see `RegularizedEfficientNet`).

    (N, C_in, H, W) → (N, C_out, ⌈H / stride⌉, ⌈W / stride⌉); there is a skip connection where both shapes are equal.
    """

    def __init__(
        self,
        cnf: MBConvConfig,
        stochastic_depth_prob: float,
        norm_layer: Callable[..., nn.Module],
        skip: Callable[[], nn.Module],
        gate: Callable[[], nn.Module],
    ) -> None:
        super().__init__(cnf, stochastic_depth_prob, norm_layer, se_layer=partial(SqueezeExcitation, gate=gate))
        del self.stochastic_depth
        if self.use_res_connect:
            self.sum = skip()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.block(input)
        if self.use_res_connect:
            if hasattr(self, "stochastic_depth"):
                output = self.stochastic_depth(output)
            output = self.sum(output, input)
        return output


class EfficientNet(torchvision_efficientnet.EfficientNet):  # type: ignore[misc]
    """EfficientNet (Tan & Le 2019) in the variants of the study; the defaults are B0 with batch normalization.

    Input: images of shape (N, in_channels, H, W), 32×32 in the study. Output: logits of shape (N, num_classes).
    Convolutions have no bias, except the two of squeeze-and-excitation, with or without normalization. There is no
    stochastic depth. Convolutions do no more than small images need (see `convolution.Conv2d`): the same outputs up to
    rounding.

    Leaves are named as in torchvision (but contiguously where normalization is taken out), and these are added:
    `flatten` after `avgpool`, and the merges `features.{stage}.{block}.sum` (9 in B0, where there is a skip connection)
    and `features.{stage}.{block}.block.{i}.scale` (16 in B0, one in every block). Without the merges B0 has 215 leaves,
    166 without normalization. The modules of the merges have no parameters: the state dict is torchvision's.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        width_mult: factor on the numbers of channels, which are then rounded to multiples of 8.
        depth_mult: factor on the numbers of blocks per stage, which are then rounded up.
        activation: name of a `torch.nn` class, or a callable that returns a module; also in squeeze-and-excitation.
        normalization: `"batch_norm"`, or None: taken out, with nothing in its place.
        affine: whether batch normalization has a learnable scale γ and shift β.
        init: of the convolutions: `"he_fan_out"`, `"he_fan_in"`, `"lecun"` or `"lsuv"`, see `initialize`.
        classifier_std: standard deviation of the classifier's initial weights, with every `init`; None is LeCun,
            1/sqrt(fan_in).
        skip: `"sum"`, or `"mp_sum"` (Karras et al. 2024, EDM2, eq. 88).
        gate: `"scale"`, or `"mp_scale"`: x·s / sqrt((1−s)² + s²).
        mp_weight: share w of the skip connection in `"mp_sum"`, in [0, 1].
        dropout: probability before the classifier, in [0, 1).

    Raises:
        ValueError: unknown `activation`, `normalization`, `init`, `skip` or `gate`, or a number out of its range.

    Example:
        The study's net without batch normalization, with magnitude-preserving merges:

        >>> import torch
        >>> net = EfficientNet(activation="SELU", normalization=None, init="lecun", skip="mp_sum", gate="mp_scale")
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
        >>> net.features[2][1].sum
        MPSum(weight=0.5)
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        activation: Activation = "SiLU",
        normalization: str | None = "batch_norm",
        affine: bool = True,
        init: str = "he_fan_out",
        classifier_std: float | None = 0.01,
        skip: str = "sum",
        gate: str = "scale",
        mp_weight: float = 0.5,
        dropout: float = 0.2,
    ) -> None:
        check_integer("in_channels", in_channels, 1)
        check_integer("num_classes", num_classes, 1)
        check_number("width_mult", "above 0", width_mult, width_mult > 0)
        check_number("depth_mult", "above 0", depth_mult, depth_mult > 0)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("init", init, INITS)
        if classifier_std is not None:
            check_number("classifier_std", "None or at least 0", classifier_std, classifier_std >= 0)
        check_choice("skip", skip, SKIPS)
        check_choice("gate", gate, tuple(GATES))
        check_number("mp_weight", "in [0, 1]", mp_weight, 0 <= mp_weight <= 1)
        check_number("dropout", "in [0, 1)", dropout, 0 <= dropout < 1)

        block = partial(MBConv, skip=partial(MPSum, mp_weight) if skip == "mp_sum" else Sum, gate=GATES[gate])
        stages = [MBConvConfig(*stage, width_mult, depth_mult, block) for stage in B0_STAGES]
        super().__init__(stages, dropout, stochastic_depth_prob=0.0, num_classes=num_classes)
        self.classifier[0].inplace = False
        self.flatten = nn.Flatten()
        move_to_end(self, "classifier")

        _set_in_channels(self.features[0], in_channels)
        _set_convolutions(self)
        _set_activation(self, activation)
        _set_normalization(self, normalization, affine)
        initialize(self.features, init)
        initialize_classifier(self.classifier[1], classifier_std)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def move_to_end(module: nn.Module, name: str) -> None:
    """Register the child called `name` after all others of `module`."""
    child = getattr(module, name)
    delattr(module, name)
    setattr(module, name, child)


def _set_in_channels(stem: nn.Sequential, in_channels: int) -> None:
    """Replace the first convolution, for which torchvision allows no other number of input channels than three."""
    conv = stem[0]
    assert isinstance(conv, nn.Conv2d)
    stem[0] = nn.Conv2d(in_channels, conv.out_channels, kernel_size=3, stride=2, padding=1, bias=False)


def _set_convolutions(net: nn.Module) -> None:
    """Turn the convolutions into ours in place; new ones would draw random numbers again."""
    for layer in net.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = Conv2d


def _set_activation(net: nn.Module, activation: Activation) -> None:
    """Replace every SiLU, which torchvision hard-codes and lets work in place."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(parent, name, make_activation(activation))


def _set_normalization(net: nn.Module, normalization: str | None, affine: bool) -> None:
    """Remove the batch normalization after every convolution, or its scale and shift.

    Afterwards, because torchvision's constructor gives convolutions without normalization a bias and fails on batch
    normalization without affine parameters.
    """
    for layer in net.modules():
        if isinstance(layer, ops.Conv2dNormActivation):
            norm = layer[1]
            if normalization is None:
                del layer[1]
            elif not affine:
                layer[1] = nn.BatchNorm2d(norm.num_features, affine=False)
