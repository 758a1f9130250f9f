"""The tensor in what a module returned, which may be anything."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def recorded_tensor(output: Any) -> Tensor | None:
    """The tensor to be recorded: the first that can be, else the first, in tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        return output
    first = None
    for tensor in tensors_in(output):
        if why_not(tensor) is None:
            return tensor
        first = tensor if first is None else first
    return first


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in anything: itself, or those in tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from tensors_in(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_in(part)
    elif _is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name))


def why_not(x: Tensor | None) -> str | None:
    """Why a tensor cannot be recorded; None if it can."""
    if x is None:
        return "its output holds no tensor"
    if x.is_nested:
        return "its output is nested"
    if not x.is_floating_point() and not x.is_complex():
        return f"its output is {str(x.dtype).removeprefix('torch.')}"
    if x.layout is not torch.strided:
        return f"its output is {str(x.layout).removeprefix('torch.')}"
    if x.ndim == 0 or x.numel() == 0:
        return f"its output has the shape {tuple(x.shape)}"
    return None


def overwritable(module: nn.Module, x: Tensor) -> Tensor:
    """The tensor to hook for the gradient of ``x``, which a later layer may overwrite.

    What is written into a view takes the hooks of that view out of the graph. Of more than two axes, the output of a
    ``Linear`` is a view, of all elements of a tensor that nothing else knows: that one keeps its hooks.
    """
    base = x._base if type(module) is nn.Linear and type(x) is Tensor and x._is_view() else None
    known = base is not None and base.requires_grad and base.numel() == x.numel() and base.is_contiguous()
    return base if base is not None and known else x


def as_real(x: Tensor, axis: int | None) -> tuple[Tensor, int | None]:
    """A tensor of real numbers whose mean squares are those of |·| of ``x``, and its channel axis.

    Of a complex one, real and imaginary parts are channels of their own, all scaled by √2: the sums of their squares,
    divided by twice the number of channels, give |·|². The mean over its channel means is (Re + Im)/√2 of ``x``'s;
    its largest magnitude is √2 times the largest part, at least the largest |·|; shares are those of the parts.
    """
    if not x.is_complex():
        return x, axis
    parts = torch.view_as_real(x.detach().resolve_conj()) * math.sqrt(2)
    if axis is None or x.ndim == 0:
        return parts, parts.ndim - 1
    return parts.movedim(-1, axis + 1).flatten(axis, axis + 1), axis


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with one tensor in it replaced by another; containers are not changed but made anew."""
    if output is old:
        return new
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(replaced(part, old, new) for part in output))
    if type(output) in (list, tuple):
        return type(output)([replaced(part, old, new) for part in output])
    if type(output) in (dict, OrderedDict):
        parts = {key: replaced(part, old, new) for key, part in output.items()}
        return parts if type(output) is dict else OrderedDict(parts)
    if isinstance(output, Mapping):
        made: Any = copy.copy(output)
        for key, part in output.items():
            made[key] = replaced(part, old, new)
        return made
    if _is_dataclass(output):
        made = copy.copy(output)
        for field in dataclasses.fields(output):
            setattr(made, field.name, replaced(getattr(output, field.name), old, new))
        return made
    return output


def _is_dataclass(output: Any) -> bool:
    if output is None:  # which not all versions of Dynamo can ask whether it is one
        return False
    return dataclasses.is_dataclass(output) and not isinstance(output, type)
