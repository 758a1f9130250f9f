"""Which modules a probe looks at, and which axis of their outputs is the channel axis."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from sppbench.checks import check_type, several

LayerPredicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerChoice: TypeAlias = "str | type[nn.Module] | LayerPredicate | Iterable[str | type[nn.Module]] | None"

# Modules that use their children's weights without calling them: what they compute is only seen at their own output.
# Those of libraries other than torch are known by their name.
_OPAQUE = (nn.MultiheadAttention, torch.jit.ScriptModule)
_OPAQUE_NAMES = {"ShiftedWindowAttention", "ShiftedWindowAttentionV2"}
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_CHANNELS_SECOND = (
    *(_ConvNd, _NormBase, nn.GroupNorm, nn.LocalResponseNorm),
    *(_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _LPPoolNd),
    *(nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of what ``torch.compile`` and data parallelism wrap around it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def class_name(module: nn.Module) -> str:
    """The name of a module's class; of one that FSDP2 has given another class, that which it had."""
    kind = type(module)
    return (kind.__bases__[1] if kind.__bases__[0].__name__ == "FSDPModule" else kind).__name__


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, without what wrappers put into the names; the model itself goes by its class."""
    found = {}
    for full, module in model.named_modules():
        name = ".".join(part for part in full.split(".") if part not in _WRAPPERS)
        found[name or class_name(module)] = module
    return found


def choose_layers(model: nn.Module, layers: LayerChoice = None) -> dict[str, nn.Module]:
    """The chosen modules of a model by name, in the order in which they are registered.

    Args:
        model: Any module.
        layers: None: the leaves, which are the modules without children, and attention modules that do not call theirs,
            as a whole. Else module names, globs (``"features.*"``; ``*`` also matches dots), module classes, several of
            these, or a predicate ``(name, module) -> bool``. The model itself goes by the name of its class.

    Raises:
        ValueError: A name, glob or class matches nothing.
    """
    modules = named_modules(model)
    if layers is None:
        chosen = _leaves(modules)
    elif isinstance(layers, str | type):
        chosen = _matching(modules, layers)
    elif callable(layers):
        chosen = {name for name, module in modules.items() if layers(name, module)}
    else:
        chosen = set().union(*(_matching(modules, one) for one in layers))
    return {name: module for name, module in modules.items() if name in chosen}


def checked_choice(layers: Any) -> Any:
    """A `LayerChoice`, checked as far as it can be without a model; several layers become a tuple.

    Raises:
        ValueError: It is of a wrong type, or chooses nothing.
    """
    if layers is None or isinstance(layers, str | type) or callable(layers):
        return layers
    chosen = several("layers", layers)
    for layer in chosen:
        check_type("layers", layer, str, type)
    if not chosen:
        raise ValueError("layers names none; null (None) stands for all leaves")
    return chosen


def without_hooks(model: nn.Module) -> dict[str, str]:
    """Modules that run without the hooks of Python, and why: name → reason."""
    modules, found = named_modules(model), {}
    for name, module in modules.items():
        around = [parent for parent in _parents(modules, name) if isinstance(modules[parent], torch.jit.ScriptModule)]
        if around:
            found[name] = f"it runs inside of {around[0]}, which torch.jit has compiled"
        elif isinstance(module, RecursiveScriptModule):
            found[name] = "torch.jit.script has compiled it: it takes no hooks"
    return found


def _parents(modules: dict[str, nn.Module], name: str) -> list[str]:
    """From the model itself on."""
    root, parts = next(iter(modules)), name.split(".")
    return [root, *(".".join(parts[:i]) for i in range(1, len(parts)))] if name != root else []


def _leaves(modules: dict[str, nn.Module]) -> set[str]:
    found: set[str] = set()
    for name, module in modules.items():
        around = _parents(modules, name)
        if "parametrizations" in name.split(".") or any(_is_opaque(modules[parent]) for parent in around):
            continue
        if _is_opaque(module) or not any(child != "parametrizations" for child, _ in module.named_children()):
            found.add(name)
    return found


def _is_opaque(module: nn.Module) -> bool:
    return isinstance(module, _OPAQUE) or any(kind.__name__ in _OPAQUE_NAMES for kind in type(module).__mro__)


def _matching(modules: dict[str, nn.Module], layer: str | type[nn.Module]) -> set[str]:
    if isinstance(layer, type):
        chosen = {name for name, module in modules.items() if isinstance(module, layer)}
        near = sorted({class_name(module) for module in modules.values()})
    else:
        chosen = {name for name in modules if name == layer or fnmatchcase(name, layer)}
        near = difflib.get_close_matches(layer, modules, n=5, cutoff=0.3)
    if not chosen:
        raise ValueError(f"no module matches {getattr(layer, '__name__', layer)!r}; there are: {', '.join(near)}")
    return chosen


class ChannelAxis:
    """Finds the channel axis of outputs in the order of their calls.

    Axis 1 of (N, C, ...) and the last axis of (N, L, C) and (N, H, W, C): from three axes on a tensor does not say
    which it is. Convolutions, batch normalizations and pooling put channels second; linear layers, layer
    normalizations, attention and recurrent layers put them last. Any other module (an activation, dropout, a sum) has
    them where the module before it had them, if the number of channels there fits; where it only fits the last axis (a
    permutation in between), there. Before the first such module: second for four or more axes, last for three.
    A permutation to a size that equals the number of channels is not seen: name the axis with ``channel_axis``.
    """

    def __init__(self) -> None:
        self._second: bool | None = None
        self._channels: int | None = None

    def of(self, module: nn.Module, x: Tensor) -> int | None:
        """The axis, counted from 0, of the output ``x`` of ``module``; None for (N,), which is all one channel."""
        if x.ndim == 1 and not isinstance(module, _CHANNELS_LAST):
            return None
        if x.ndim <= 2:
            return int(x.ndim) - 1
        second = _is_second(module)
        if second is None:
            second = self._inherited(x)
        self._second, self._channels = second, int(x.shape[1 if second else -1])
        return 1 if second else int(x.ndim) - 1

    def _inherited(self, x: Tensor) -> bool:
        if self._second is None:
            return x.ndim > 3
        here, there = (1, -1) if self._second else (-1, 1)
        moved = x.shape[here] != self._channels and x.shape[there] == self._channels
        return self._second is not moved


def _is_second(module: nn.Module) -> bool | None:
    # Layer normalizations over (N, C, H, W) are subclasses with such a name, or normalize over several axes.
    if isinstance(module, _CHANNELS_SECOND) or class_name(module).endswith("2d"):
        return True
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) > 1
    return False if isinstance(module, _CHANNELS_LAST) else None
