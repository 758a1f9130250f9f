"""Pure functions: tensor → sums over each channel → ACSM and ACV.

For x with C channels and, in each, the mean and the (biased) variance over all other axes (Brock, De & Smith 2021,
"Characterizing signal propagation to close the performance gap in unnormalized ResNets", section 3):

- ACSM, average channel squared mean: mean_c( mean(x)² );
- ACV, average channel variance: mean_c( var(x) );
- their sum is the second moment, mean(x²), exactly.

So ACV follows from the second moment, which is one sum over the whole tensor, and ACSM, which needs one sum a channel.
These sums add up: over the parts of an accumulated batch, over calls and over processes. They are therefore what is
stored and communicated, in double precision, and the statistics, which do not add up, are formed from the totals.

Accuracy: ACSM and second moment within 1e-6 and ACV within 1e-5 of the exact values of the tensor at hand, as long as
ACV is at least 1e-10 of the second moment. Below that, a float32 tensor itself no longer resolves its variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# What stands behind the channel sums in the vector of `channel_sums`.
TAIL = ("squares", "nonfinite", "count", "samples")
# Up to this size double precision costs nothing that one can measure; larger tensors are converted in such pieces,
# which stay in a CPU's cache. A GPU wants larger ones, but not a copy of the largest tensor in double precision.
_PIECE = {"cpu": 1 << 15}
_PIECE_OF_GPU = 1 << 24
# A sum of so many squares in single precision is right to 3e-7, and one over a whole tensor only to 5e-4.
_BLOCK = 1024
# Where the variance is a smaller part of the second moment, or the squares may have left the range of float32, single
# precision does not do.
_SMALLEST_PART = 0.05
_SMALLEST_SQUARE = 1e-30


class Statistics(NamedTuple):
    """One value a tensor, each of shape (R,), float64."""

    acsm: Tensor
    acv: Tensor
    mean: Tensor
    nonfinite: Tensor
    samples: Tensor


def channel_sums(x: Tensor, channel_dim: int | None) -> Tensor:
    """Sums that add up, from which :func:`statistics` forms ACSM and ACV.

    Args:
        x: Floating-point tensor with at least one element; not changed.
        channel_dim: Its channel axis; the sums run over all others. None: all of it is one channel.

    Returns:
        float64 (C + 4,), on the device of ``x``: the sum in each of the C channels, the sum of all squares, the number
        of elements that are NaN or infinite, the number of elements in a channel, and the size of the first axis.
    """
    x = x.detach()
    if channel_dim is None or x.ndim == 0:
        x, axis = x[..., None], x.ndim
    else:
        axis = channel_dim % x.ndim
    if x.ndim == 1:  # as γ of a normalization: each element is a channel
        x = x[:, None]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return _sums_on_device(x, axis)
    fast = x.dtype == torch.float32 and x.numel() > _PIECE["cpu"]
    channels, squares = (_single_precision(x, axis) if fast else None) or _double_precision(x, axis)
    # An element that is not finite shows in the squares: elements need only be counted where they are not.
    nonfinite = 0 if math.isfinite(squares) else x.numel() - int(x.isfinite().sum())
    tail = [squares, nonfinite, x.numel() // x.shape[axis], x.shape[0]]
    return torch.cat([channels, torch.tensor(tail, dtype=torch.float64)])


def _sums_on_device(x: Tensor, axis: int) -> Tensor:
    """Without a value that the host would have to wait for; compiled, all reductions are fused into one pass."""
    others = _others(x, axis)
    parts = []
    for piece in [x] if torch.compiler.is_compiling() else _pieces(x, others[0]):
        double = piece.double()
        squares = double.square().sum(others).sum()
        nonfinite = piece.isfinite().logical_not().sum(others).sum()
        parts.append(torch.cat([double.sum(others), torch.stack([squares, nonfinite.double()])]))
    sums = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    count, samples = (
        torch.full((1,), value, dtype=torch.float64, device=x.device)
        for value in (x.numel() // x.shape[axis], x.shape[0])
    )
    return torch.cat([sums, count, samples])


def _double_precision(x: Tensor, axis: int) -> tuple[Tensor, float]:
    others = _others(x, axis)
    channels, squares = torch.zeros(x.shape[axis], dtype=torch.float64), 0.0
    for piece in _pieces(x, others[0]):
        double = piece.double()
        channels += double.sum(others)
        squares += float(double.square().sum())  # pairwise; a dot product or a norm would cost two digits
    return channels, squares


def _single_precision(x: Tensor, axis: int) -> tuple[Tensor, float] | None:
    """Two passes at the speed of memory; None where the layout or the values ask for double precision."""
    number, count = x.numel(), x.numel() // x.shape[axis]  # this runs at every layer: each call here is seen in a step
    channels_behind = x if axis == x.ndim - 1 else x.movedim(axis, -1)
    if channels_behind.is_contiguous():
        flat = channels_behind.view(-1)
        channels = flat.view(count, -1).sum(0).double()
    elif x.is_contiguous():
        flat = x.view(-1)
        channels = x.view(math.prod(x.shape[:axis]), x.shape[axis], -1).sum(2).double().sum(0)
    else:
        return None
    rest = number % _BLOCK
    norms = torch.linalg.vector_norm(flat[: number - rest].view(-1, _BLOCK), dim=1).double()
    squares = float(torch.dot(norms, norms))
    if rest:
        squares += float(flat[number - rest :].double().square().sum())
    mean_squares = float(torch.dot(channels, channels)) / count
    if not math.isfinite(squares) or squares < _SMALLEST_SQUARE * number:
        return None
    return (channels, squares) if squares - mean_squares > _SMALLEST_PART * squares else None


def _others(x: Tensor, axis: int) -> list[int]:
    return [other for other in range(x.ndim) if other != axis]


def _pieces(x: Tensor, axis: int) -> Sequence[Tensor]:
    """``x`` cut along an axis."""
    number = -(-x.numel() // _PIECE.get(x.device.type, _PIECE_OF_GPU))
    return [x] if number <= 1 else torch.split(x, -(-x.shape[axis] // number), dim=axis)


class Layout:
    """Where the sums of R tensors lie in one vector, one behind the other; made once for the steps that share it.

    Args:
        channels: R numbers of channels.
        device: Where the vector is.
    """

    def __init__(self, channels: Sequence[int], device: torch.device) -> None:
        sizes = torch.tensor(channels, dtype=torch.int64)
        tails = torch.cumsum(sizes + len(TAIL), 0) - len(TAIL)
        rows = torch.repeat_interleave(sizes)
        self.channels = sizes.double().to(device)
        self.tails = torch.stack([tails + i for i in range(len(TAIL))]).to(device)
        self.rows = rows.to(device)
        self.positions = (torch.arange(len(rows)) + len(TAIL) * rows).to(device)


def statistics(sums: Tensor, layout: Layout) -> Statistics:
    """ACSM, ACV and what goes with them, of R tensors at once.

    Args:
        sums: float64 (Σ(C_r + 4),): vectors of :func:`channel_sums`, or totals of them, one behind the other.
        layout: Of these vectors.
    """
    squares, nonfinite, count, samples = sums[layout.tails]
    means = sums[layout.positions] / count[layout.rows]

    def over_channels(values: Tensor) -> Tensor:
        return torch.zeros_like(count).index_add_(0, layout.rows, values) / layout.channels

    acsm = over_channels(means.square())
    second_moment = squares / (count * layout.channels)
    # Rounding must not make a variance negative; NaN stays NaN.
    return Statistics(acsm, (second_moment - acsm).clamp_min(0), over_channels(means), nonfinite, samples)


def acsm_acv(x: Tensor, channel_dim: int = 1) -> tuple[float, float]:
    """ACSM and ACV of one tensor; their sum is its second moment.

    Example:
        >>> acsm_acv(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # channel means 2 and 0, variances 1 and 0
        (2.0, 0.5)
    """
    sums = channel_sums(x, channel_dim)
    found = statistics(sums, Layout([len(sums) - len(TAIL)], sums.device))
    return float(found.acsm), float(found.acv)
