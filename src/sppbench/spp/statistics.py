"""Pure functions: tensor → sums over each channel → ACSM and ACV.

For x with C channels and, in each, the mean and the (biased) variance over all other axes (Brock, De & Smith 2021,
"Characterizing signal propagation to close the performance gap in unnormalized ResNets", section 3):

- ACSM, average channel squared mean: mean_c( mean(x)² );
- ACV, average channel variance: mean_c( var(x) );
- their sum is the second moment, mean(x²), exactly.

So ACV follows from the second moment, which is one sum over the whole tensor, and ACSM, which needs one sum a channel.
These sums add up: over the parts of an accumulated batch, over calls and over processes. They are therefore what is
stored and communicated, in double precision, and the statistics, which do not add up, are formed from the totals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# What stands behind the channel sums in the vector of `channel_sums`.
TAIL = ("squares", "nonfinite", "count", "samples")
# Below this size double precision costs nothing that one can measure.
_SMALL = 1 << 14
# Where the mean square is this close to the second moment, single precision leaves too few digits of the variance.
_CANCELLATION = 1e-2


class Statistics(NamedTuple):
    """One value a tensor, each of shape (R,), float64."""

    acsm: Tensor
    acv: Tensor
    mean: Tensor
    nonfinite: Tensor
    samples: Tensor


def channel_sums(x: Tensor, channel_dim: int) -> Tensor:
    """Sums that add up, from which :func:`statistics` forms ACSM and ACV.

    Args:
        x: Floating-point tensor with at least one axis and one element; not changed.
        channel_dim: Its channel axis; the sums run over all others.

    Returns:
        float64 (C + 4,), on the device of ``x``: the sum in each of the C channels, the sum of all squares, the number of
        elements that are NaN or infinite, the number of elements in a channel, and the size of the first axis.
    """
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    others = [axis for axis in range(x.ndim) if axis != channel_dim % x.ndim]
    if not others:  # a vector, as γ of a normalization: each element is a channel
        x, others = x[:, None], [1]
    if x.device.type == "cpu" and x.numel() > _SMALL and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        sums = _fast_sums(x, others)
        if sums is not None:
            return sums
    return _exact_sums(x, others)


def _exact_sums(x: Tensor, others: list[int]) -> Tensor:
    double = x.double()  # compiled, this is fused into one pass
    channels = double.sum(others)
    squares = double.square().sum(others).sum()
    nonfinite = x.numel() - x.isfinite().sum()
    tail = [squares, nonfinite.double(), _scalar(x, x.numel() // channels.numel()), _scalar(x, x.shape[0])]
    return torch.cat([channels, torch.stack(tail)])


def _fast_sums(x: Tensor, others: list[int]) -> Tensor | None:
    """For CPUs without a compiler: two passes at memory speed; None where single precision does not do."""
    flat = _flat(x)
    squares = float(torch.dot(flat, flat))
    channels = x.sum(others)
    count = x.numel() // channels.numel()
    mean_square = float(torch.dot(channels, channels)) / count**2 * count
    if not math.isfinite(squares) or squares - mean_square < _CANCELLATION * squares:
        return None
    tail = torch.tensor([squares, 0.0, count, x.shape[0]], dtype=torch.float64)
    return torch.cat([channels.double(), tail])


def _flat(x: Tensor) -> Tensor:
    """All elements, without a copy for the usual memory formats, in whatever order."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    elif x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        x = x.permute(0, 2, 3, 4, 1)
    return x.reshape(-1)


def _scalar(x: Tensor, value: int) -> Tensor:
    return torch.full((), value, dtype=torch.float64, device=x.device)


def statistics(sums: Tensor, channels: Tensor) -> Statistics:
    """ACSM, ACV and what goes with them, of R tensors at once.

    Args:
        sums: float64 (Σ(C_r + 4),): vectors of :func:`channel_sums`, or totals of them, one behind the other.
        channels: int64 (R,): the number of channels C_r of each, on the same device.
    """
    tail = len(TAIL)
    ends = torch.cumsum(channels + tail, 0)
    squares, nonfinite, count, samples = (sums[ends - tail + i] for i in range(tail))
    rows = torch.repeat_interleave(torch.arange(len(channels), device=sums.device), channels + tail)
    is_channel = torch.ones_like(sums, dtype=torch.bool)
    is_channel[torch.cat([ends - 1 - i for i in range(tail)])] = False
    means = torch.where(is_channel, sums / count[rows], 0.0)

    def over_channels(values: Tensor) -> Tensor:
        return torch.zeros_like(count).index_add_(0, rows, values) / channels

    acsm = over_channels(means.square())
    second_moment = squares / (count * channels)
    # Rounding must not make a variance negative; NaN stays NaN.
    return Statistics(acsm, (second_moment - acsm).clamp_min(0), over_channels(means), nonfinite, samples)


def acsm_acv(x: Tensor, channel_dim: int = 1) -> tuple[float, float]:
    """ACSM and ACV of one tensor; their sum is its second moment.

    Example:
        >>> acsm_acv(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # channel means 2 and 0, variances 1 and 0
        (2.0, 0.5)
    """
    dimension = channel_dim % x.ndim
    found = statistics(channel_sums(x, dimension), torch.tensor([x.shape[dimension]], device=x.device))
    return float(found.acsm), float(found.acv)
