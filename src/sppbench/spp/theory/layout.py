"""What the axes of a tensor are, followed through views: samples, places, channels, also where one axis is several.

An axis is a tuple of atoms, each a role and a size: that of length N·L of tokens in a row is ``(("n", N), ("p", L))``,
one of length 1 is empty. Roles are "n" (samples), "p" (places), "c" (channels) and "x", of a batch of which the net has
not yet shown which of its axes are places and which channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Atom: TypeAlias = tuple[str, int]
Axis: TypeAlias = tuple[Atom, ...]
Axes: TypeAlias = tuple[Axis, ...]


def axis(role: str, size: int) -> Axis:
    return ((role, size),) if size != 1 else ()


def count(axes: Sequence[Axis], role: str) -> int:
    """How many samples, places or channels there are."""
    return math.prod(size for one in axes for kind, size in one if kind == role)


def roles(one: Axis) -> set[str]:
    return {role for role, _ in one}


def of_shape(shape: Sequence[int]) -> Axes:
    """Those of a batch of this shape: the first axis is samples, the others are open."""
    return tuple(axis("n" if i == 0 else "x", size) for i, size in enumerate(shape))


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes of a view of this shape, None if a size is none of the parts that are known."""
    atoms: list[Atom] = []
    for atom in (atom for one in axes for atom in one):
        atoms = _joined(atoms, atom)
    result: list[Axis] = []
    for size in shape:
        own: list[Atom] = []
        left = size
        while left > 1:
            if not atoms:
                return None
            role, length = atoms.pop(0)
            if left % length == 0:
                taken = length
            elif length % left == 0:
                taken = left
                atoms.insert(0, (role, length // left))
            else:
                return None
            own = _joined(own, (role, taken))
            left //= taken
        result.append(tuple(own))
    return tuple(result) if not atoms else None


def _joined(atoms: list[Atom], last: Atom) -> list[Atom]:
    if atoms and atoms[-1][0] == last[0]:
        return [*atoms[:-1], (last[0], atoms[-1][1] * last[1])]
    return [*atoms, last]


def flattened(axes: Axes) -> Axes:
    """With places that share an axis with channels as channels: pixels that a flatten has made features."""
    return tuple(axis("c", math.prod(size for _, size in one)) if roles(one) == {"c", "p"} else one for one in axes)


def resized(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """Those of a tensor whose axes are the same ones, some longer or shorter; None where such an axis is several."""
    result: list[Axis] = []
    for one, size in zip(axes, shape, strict=True):
        if math.prod(length for _, length in one) == size:
            result.append(one)
        elif len(roles(one)) == 1:
            result.append(axis(one[0][0], size))
        else:
            return None
    return tuple(result)


def assigned(axes: Axes, channel: int) -> Axes:
    """With the open axes as what they are next to this one, which is that of the channels."""
    return tuple(
        tuple(("c" if i == channel % len(axes) else "p", size) if role == "x" else (role, size) for role, size in one)
        for i, one in enumerate(axes)
    )


def is_open(axes: Axes) -> bool:
    return any("x" in roles(one) for one in axes)


def broadcast(several: Sequence[Axes]) -> Axes:
    """Those of what an element-wise operation makes of tensors with these axes."""
    width = max(len(axes) for axes in several)
    padded = [((),) * (width - len(axes)) + axes for axes in several]
    return tuple(
        max(column, key=lambda one: math.prod(size for _, size in one)) for column in zip(*padded, strict=True)
    )


def as_samples_places_channels(x: Tensor, axes: Axes) -> Tensor:
    """A tensor as (samples, places, channels)."""
    atoms = [atom for one in axes for atom in one]
    order = sorted(range(len(atoms)), key=lambda i: "npc".index(atoms[i][0]))
    sizes = [count(axes, role) for role in "npc"]
    return x.reshape([size for _, size in atoms]).permute(order).reshape(sizes) if atoms else x.reshape(1, 1, 1)


def has_one_value(x: Tensor) -> bool:
    return x.numel() > 0 and bool(torch.all(x == x.flatten()[0]))
