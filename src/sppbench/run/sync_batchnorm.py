"""Batch normalization over the whole batch of all processes."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(LayerSync):
    """A Lightning plugin: in training, batch normalizations take mean and variance over the batches of all processes.

    PyTorch's own SyncBatchNorm is for GPUs only, and takes the place of the layers, which then lose a probe's hooks.
    Here the layers stay what they are, and only their ``forward`` is exchanged.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronizes every batch normalization in ``model`` and returns it."""
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undoes :meth:`apply`, and returns ``model``."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__dict__.pop("forward", None)
        return model


def _forward(module: _BatchNorm, x: Tensor) -> Tensor:
    """Ioffe & Szegedy 2015, algorithm 1, for x (N, C, ...) of which each process has some samples."""
    if not module.training:
        y: Tensor = type(module).forward(module, x)
        return y
    kind, x = x.dtype, x if x.dtype == torch.float64 else x.float()  # sums leave the range of half precision
    axes, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
    # In two rounds: the difference of mean square and squared mean would lose digits.
    totals: Tensor = _Total.apply(torch.cat([x.sum(axes), x.new_full((1,), x.numel() // x.shape[1])]))
    mean, count = totals[:-1] / totals[-1], totals[-1].detach()
    centred = x - mean.view(shape)
    variance: Tensor = _Total.apply(centred.square().sum(axes)) / count
    if module.running_mean is not None:
        _track(module, mean.detach(), variance.detach() * count / (count - 1))
    y = centred * (variance + module.eps).rsqrt().view(shape)
    if module.weight is not None:
        y = y * module.weight.view(shape) + module.bias.view(shape)
    return y.to(kind)


@torch.no_grad()
def _track(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert module.running_mean is not None
    assert module.running_var is not None
    assert module.num_batches_tracked is not None
    module.num_batches_tracked += 1
    weight = 1 / module.num_batches_tracked if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, weight)
    module.running_var.lerp_(variance, weight)


class _Total(torch.autograd.Function):
    """The sum over all processes; so is its gradient, as the input of each process affects the losses of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
