"""``channel_rows`` on a GPU: one kernel, in Triton, that reads a tensor once, where torch would start two dozen.

Magnitudes are compared as integers: without its sign a float is in the order of its bits, and NaN is above infinity.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sppbench.spp.sums.batched import ROWS, smallest_normal
from sppbench.spp.sums.cpu_kernel import inner_size

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TILE = 2048  # elements that a program reads at a time
_TILES = 4  # that it reads at least, so that what it writes is little beside them
_ROW = 32  # elements that lie side by side: 128 bytes of float32
_PARTS = 64  # that are joined at a time
_PROGRAMS = 512  # what keeps a large GPU busy; the same everywhere, as the order of a sum depends on it


def channel_rows(x: Tensor, axis: int) -> Tensor | None:
    """Without a value that the host would have to wait for, and in the same order in every run.

    Args:
        x: On a GPU; detached, of at least one axis.
        axis: Its channel axis, not negative.

    Returns:
        float64 (8, C), as in :func:`sppbench.spp.sums.statistics.channel_rows`; None for types that the kernel does not
        know and for empty tensors.
    """
    if type(x) is not Tensor or x.dtype not in _DTYPES or x.layout is not torch.strided:
        return None
    x = x.resolve_neg()
    inner = inner_size(x, axis)
    if inner is None:
        x = x.contiguous()
        inner = x.stride(axis) if x.shape[axis] > 1 else x.numel()
    try:
        if not x.data_ptr():  # it has no elements, or is known to be zero
            return None
    except RuntimeError:  # there is no memory behind what a transformation of functions traces
        return None
    channels, elements = x.shape[axis], x.numel() // x.shape[axis]
    block, columns, parts, chunk = _cut(channels, elements, inner)
    out = torch.empty(parts, len(ROWS), channels, dtype=torch.float64, device=x.device)
    limit = smallest_normal(x.dtype)
    smallest = (
        0.0 if math.isnan(limit) else limit
    )  # NaN, which does not equal itself, would be another kernel each time
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        # The first axis of a grid is the one that may be long, as the table of an embedding is.
        _kernel[(-(-channels // columns), parts)](
            x, out, elements, channels, inner, x.shape[0], chunk, block, columns, smallest, enable_fp_fusion=True
        )
        if parts == 1:
            return out[0]
        found = torch.empty_like(out[0])
        _join[(-(-found.numel() // _ROW),)](out, found, parts, channels, _PARTS, _ROW)
    return found


def _cut(channels: int, elements: int, inner: int) -> tuple[int, int, int, int]:
    """How C channels of so many elements are divided: elements and channels of a tile, the number of parts into which
    the elements of each channel are cut, and the elements of a part, a multiple of those of a tile."""
    columns = min(triton.next_power_of_2(channels), triton.next_power_of_2(max(1, _ROW // inner)))
    block = _TILE // columns
    parts = min(-(-elements // (_TILES * block)), -(-_PROGRAMS // -(-channels // columns)))
    chunk = -(-elements // (parts * block)) * block
    return block, columns, -(-elements // chunk), chunk


# A smaller batch must not be another kernel.
@triton.jit(do_not_specialize=["elements", "samples"])  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x,
    out,
    elements,
    channels,
    inner,
    samples,
    chunk,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """Element e of channel c is at (e // inner)·channels·inner + c·inner + e % inner; ``out`` is (parts, 8, C).

    SMALLEST is the smallest normal number of the type of ``x``; 0 where what lies below it is not counted."""
    part = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = channel < channels
    start = part * chunk
    end = tl.minimum(start + chunk, elements)
    total = tl.zeros((BLOCK, COLUMNS), tl.float64)
    squares = tl.zeros((BLOCK, COLUMNS), tl.float64)
    nonfinite = tl.zeros((BLOCK, COLUMNS), tl.int32)
    zeros = tl.zeros((BLOCK, COLUMNS), tl.int32)
    subnormal = tl.zeros((BLOCK, COLUMNS), tl.int32)
    largest = tl.zeros((BLOCK, COLUMNS), tl.int64)
    for first in range(start, end, BLOCK):
        element = first + tl.arange(0, BLOCK)
        # One division of 64 bits a tile, and not one an element.
        within = (first % inner).to(tl.int32) + tl.arange(0, BLOCK)
        place = (first // inner + within // inner) * channels * inner + within % inner
        there = (element < end)[:, None] & known[None, :]
        value = tl.load(x + place[:, None] + channel[None, :].to(tl.int64) * inner, mask=there, other=0.0)
        value = value.to(tl.float64)
        magnitude = tl.abs(value)
        total += value
        squares += value * value
        nonfinite += tl.where(magnitude < float("inf"), 0, 1)
        is_zero = there & (magnitude == 0)
        zeros += is_zero.to(tl.int32)
        if SMALLEST > 0:
            subnormal += (there & (magnitude < SMALLEST) & (magnitude > 0)).to(tl.int32)
        largest = tl.maximum(largest, magnitude.to(tl.int64, bitcast=True))
    count = tl.zeros((COLUMNS,), tl.float64) + (end - start)
    row = out + part * 8 * channels + channel
    tl.store(row, tl.sum(total, 0), mask=known)
    tl.store(row + channels, tl.sum(squares, 0), mask=known)
    tl.store(row + 2 * channels, tl.sum(nonfinite, 0).to(tl.float64), mask=known)
    tl.store(row + 3 * channels, tl.sum(zeros, 0).to(tl.float64), mask=known)
    if SMALLEST > 0:
        tl.store(row + 4 * channels, tl.sum(subnormal, 0).to(tl.float64), mask=known)
    else:
        tl.store(row + 4 * channels, count * float("nan"), mask=known)
    tl.store(row + 5 * channels, count, mask=known)
    tl.store(row + 6 * channels, count / elements * samples, mask=known)
    tl.store(row + 7 * channels, tl.max(largest, 0).to(tl.float64, bitcast=True), mask=known)


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def _join(rows, out, parts, channels, PARTS: tl.constexpr, PLACES: tl.constexpr):  # type: ignore[no-untyped-def]
    """``rows`` (parts, 8, C) → ``out`` (8, C): the sums of the parts, and of the last row the largest."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    known = place < 8 * channels
    total = tl.zeros((PARTS, PLACES), tl.float64)
    largest = tl.zeros((PARTS, PLACES), tl.int64)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        there = (part < parts)[:, None] & known[None, :]
        at = part[:, None].to(tl.int64) * 8 * channels + place[None, :]
        value = tl.load(rows + at, mask=there, other=0.0)
        total += value
        largest = tl.maximum(largest, value.to(tl.int64, bitcast=True))
    found = tl.where(place < 7 * channels, tl.sum(total, 0), tl.max(largest, 0).to(tl.float64, bitcast=True))
    tl.store(out + place, found, mask=known)
