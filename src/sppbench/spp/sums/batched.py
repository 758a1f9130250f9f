"""What is done for all tensors of a step at once, in a number of kernels that does not grow with theirs.

On a GPU to start a kernel takes as long as to read a small tensor; a net has hundreds of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

# What stands behind the channel sums in the vector of `channel_sums`.
TAIL = ("squares", "nonfinite", "count", "samples")
ROWS = ("sums", "squares", "nonfinite", "count", "samples")  # those of `channel_rows`
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
    """The number of channels of a vector (C + 4,) or of rows (5, C)."""
    return sums.shape[1] if sums.ndim == 2 else sums.shape[0] - len(TAIL)


class Fold:
    """``folded`` (of ``sppbench.spp.sums.statistics``) for R tensors at once; made once for the steps that share it.

    Args:
        shapes: R shapes, each (C + 4,) or (5, C).
        device: Where the tensors are.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        sizes = [shape[1] for shape in shapes if len(shape) == 2]
        starts = torch.cumsum(torch.tensor([0, *sizes]), 0)
        self._over_channels = Segments(2 * sizes, device)
        self._first = starts[:-1].to(device)
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
        """The vectors, one behind the other: (Σ(C_r + 4),)."""
        if self._order is None:
            return torch.cat(list(sums))
        rows = torch.cat([one for one in sums if one.ndim == 2], dim=1)
        squares_and_nonfinite = self._over_channels(rows[1:3].reshape(-1))
        count_and_samples = rows[3:].index_select(1, self._first).round().reshape(-1)
        vectors = [one for one in sums if one.ndim == 1]
        return torch.cat([rows[0], squares_and_nonfinite, count_and_samples, *vectors])[self._order]


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
        found = _add_up(values, self._ends)
        return (found if self._last is None else _add_up(found, self._last))[:: self._stride]


def _add_up(values: Tensor, ends: Tensor) -> Tensor:
    """Sums of the values between each of n + 1 places in a vector and the next: (n,)."""
    # Unsafe is what it leaves unchecked; the check would wait for the device.
    return torch.segment_reduce(values, "sum", offsets=ends, unsafe=True, initial=0.0)


class FirstAxisSums:
    """``channel_rows`` (of ``sppbench.spp.sums.statistics``) of R tensors whose channels are their first axis,
    as those of weights are; made once for the steps that share it.

    Args:
        tensors: Tensors like those that are to come, each of at least one element, on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._channels = [len(x) if x.ndim else 1 for x in tensors]
        sizes = [x.numel() // channels for x, channels in zip(tensors, self._channels, strict=True)]
        counts = torch.repeat_interleave(torch.tensor(sizes), torch.tensor(self._channels))
        self._over_others = Segments(counts.tolist(), device)
        samples = torch.tensor([len(x) if x.ndim else 1 for x in tensors])
        samples = torch.repeat_interleave(samples, torch.tensor(self._channels))
        self._known = torch.stack([counts, samples]).double().to(device)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """R tensors (5, C), float64."""
        values = torch.cat([_by_first_axis(x) for x in tensors]).double()
        nonfinite = self._over_others(values.mul(0).ne(0).double())  # a half of the kernels of isfinite
        total = self._over_others(values)
        squares = self._over_others(values.square_())
        found = torch.cat([torch.stack([total, squares, nonfinite]), self._known])
        return list(torch.split(found, self._channels, dim=1))


def _by_first_axis(x: Tensor) -> Tensor:
    """The elements, those of a channel one behind the other; not copied where they lie like that in some order."""
    strides = x.stride()
    others = sorted(range(1, x.ndim), key=lambda axis: -strides[axis])
    return x.detach().permute(0, *others).reshape(-1) if x.ndim else x.detach().reshape(1)
