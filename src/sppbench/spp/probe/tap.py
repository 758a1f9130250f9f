"""How gradients are read inside of a compiled graph, where tensor hooks are not available."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sppbench.spp.sums.statistics import channel_rows


class Tap(torch.autograd.Function):
    """Identity whose second input receives, as its "gradient", the channel sums of the gradient that passes.

    It is traced like any other operation. The slot is a leaf: the sums of an accumulated batch add up in its ``grad``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, axis: int | None) -> Tensor:
        """``x``, of any shape; ``slot``: float64 (5, C) that requires a gradient."""
        ctx.axis = axis
        return x.clone()  # an alias must not be changed in place by the next module; compilers remove the copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradient as it is, its channel sums, and nothing for the axis."""
        return gradients[0], channel_rows(gradients[0], ctx.axis), None
