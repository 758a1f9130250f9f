"""Which axis of a module's output is the channel axis."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from sppbench.spp.probe.layers import class_name

_CHANNELS_SECOND = (
    *(_ConvNd, _NormBase, nn.GroupNorm, nn.LocalResponseNorm),
    *(_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _LPPoolNd),
    *(nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
# What is_second and is_second_inside say of a module.
Second: TypeAlias = tuple[bool | None, bool | None]
# Tensors of one pass that are known.
_MANY = 1 << 12


class ChannelAxis:
    """Finds the channel axis of outputs in the order of their calls.

    Axis 1 of (N, C, ...) and the last axis of (N, L, C) and (N, H, W, C): from three axes on a tensor does not say
    which it is. Convolutions, batch normalizations and pooling put channels second; linear layers, layer
    normalizations, attention and recurrent layers put them last. Any other module (an activation, dropout, a sum) has
    them where the tensor that it was given has them, which is known if that is the very tensor that a module before it
    returned. Else they are where the module before it had them. If the number of channels there does not fit, they may
    be at the other end, where it does (a permutation in between): at the second axis for four or more axes, at the last
    always. Before the first such module: where the modules inside of it put them, as in a block that is recorded as a
    whole, or second for four or more axes, last for three.

    A permutation to a size that equals the number of channels is not seen: name the axis with ``channel_axis``.

    Attributes:
        guessed: Whether neither the last module nor the tensor that it was given told the axis, and the number of
            channels did not, either: it fits at both ends, or at the other one, or nowhere. Where it fits at both or
            nowhere, the modules inside tell it if they do as the module before.
    """

    def __init__(self) -> None:
        self.guessed = False
        self._known = KnownAxes()
        self._second: bool | None = None
        self._channels: int | None = None

    def of(self, second: bool | None, given: Sequence[Any], x: Tensor, inside: bool | None = None) -> int | None:
        """The axis, counted from 0, of the output ``x`` of a module; None for (N,), which is all one channel.

        Args:
            second: What :func:`is_second` says of the module.
            given: What it was called with.
            inside: What :func:`is_second_inside` says of it.
        """
        self.guessed = False
        ndim = int(x.ndim)
        if ndim == 1 and second is not False:
            return None
        if ndim <= 2:
            return ndim - 1
        if second is None:
            return self._inherited(given, x, inside)
        return 1 if second else ndim - 1

    def note(self, x: Tensor, axis: int | None) -> None:
        """Notes where a tensor that goes on through the net has its channels."""
        ndim = int(x.ndim)
        if axis is None or ndim <= 2:
            return
        if axis == 1 or axis == ndim - 1:
            self._second, self._channels = axis == 1, int(x.shape[axis])
        if torch.compiler.is_compiling():
            _note_traced(x, axis)
        else:
            self._known.add(x, axis)

    def _inherited(self, given: Sequence[Any], x: Tensor, inside: bool | None) -> int:
        if torch.compiler.is_compiling():
            axis = _find_traced([x, *(one for one in given if isinstance(one, Tensor))])
        else:
            axis = self._known.find((x, *given))
        if axis is not None:
            return axis
        if inside and x.ndim == 3:  # as of patches: the outputs of convolutions, flattened and transposed
            inside = None
        return 1 if self._is_second_by_size(x, inside) else int(x.ndim) - 1

    def _is_second_by_size(self, x: Tensor, inside: bool | None) -> bool:
        if self._second is None:
            self.guessed = inside is None
            return x.ndim > 3 if inside is None else inside
        here, there = (1, -1) if self._second else (-1, 1)
        fits_here, fits_there = x.shape[here] == self._channels, x.shape[there] == self._channels
        agree = inside is self._second and (fits_here or not fits_there)
        self.guessed = (fits_there or not fits_here) and not agree
        if not self._second and x.ndim == 3:  # that a sequence is as long as there were channels is a coincidence
            return False
        return self._second is not (fits_there and not fits_here)


def is_second(module: nn.Module) -> bool | None:
    """Whether a module puts channels second (or else last); None: where what it is given has them."""
    # Layer normalizations over (N, C, H, W) are subclasses with such a name, or normalize over several axes.
    if isinstance(module, _CHANNELS_SECOND) or class_name(module).endswith("2d"):
        return True
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) > 1
    if isinstance(module, _CHANNELS_LAST):
        return False
    # Those of libraries other than torch.
    return False if class_name(module).endswith(("LayerNorm", "RMSNorm")) else None


def is_second_inside(module: nn.Module) -> bool | None:
    """What :func:`is_second` says of all modules inside of one that are sure; None if none is, or they differ."""
    said = {is_second(one) for one in module.modules()} - {None}
    return said.pop() if len(said) == 1 else None


class KnownAxes:
    """The channel axes of tensors, by the tensors themselves, which are not kept alive."""

    def __init__(self) -> None:
        self._axes: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def add(self, x: Tensor, axis: int) -> None:
        """Notes the axis of a tensor."""
        self._axes[id(x)] = weakref.ref(x), axis

    def forget_the_dead(self) -> None:
        """Forgets tensors that are gone, if there may be many of them."""
        if len(self._axes) > _MANY:
            self._axes = {key: one for key, one in self._axes.items() if one[0]() is not None}

    def find(self, tensors: Sequence[Any]) -> int | None:
        """The axis of the first tensor, as that of one of them is known; it must have kept it."""
        for one in tensors:
            found = self._axes.get(id(one))
            # Another object may have the place in memory of one that is gone.
            known = None if found is None else found[0]()
            if found is None or known is None or known is not one:
                continue
            if _kept(known.shape, tensors[0].shape, found[1]):
                return found[1]
        return None


def _kept(before: Sequence[int], after: Sequence[int], axis: int) -> bool:
    """Whether a module that made one shape of another can have left the channel axis where it was: it has changed the
    number of channels or the other axes, and not both, as a permutation does."""
    if before == after:
        return True
    if len(before) != len(after):
        return False
    others = [i for i in range(len(before)) if i != axis]
    return before[axis] == after[axis] or all(before[i] == after[i] for i in others)


# -- while Dynamo traces ----------------------------------------------------------------------------------------------

# There tensors have no identity, but their stand-ins have, at the time of tracing. A pass that is made in a graph is
# none of the objects that exist then: what is known of stand-ins is kept here, as long as they live.
_TRACED = KnownAxes()
_FOUND: list[int | None] = [None]


def _note_traced(x: Tensor, axis: int) -> None:
    torch._dynamo.comptime.comptime(_note_stand_in)


def _find_traced(tensors: list[Tensor]) -> int | None:
    torch._dynamo.comptime.comptime(_find_stand_ins)
    found = _found()
    return None if found < 0 else found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _found() -> int:
    found = _FOUND[0]
    return -1 if found is None else found


# What Dynamo calls while it traces; it reads the variables of the function that it is traced in.
def _note_stand_in(context: Any) -> None:
    _TRACED.forget_the_dead()
    _TRACED.add(context.get_local("x").as_fake(), context.get_local("axis").as_python_constant())


def _find_stand_ins(context: Any) -> None:
    proxies = context.get_local("tensors").as_proxy()
    _FOUND[0] = _TRACED.find([proxy.node.meta["example_value"] for proxy in proxies])


def is_normalized(y: Tensor, x: Tensor) -> bool:
    """While Dynamo traces: whether a tensor is what batch normalization makes of another."""
    torch._dynamo.comptime.comptime(_look_for_normalization)
    return bool(_found() == 1)


def _look_for_normalization(context: Any) -> None:
    y, x = (context.get_local(name).as_proxy().node for name in ("y", "x"))
    is_one = y.target in (torch.nn.functional.batch_norm, torch.batch_norm) and y.args[0] is x
    _FOUND[0] = 1 if is_one else None
