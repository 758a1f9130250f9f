"""The repeated blocks of a net, found by its structure: their outputs are its residual stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from torch import nn

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class _Run(NamedTuple):
    """Modules of one kind that follow each other in a list."""

    parent: str
    kind: Hashable
    names: list[str]


def find_blocks(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The names of the repeated blocks, in the order in which they are registered; empty if nothing is repeated.

    Blocks are the modules of one class that the longest ``ModuleList``, ``Sequential`` or ``ModuleDict`` has one after
    another, and those of the same class in other lists, as in nets of several stages. A plain list of modules is of the
    class of what it holds: ``Sequential(Linear, ReLU)`` may be a block, too. A list inside a repeated module only
    counts if it is the module's own, as that of a stage; the experts or heads somewhere inside a block do not.

    Args:
        modules: All modules of a net by name, as `named_modules` gives them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), *(nn.TransformerEncoderLayer(4, 1) for _ in range(3)))
        >>> find_blocks(dict(net.named_modules()))
        ('1', '2', '3')
    """
    runs = [run for name, module in modules.items() if isinstance(module, _LISTS) for run in _runs(name, modules)]
    repeated = {name for run in runs if len(run.names) > 1 for name in run.names}
    runs = [run for run in runs if _is_own(run.parent, repeated)]
    lengths = Counter[Hashable]()
    for run in runs:
        lengths[run.kind] += len(run.names)
    candidates = [run for run in runs if len(run.names) > 1]
    if not candidates:
        return ()
    longest = max(candidates, key=lambda run: (len(run.names), lengths[run.kind]))
    chosen = {name for run in runs if run.kind == longest.kind for name in run.names}
    return tuple(name for name in modules if name in chosen)


def _runs(parent: str, modules: Mapping[str, nn.Module]) -> list[_Run]:
    """The runs of equal kinds among the children of a list."""
    root = next(iter(modules))
    start = "" if parent == root else f"{parent}."
    names = [start + child for child, _ in modules[parent].named_children()]
    # Of a module that stands in several places only the first has a name.
    kinds = [(name, _kind(modules[name])) for name in names if name in modules]
    return [_Run(parent, kind, [name for name, _ in group]) for kind, group in groupby(kinds, lambda item: item[1])]


def _kind(module: nn.Module) -> tuple[Any, ...]:
    """What is equal of equal modules: the class, and of a plain list the kinds of what it holds."""
    if type(module) in _LISTS:
        return type(module), tuple(_kind(child) for child in module.children())
    return (type(module),)


def _is_own(parent: str, repeated: set[str]) -> bool:
    """Whether a list is not inside a repeated module, or is that module, or a child of it."""
    parts = parent.split(".")
    depth = next((i for i in range(len(parts), 0, -1) if ".".join(parts[:i]) in repeated), None)
    return depth is None or len(parts) - depth <= 1
