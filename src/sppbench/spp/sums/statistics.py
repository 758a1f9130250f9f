"""Pure functions: tensor → sums over each channel → ACSM and ACV.

For x with C channels and, in each, the mean and the (biased) variance over all other axes (Brock, De & Smith 2021,
"Characterizing signal propagation to close the performance gap in unnormalized ResNets", section 3):

- ACSM, average channel squared mean: mean_c( mean(x)² );
- ACV, average channel variance: mean_c( var(x) );
- their sum is the second moment, mean(x²), exactly.

So ACV follows from the second moment, which is one sum over the whole tensor, and ACSM, which needs one sum a channel.
These sums add up: over the parts of an accumulated batch, over calls and over processes. They are therefore what is
stored and communicated, in double precision, and the statistics, which do not add up, are formed from the totals.

The same reading of a tensor gives

- absmax, its largest magnitude, max(|x|): infinite if an element is, NaN if one is NaN;
- zeros, the share of its elements that are exactly 0, such as those of dead ReLUs and those that underflowed;
- subnormal, of types of less than 32 bits, the share of those that are not 0 but below the type's smallest normal
  number (6.1e-5 of float16, 1.2e-38 of bfloat16), where digits are lost; NaN for other types.

Of the parts of a batch, calls and processes, absmax is the largest; what the others are shares of is added up.

Accuracy: ACSM and second moment within 1e-6 and ACV within 1e-5 of the exact values of the tensor at hand, as long as
ACV is at least 1e-10 of the second moment. Below that, a float32 tensor itself no longer resolves its variance.

On a CPU, float32 tensors without gaps in memory are read once, by a compiled kernel
(:mod:`sppbench.spp.sums.cpu_kernel`), on a CUDA device all are (:mod:`sppbench.spp.sums.gpu_kernel`); where there is no
compiler, and for other tensors, torch forms the same sums in several passes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sppbench.spp.sums.batched import TAIL, Layout, joined, smallest_normal
from sppbench.spp.sums.cpu_kernel import Kernel, kernel

log = logging.getLogger(__name__)

# Tensors are converted to double precision in pieces of this size, which stay in a CPU's cache. A GPU wants larger
# ones, but not a copy of the largest tensor in double precision.
_PIECE = {"cpu": 1 << 18}
_PIECE_OF_GPU = 1 << 24


class Statistics(NamedTuple):
    """One value a tensor, each of shape (R,), float64."""

    acsm: Tensor
    acv: Tensor
    mean: Tensor
    nonfinite: Tensor
    samples: Tensor
    absmax: Tensor
    zeros: Tensor
    subnormal: Tensor


def channel_sums(x: Tensor, channel_dim: int | None) -> Tensor:
    """Sums that add up, from which :func:`statistics` forms ACSM and ACV.

    Args:
        x: Floating-point tensor with at least one element; not changed.
        channel_dim: Its channel axis; the sums run over all others. None: all of it is one channel.

    Returns:
        float64 (C + 7,), on the device of ``x``: the sum in each of the C channels, the sum of all squares, the numbers
        of elements that are NaN or infinite, that are 0, and that are subnormal (NaN where these are not counted), the
        number of elements in a channel, the size of the first axis, and the largest magnitude, which is no sum.
    """
    return folded(sums_of(x, channel_dim))


def sums_of(x: Tensor, channel_dim: int | None) -> Tensor:
    """What :func:`channel_sums` or what :func:`channel_rows` gives, whichever costs less where ``x`` is;
    :class:`sppbench.spp.sums.batched.Fold` takes both."""
    if torch.compiler.is_compiling():
        return channel_rows(x, channel_dim)
    x, axis = _with_channels(x.detach(), channel_dim)
    compiled = kernel() if x.is_cpu else _gpu_kernel() if x.is_cuda else None
    if compiled is not None and (sums := compiled(x, axis)) is not None:
        return sums
    if x.ndim == 1:  # as γ of a normalization: each element is a channel
        x = x[:, None]
    return _double_precision(x, axis) if x.is_cpu else _sums_on_device(x, axis)


@functools.cache
def _gpu_kernel() -> Kernel | None:
    """The kernel that reads a tensor on a CUDA device once; None without Triton.

    On a device where it once fails, as where it does not compile, torch forms the sums from then on.
    """
    try:
        from sppbench.spp.sums.gpu_kernel import channel_rows
    except Exception as error:
        log.debug("channel sums are computed by torch, as there is no Triton: %s", error)
        return None
    failed = set()

    def kernel_or_none(x: Tensor, axis: int) -> Tensor | None:
        if x.device in failed:
            return None
        try:
            return channel_rows(x, axis)
        except Exception as error:  # it is compiled for each type, and more, when that first comes
            log.debug("channel sums are computed by torch, as the kernel fails on %s: %s", x.device, error)
            failed.add(x.device)
            return None

    return kernel_or_none


def channel_rows(x: Tensor, channel_dim: int | None) -> Tensor:
    """As :func:`channel_sums`, for compiled graphs, in which all that is a sum over the same axes is one reading of x,
    and whatever is not is one more kernel. :class:`sppbench.spp.sums.batched.Fold` does the rest, once for all tensors.

    Returns:
        float64 (8, C): in each channel the sum of its elements, the sum of their squares, the numbers of those that are
        NaN or infinite, that are 0, that are subnormal, and of all, the size of the first axis, which add up, and the
        largest magnitude.
    """
    x, axis = _with_channels(x.detach(), channel_dim)
    if x.ndim == 1:
        x = x[:, None]
    others = _others(x, axis)
    double, finite = x.double(), x.isfinite()
    # Numbers of elements as sums over them, in a way that compilers do not see through: as constants they would be
    # computed in kernels of their own.
    one = finite.logical_or(finite.logical_not()).double()
    share = 1.0 if axis else float(x.shape[0])  # of the size of the first axis, what falls to one element
    for other in others:
        share /= x.shape[other] if other else 1
    magnitude, smallest = double.abs(), smallest_normal(x.dtype)
    is_subnormal = one * smallest if math.isnan(smallest) else magnitude.lt(smallest).logical_and(magnitude.ne(0))
    counted = finite.logical_not(), magnitude.eq(0), is_subnormal
    values = double, double.square(), *(value.double() for value in counted), one, one * share
    return torch.stack([*(value.sum(others) for value in values), magnitude.amax(others)])


def folded(sums: Tensor) -> Tensor:
    """The vector (C + 7,) of :func:`channel_sums`, from itself or from the rows of :func:`channel_rows`."""
    if sums.ndim == 1:
        return sums
    return torch.cat([sums[0], sums[1:5].sum(1), sums[5:7, 0].round(), sums[7:].amax(1)])


def _with_channels(x: Tensor, channel_dim: int | None) -> tuple[Tensor, int]:
    """A tensor that has a channel axis, and which that is, not negative."""
    return (x[..., None], x.ndim) if channel_dim is None or x.ndim == 0 else (x, channel_dim % x.ndim)


def _double_precision(x: Tensor, axis: int) -> Tensor:
    others, smallest = _others(x, axis), smallest_normal(x.dtype)
    channels, squares, zeros = torch.zeros(x.shape[axis], dtype=torch.float64), 0.0, 0
    subnormal, absmax = 0.0 if smallest > 0 else math.nan, torch.zeros((), dtype=torch.float64)
    for piece in _pieces(x, others[0]):
        double = piece.to(torch.float64, copy=True)
        channels += double.sum(others)
        zeros_here = piece.numel() - int(double.count_nonzero())
        zeros += zeros_here
        low, high = double.aminmax()  # a norm would take ten times as long
        absmax = torch.maximum(absmax, torch.maximum(-low, high))
        if smallest > 0:
            subnormal += int(double.abs().lt(smallest).count_nonzero()) - zeros_here
        squares += float(double.square_().sum())  # pairwise; a dot product or a norm would cost two digits
    # An element that is not finite shows in the squares: elements need only be counted where they are not.
    nonfinite = 0 if math.isfinite(squares) else x.numel() - int(x.isfinite().sum())
    tail = [squares, nonfinite, zeros, subnormal, x.numel() // x.shape[axis], x.shape[0], float(absmax)]
    return torch.cat([channels, torch.tensor(tail, dtype=torch.float64)])


def _sums_on_device(x: Tensor, axis: int) -> Tensor:
    """Without a value that the host would have to wait for."""
    parts = [_sums_of_piece(piece, axis) for piece in _pieces(x, _others(x, axis)[0])]
    sums = functools.reduce(joined, parts)
    sums[-2] = x.shape[0]
    return sums


def _sums_of_piece(x: Tensor, axis: int) -> Tensor:
    others, smallest = _others(x, axis), smallest_normal(x.dtype)
    double = x.double()
    magnitude = double.abs()
    counted = [x.isfinite().logical_not(), magnitude.eq(0)]
    if smallest > 0:
        counted.append(magnitude.lt(smallest).logical_and(magnitude.ne(0)))
    added = [value.sum(others).sum().double() for value in (double.square(), *counted)]
    known = [*([] if smallest > 0 else [smallest]), float(x.numel() // x.shape[axis]), float(x.shape[0])]
    tail = [*added, *(double.new_full((), value) for value in known), magnitude.amax()]
    return torch.cat([double.sum(others), torch.stack(tail)])


def _others(x: Tensor, axis: int) -> list[int]:
    return [other for other in range(x.ndim) if other != axis]


def _pieces(x: Tensor, axis: int) -> Sequence[Tensor]:
    """``x`` cut along an axis."""
    number = -(-x.numel() // _PIECE.get(x.device.type, _PIECE_OF_GPU))
    return [x] if number <= 1 else torch.split(x, -(-x.shape[axis] // number), dim=axis)


def statistics(sums: Tensor, layout: Layout) -> Statistics:
    """ACSM, ACV and what goes with them, of R tensors at once.

    Args:
        sums: float64 (Σ(C_r + 7),): vectors of :func:`channel_sums`, or totals of them, one behind the other.
        layout: Of these vectors.
    """
    squares, nonfinite, zeros, subnormal, count, samples, absmax = sums[layout.tails]
    total_squares, total = layout.over_channels(torch.cat([sums.square(), sums])).view(2, -1)
    shares = torch.stack([total_squares / count, squares, total, zeros, subnormal]) / (count * layout.channels)
    acsm, second_moment, mean, zeros, subnormal = shares
    # Rounding must not make a variance negative; NaN stays NaN.
    acv = (second_moment - acsm).clamp_min(0)
    return Statistics(acsm, acv, mean, nonfinite, samples, absmax, zeros, subnormal)


def acsm_acv(x: Tensor, channel_dim: int = 1) -> tuple[float, float]:
    """ACSM and ACV of one tensor (Brock, De & Smith 2021, section 3); their sum is its second moment.

    Args:
        x: Floating-point tensor of any shape, with at least one element.
        channel_dim: Its channel axis; means and variances are over all others.

    Returns:
        Both in units of ``x`` squared.

    Example:
        >>> import torch
        >>> acsm_acv(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # channel means 2 and 0, variances 1 and 0
        (2.0, 0.5)
    """
    sums = channel_sums(x, channel_dim)
    found = statistics(sums, Layout([len(sums) - len(TAIL)], sums.device))
    return float(found.acsm), float(found.acv)
