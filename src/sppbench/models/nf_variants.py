"""The normalizer-free EfficientNet with one thing more: noise, or sums that preserve magnitudes."""

from __future__ import annotations

from sppbench.checks import check_number
from sppbench.models.merges import MPSum
from sppbench.models.nf_efficientnet import NFEfficientNet, NFMBConv
from sppbench.models.scaled_convolution import ScaledConv2d


class NFEfficientNetVariant(NFEfficientNet):
    """`NFEfficientNet` as it is by default, and what else batch normalization or the study have; (N, C, H, W) → logits.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        noise: standard deviation of a factor 1 + ε that each channel of the convolutions outside squeeze-and-excitation
            gets in each training step (after NoMorelization, Liu et al. 2022). Batch normalization divides by a
            standard deviation of n values, with an error of 1/√(2n) for normal ones, and takes off a mean with an error
            of 1/√n: 0.044 for 512 images of one pixel, and less for larger ones. At least 0.
        mp_weight: share of the branch in magnitude-preserving sums (Karras et al. 2024, eq. 88; 0.3 there) that
            take the place of x + g·f(x/β), in [0, 1]; None leaves them.
        stochastic_depth, dropout: as in `NFEfficientNet`.

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> import torch
        >>> NFEfficientNetVariant(noise=0.05)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        noise: float = 0.0,
        mp_weight: float | None = None,
        stochastic_depth: float = 0.25,
        dropout: float = 0.35,
    ) -> None:
        check_number("noise", "at least 0", noise, noise >= 0)
        if mp_weight is not None:
            check_number("mp_weight", "None or in [0, 1]", mp_weight, 0 <= mp_weight <= 1)
        super().__init__(in_channels, num_classes, stochastic_depth=stochastic_depth, dropout=dropout)
        for layer in self.modules():
            if isinstance(layer, ScaledConv2d) and layer.gain is not None:
                layer.noise = noise
            if isinstance(layer, NFMBConv) and layer.has_skip and mp_weight is not None:
                layer.beta, layer.branch_gain, layer.sum = 1.0, None, MPSum(1 - mp_weight)
