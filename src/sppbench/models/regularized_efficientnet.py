"""EfficientNet-B0 with batch normalization, and the regularization and equal steps of the normalizer-free net."""

from __future__ import annotations

from torch import nn
from torchvision import ops

from sppbench.checks import check_number
from sppbench.models.efficientnet import EfficientNet, MBConv, move_to_end


class RegularizedEfficientNet(EfficientNet):
    """EfficientNet-B0 with batch normalization, stochastic depth, more dropout, and initial weights of one size.

    What `NFEfficientNet` is fairly compared with: both have the same regularization and equal steps.
    (N, in_channels, H, W) → logits (N, num_classes). Its state dict is that of `EfficientNet`.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        weight_std: standard deviation of the initial weights of the convolutions outside squeeze-and-excitation,
            above 0. Before batch normalization the scale of weights does not matter to what they compute, but
            lr / `weight_std` is the share by which a step of Adam changes them. None: He's by fan_out, as in the study.
        stochastic_depth: probability with which the last block's branch is left out for a sample in training (Huang et
            al. 2016), in [0, 1); 0 at the first block, linear between.
        dropout: probability before the classifier, in [0, 1).

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> import torch
        >>> RegularizedEfficientNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        weight_std: float | None = 0.04,
        stochastic_depth: float = 0.25,
        dropout: float = 0.35,
    ) -> None:
        check_number("stochastic_depth", "in [0, 1)", stochastic_depth, 0 <= stochastic_depth < 1)
        if weight_std is not None:
            check_number("weight_std", "None or above 0", weight_std, weight_std > 0)
        super().__init__(in_channels, num_classes, dropout=dropout)
        blocks = [module for module in self.features.modules() if isinstance(module, MBConv)]
        for place, block in enumerate(blocks):
            if block.use_res_connect:
                block.stochastic_depth = ops.StochasticDepth(stochastic_depth * place / (len(blocks) - 1), "row")
                move_to_end(block, "sum")
        if weight_std is not None:
            for name, layer in self.features.named_modules():
                if isinstance(layer, nn.Conv2d) and not name.endswith(("fc1", "fc2")):
                    nn.init.normal_(layer.weight, std=weight_std)
