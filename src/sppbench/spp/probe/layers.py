"""Which modules a probe looks at."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.modules.dropout import _DropoutNd

from sppbench.checks import check_type, several
from sppbench.spp.probe.blocks import find_blocks

LayerPredicate: TypeAlias = Callable[[str, nn.Module], bool]
LayerChoice: TypeAlias = "str | type[nn.Module] | LayerPredicate | Iterable[str | type[nn.Module]] | None"

# Modules that use their children's weights without calling them: what they compute is only seen at their own output.
# Those of libraries other than torch are known by their name.
_OPAQUE = (nn.MultiheadAttention, torch.jit.ScriptModule)
_OPAQUE_NAMES = {"ShiftedWindowAttention", "ShiftedWindowAttentionV2"}
# Stands for every layer.
ALL = "all"
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what ``torch.compile`` and data parallelism wrap around it."""
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
        found[plain_name(full) or class_name(module)] = module
    return found


def plain_name(name: str) -> str:
    """The name of a module without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def choose_layers(model: nn.Module, layers: LayerChoice = None) -> dict[str, nn.Module]:
    """The chosen modules of a model by name, in the order in which they are registered.

    Args:
        model: Any module.
        layers: None: the leaves, which are the modules without children, and attention modules that do not call theirs,
            as a whole; other modules only if they have parameters of their own, as experts and blocks with a scale
            have. Without those that hand on what they are given: ``Identity``, and dropout with a probability of 0.
            ``"all"``: these as well. ``"blocks"``: the repeated blocks, see
            :func:`sppbench.spp.probe.blocks.find_blocks`. Else module names, globs (``"features.*"``; ``*`` also
            matches dots), module classes, several of these (``["blocks"]`` is a module of that name), or a predicate
            ``(name, module) -> bool``. The model itself goes by the name of its class.

    Raises:
        ValueError: A name, glob or class matches nothing, or no block is repeated.
    """
    modules = named_modules(model)
    if layers is None:
        chosen = {name for name in _leaves(modules) if not _hands_on(modules[name])}
    elif layers == ALL:
        chosen = _leaves(modules)
    elif layers == "blocks":
        chosen = set(find_blocks(modules))
        if not chosen:
            raise ValueError("the model has no repeated blocks: no modules of one class follow each other in a list")
    elif isinstance(layers, str | type):
        chosen = _matching(modules, layers)
    elif callable(layers):
        chosen = {name for name, module in modules.items() if layers(name, module)}
    else:
        chosen = set().union(*(_matching(modules, one) for one in layers))
    return {name: module for name, module in modules.items() if name in chosen}


def is_default(layers: LayerChoice) -> bool:
    """Whether a choice names no layers, and thus means all weights of the model."""
    return layers is None or (isinstance(layers, str) and layers == ALL)


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
        raise ValueError("layers must name at least one; null (None) stands for all leaves")
    return chosen


def without_hooks(model: nn.Module) -> dict[str, str]:
    """Modules that run without the hooks of Python, and why: name → reason."""
    modules, found = named_modules(model), {}
    for name, module in modules.items():
        around = [parent for parent in parents(modules, name) if isinstance(modules[parent], torch.jit.ScriptModule)]
        if around:
            found[name] = f"it runs inside {around[0]}, which torch.jit has compiled"
        elif isinstance(module, RecursiveScriptModule):
            found[name] = "torch.jit.script has compiled it: it takes no hooks"
    return found


def parents(modules: dict[str, nn.Module], name: str) -> list[str]:
    """The modules around a module, from the model itself on."""
    root, parts = next(iter(modules)), name.split(".")
    return [root, *(".".join(parts[:i]) for i in range(1, len(parts)))] if name != root else []


def _leaves(modules: dict[str, nn.Module]) -> set[str]:
    found: set[str] = set()
    for name, module in modules.items():
        around = parents(modules, name)
        if "parametrizations" in name.split(".") or any(_is_opaque(modules[parent]) for parent in around):
            continue
        own = {parameter for parameter, _ in module.named_parameters(recurse=False)}
        own -= {"_flat_param"}  # that of FSDP
        if is_leaf(module) or _is_opaque(module) or own:
            found.add(name)
    return found


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no children, but for how its parameters are computed."""
    return not any(child != "parametrizations" for child, _ in module.named_children())


def _hands_on(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, _DropoutNd) and module.p == 0)


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
