"""The axes of views, copies and parts of a tensor, from its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sppbench.spp.theory.layout import Axes, reshaped, resized

SAME = ("clone", "alias", "detach", "contiguous", "_to_copy", "lift_fresh", "copy", "roll")
SHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "_reshape_copy", "flatten")
ORDERS = ("permute", "transpose", "t", "movedim")
PARTS = ("slice", "split", "split_with_sizes", "narrow", "unsafe_split", "chunk", "index_select", "flip")


def axes_of_view(name: str, arguments: Mapping[str, Any], axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Those of what an operation with these arguments makes of a tensor, None of other operations or of no known ones.

    Args:
        name: of the operation, in aten.
        arguments: by their names in its schema.
        axes: of the tensor.
        shape: of the result.
    """
    if name in SAME:
        return axes
    if name == "as_strided":  # another layout in memory
        return axes if [math.prod(size for _, size in one) for one in axes] == list(shape) else None
    if name in SHAPES:
        return reshaped(axes, shape)
    if name in ORDERS:
        return tuple(axes[i] for i in _order(name, arguments, len(axes)))
    if name in PARTS:
        return resized(axes, shape)
    if name in ("select", "unbind"):
        dim = int(arguments["dim"]) % len(axes)
        return axes[:dim] + axes[dim + 1 :]
    return None


def _order(name: str, arguments: Mapping[str, Any], ndim: int) -> list[int]:
    if name == "permute":
        return [int(i) % ndim for i in arguments["dims"]]
    dims = (0, ndim - 1) if name == "t" else (arguments["dim0"], arguments["dim1"])
    first, second = (int(i) % ndim for i in dims)
    order = list(range(ndim))
    order[first], order[second] = order[second], order[first]
    return order
