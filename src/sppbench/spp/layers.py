"""Which modules a probe looks at, and which axis of their outputs is the channel axis."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

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

LayerPredicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerChoice: TypeAlias = "str | type[nn.Module] | LayerPredicate | Iterable[str | type[nn.Module]] | None"

# Modules with children that do not run as modules: what they compute is only seen at their own output.
_OPAQUE = (nn.MultiheadAttention,)
_CHANNELS_SECOND = (
    *(_ConvNd, _NormBase, nn.GroupNorm, nn.LocalResponseNorm),
    *(_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _LPPoolNd),
    *(nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def choose_layers(model: nn.Module, layers: LayerChoice = None) -> dict[str, nn.Module]:
    """The chosen modules of a model by name, in the order in which they are registered.

    Args:
        model: Any module.
        layers: None: the leaves, which are the modules without children, and attention modules as a whole. Else module
            names, globs (``"features.*"``; ``*`` also matches dots), module classes, several of these, or a predicate
            ``(name, module) -> bool``.

    Raises:
        ValueError: A name, glob or class matches nothing.
    """
    modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
    if layers is None:
        chosen = {name for name, module in modules.items() if _is_leaf(name, module, modules)}
    elif isinstance(layers, str | type):
        chosen = _matching(modules, layers)
    elif callable(layers):
        chosen = {name for name, module in modules.items() if layers(name, module)}
    else:
        chosen = set().union(*(_matching(modules, one) for one in layers))
    return {name: module for name, module in modules.items() if name in chosen}


def _is_leaf(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> bool:
    parents = [modules[".".join(name.split(".")[:i])] for i in range(1, name.count(".") + 1)]
    if any(isinstance(parent, _OPAQUE) for parent in parents) or "parametrizations" in name.split("."):
        return False
    children = [child for child, _ in module.named_children() if child != "parametrizations"]
    return isinstance(module, _OPAQUE) or (not children and name != "") or len(modules) == 1


def _matching(modules: dict[str, nn.Module], layer: str | type[nn.Module]) -> set[str]:
    if isinstance(layer, type):
        chosen = {name for name, module in modules.items() if isinstance(module, layer)}
        near = sorted({type(module).__name__ for module in modules.values()})
    else:
        chosen = {name for name in modules if name == layer or fnmatchcase(name, layer)}
        near = difflib.get_close_matches(layer, modules, n=5, cutoff=0.3)
    if not chosen:
        raise ValueError(f"no module matches {getattr(layer, '__name__', layer)!r}; there are: {', '.join(near)}")
    return chosen


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in what a module returned: itself, or the first found in a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) or hasattr(output, "values"):
        output = list(output.values()) if callable(getattr(output, "values", None)) else []
    if isinstance(output, list | tuple):
        for part in output:
            if (found := first_tensor(part)) is not None:
                return found
    return None


class ChannelAxis:
    """Finds the channel axis of outputs in the order of their calls.

    Axis 1 of (N, C, ...) and the last axis of (N, L, C) and (N, H, W, C): from three axes on a tensor does not say which
    it is. Convolutions, batch normalizations and pooling put channels second; linear layers, layer normalizations,
    attention and recurrent layers put them last. Any other module (an activation, dropout, a sum) has them where the
    module before it had them, if the number of channels there fits; where it only fits the last axis (a permutation in
    between), there. Before the first module that tells: second for four or more axes, last for three.
    """

    def __init__(self) -> None:
        self._second: bool | None = None
        self._channels: int | None = None

    def of(self, module: nn.Module, x: Tensor) -> int:
        """The axis, counted from 0, of the output ``x`` of ``module``."""
        if x.ndim <= 2:
            return x.ndim - 1
        if isinstance(module, _CHANNELS_SECOND):
            second = True
        elif isinstance(module, _CHANNELS_LAST):
            second = False
        else:
            second = self._inherited(x)
        self._second, self._channels = second, int(x.shape[1 if second else -1])
        return 1 if second else x.ndim - 1

    def _inherited(self, x: Tensor) -> bool:
        if self._second is None:
            return x.ndim > 3
        here, there = (1, -1) if self._second else (-1, 1)
        moved = x.shape[here] != self._channels and x.shape[there] == self._channels
        return self._second is not moved
