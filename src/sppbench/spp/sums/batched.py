"""What is done for all tensors of a step at once, in a number of kernels that does not grow with theirs.

On a GPU to start a kernel takes as long as to read a small tensor; a net has hundreds of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

# What stands behind the channel sums in the vector of `channel_sums`: what is added up over the channels, what is the
# same in all of them, and, as the last, what is no sum but the largest magnitude.
TAIL = ("squares", "nonfinite", "zeros", "subnormal", "count", "samples", "absmax")
ROWS = ("sums", *TAIL)  # those of `channel_rows`
# Values that are added up one after the other.
_BLOCK = 64
_PLANS = 16

Plan = TypeVar("Plan")


class Plans(dict[Any, Plan]):
    """What steps share, by a key of what it depends on; of nets that are another in each step, the last ones."""

    def __setitem__(self, key: Any, plan: Plan) -> None:
        if len(self) >= _PLANS:
            del self[next(iter(self))]
        super().__setitem__(key, plan)


def channels_of(sums: Tensor) -> int:
    """The number of channels of a vector (C + 7,) or of rows (8, C)."""
    return sums.shape[1] if sums.ndim == 2 else sums.shape[0] - len(TAIL)


def joined(earlier: Tensor, later: Tensor) -> Tensor:
    """The sums of two tensors (both vectors, or both rows) as those of one: added up, but of ``absmax`` the larger."""
    total = earlier + later
    torch.maximum(earlier[-1], later[-1], out=total[-1])
    return total


class Fold:
    """``folded`` (of ``sppbench.spp.sums.statistics``) for R tensors at once; made once for the steps that share it.

    Args:
        shapes: R shapes, each (C + 7,) or (8, C).
        device: Where the tensors are.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        sizes = [shape[1] for shape in shapes if len(shape) == 2]
        starts = torch.cumsum(torch.tensor([0, *sizes]), 0)
        self._over_channels = Segments(4 * sizes, device)
        self._first, self._ends = starts[:-1].to(device), starts.to(device)
        # Where in what __call__ makes, one behind the other, the values of the vectors are.
        channels, number = sum(sizes), len(sizes)
        order, rows, vectors = [], 0, channels + len(TAIL) * number
        for shape in shapes:
            if len(shape) == 2:
                order += [torch.arange(shape[1]) + starts[rows], channels + number * torch.arange(len(TAIL)) + rows]
                rows += 1
            else:
                order.append(torch.arange(vectors, vectors + shape[0]))
                vectors += shape[0]
        self._order = torch.cat(order).to(device) if number else None

    def __call__(self, sums: Sequence[Tensor]) -> Tensor:
        """The vectors, one behind the other: (Σ(C_r + 7),)."""
        if self._order is None:
            return torch.cat(list(sums))
        rows = torch.cat([one for one in sums if one.ndim == 2], dim=1)
        added = self._over_channels(rows[1:5].reshape(-1))
        count_and_samples = rows[5:7].index_select(1, self._first).round().reshape(-1)
        absmax = _reduce(rows[7], self._ends, "max")
        vectors = [one for one in sums if one.ndim == 1]
        return torch.cat([rows[0], added, count_and_samples, absmax, *vectors])[self._order]


class Layout:
    """Where the sums of R tensors lie in one vector, one behind the other; made once for the steps that share it.

    Args:
        channels: R numbers of channels.
        device: Where the vector is.
    """

    def __init__(self, channels: Sequence[int], device: torch.device) -> None:
        sizes = torch.tensor(channels, dtype=torch.int64)
        tails = torch.cumsum(sizes + len(TAIL), 0) - len(TAIL)
        self.channels = sizes.double().to(device)
        self.tails = torch.stack([tails + i for i in range(len(TAIL))]).to(device)
        # Adds up the values of two vectors, one behind the other, that stand where the sums of channels do.
        self.over_channels = Segments([*channels, *channels], device, gap=len(TAIL))


class Segments:
    """Adds up the values of R segments of a vector, in the same order in every run.

    On a CPU in blocks, and these then: one after the other, a thousand would lose two digits. A GPU adds up in pairs.

    Args:
        sizes: R lengths, none of them 0.
        device: Where the vector is.
        gap: Number of values behind each segment that belong to none.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device, gap: int = 0) -> None:
        in_blocks = device.type == "cpu"
        ends, last = [0], [0]  # of blocks, and of the last blocks of segments and of gaps
        for size in sizes:
            start = ends[-1]
            ends += [*(range(start + _BLOCK, start + size, _BLOCK) if in_blocks else ()), start + size]
            last.append(len(ends) - 1)
            if gap:
                ends.append(ends[-1] + gap)
                last.append(len(ends) - 1)
        self._ends = torch.tensor(ends, device=device)
        self._last = torch.tensor(last, device=device) if in_blocks else None
        self._stride = 2 if gap else 1

    def __call__(self, values: Tensor) -> Tensor:
        """(Σ(size + gap),) → (R,)."""
        found = _reduce(values, self._ends, "sum")
        return (found if self._last is None else _reduce(found, self._last, "sum"))[:: self._stride]


def _reduce(values: Tensor, ends: Tensor, how: str) -> Tensor:
    """Sums (or, of magnitudes, the "max") of the values between each of n + 1 places in a vector and the next: (n,)."""
    # Unsafe is what it leaves unchecked; the check would wait for the device.
    return torch.segment_reduce(values, how, offsets=ends, unsafe=True, initial=0.0)


class FirstAxisSums:
    """``channel_rows`` (of ``sppbench.spp.sums.statistics``) of R tensors whose channels are their first axis,
    as those of weights are; made once for the steps that share it.

    Args:
        tensors: Tensors like those that are to come, each of at least one element, on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._channels = [len(x) if x.ndim else 1 for x in tensors]
        channels = torch.tensor(self._channels)
        counts = torch.tensor([x.numel() for x in tensors]) // channels
        sizes = torch.repeat_interleave(counts, channels)
        self._over_others = Segments(sizes.tolist(), device)
        self._ends = torch.cat([torch.zeros_like(sizes[:1]), sizes.cumsum(0)]).to(device)
        samples = torch.tensor([len(x) if x.ndim else 1 for x in tensors])
        smallest = torch.tensor([smallest_normal(x.dtype) for x in tensors])
        by_channel = torch.stack([counts.double(), samples.double(), smallest.double()])
        by_channel = torch.repeat_interleave(by_channel, channels, dim=1).to(device)
        self._known, self._smallest = by_channel[:2], by_channel[2]
        self._is_counted = bool(smallest.isfinite().any())

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """R tensors (8, C), float64."""
        values = torch.cat([_by_first_axis(x) for x in tensors]).double()
        magnitudes = values.abs()
        nonfinite = self._over_others(values.mul(0).ne(0).double())  # a half of the kernels of isfinite
        zeros = self._over_others(values.eq(0).double())
        total = self._over_others(values)
        squares = self._over_others(values.square_())
        absmax = _reduce(magnitudes, self._ends, "max")
        found = torch.stack([total, squares, nonfinite, zeros, self._subnormal(magnitudes, zeros)])
        found = torch.cat([found, self._known, absmax[None]])
        return list(torch.split(found, self._channels, dim=1))

    def _subnormal(self, magnitudes: Tensor, zeros: Tensor) -> Tensor:
        if not self._is_counted:
            return self._smallest  # NaN
        smallest = torch.repeat_interleave(self._smallest, self._ends.diff(), output_size=len(magnitudes))
        below = self._over_others(magnitudes.lt(smallest).double())
        return below - zeros + 0 * self._smallest  # NaN where it is not counted


def smallest_normal(dtype: torch.dtype) -> float:
    """The smallest normal number of a type of less than 32 bits; NaN for others, where what is below is not counted."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal if limits.bits < 32 else math.nan


def _by_first_axis(x: Tensor) -> Tensor:
    """The elements, those of a channel one behind the other; not copied where they lie like that in some order."""
    strides = x.stride()
    others = sorted(range(1, x.ndim), key=lambda axis: -strides[axis])
    return x.detach().permute(0, *others).reshape(-1) if x.ndim else x.detach().reshape(1)
