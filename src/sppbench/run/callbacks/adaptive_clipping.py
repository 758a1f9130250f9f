"""Clips gradients relative to the weights that they are of."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import Optimizer


class AdaptiveGradientClipping(Callback):
    """Adaptive gradient clipping (Brock et al. 2021, "High-performance large-scale image recognition without
    normalization", section 4.1); for ``trainer.callbacks``.

    A gradient G of a unit's weights W is multiplied by λ · max(‖W‖, ε) / ‖G‖ where this is below 1. A unit is a row of
    a weight, or a whole parameter of one or no dimension. The last linear layer is left alone, as in the paper.

    Args:
        limit: λ, above 0; 0.01 in the paper for large batches.
        eps: ε, so that weights of 0 can move.

    Raises:
        ValueError: A number out of its range.

    Example:
        $ python -m sppbench.train model=nf_efficientnet optimizer.lr=0.01 \\
              '+trainer.callbacks=[{_target_: sppbench.run.callbacks.AdaptiveGradientClipping, limit: 0.01}]'
    """

    def __init__(self, limit: float = 0.01, eps: float = 1e-3) -> None:
        if not limit > 0 or not eps > 0:
            raise ValueError(f"limit and eps must be above 0, got {limit} and {eps}")
        self.limit, self.eps = limit, eps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        linear = [layer for layer in pl_module.modules() if isinstance(layer, nn.Linear)]
        left = set(linear[-1].parameters()) if linear else set()
        for parameter in pl_module.parameters():
            if parameter.grad is not None and parameter not in left:
                clip(parameter.grad, parameter, self.limit, self.eps)


@torch.no_grad()
def clip(gradient: Tensor, weight: Tensor, limit: float, eps: float) -> None:
    """Clips a gradient in place by units, see `AdaptiveGradientClipping`; both of the shape of the weight."""
    of_weight, of_gradient = _norm(weight), _norm(gradient)
    gradient.mul_((limit * of_weight.clamp_min(eps) / of_gradient.clamp_min(1e-30)).clamp_max(1.0))


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)) or None, keepdim=x.ndim > 1)
    return norm
