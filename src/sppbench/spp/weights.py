"""The weights of a model: what a probe calls its parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from sppbench.spp.layers import named_modules


class Weight(NamedTuple):
    """A parameter that is not a bias."""

    parameter: nn.Parameter
    module: str
    kind: str


def named_weights(model: nn.Module, layers: Collection[str], everything: bool) -> dict[str, Weight]:
    """The weights by name, which is that of the module where the parameter is called ``weight``; biases are left out.

    Args:
        model: Any module; a weight that several of its modules share is listed once.
        layers: Names of modules; weights of other modules, unless inside of these, are left out.
        everything: Leave no weight out, as that of a position embedding, which belongs to no leaf.
    """
    modules = named_modules(model)
    root = next(iter(modules))
    seen: set[int] = set()
    found = {}
    for module, owner in modules.items():
        for own, parameter in owner.named_parameters(recurse=False):
            parts = module.split(".")
            parents = {root, *(".".join(parts[: i + 1]) for i in range(len(parts)))}
            if id(parameter) in seen or _is_bias(own) or not (everything or parents & set(layers)):
                continue
            seen.add(id(parameter))
            name = module if own == "weight" else f"{module}.{own}" if module != root else own
            found[name] = Weight(parameter, module, type(owner).__name__)
    return found


def _is_bias(name: str) -> bool:
    return name == "bias" or name.startswith("bias_") or name.endswith("_bias")


def can_be_read(parameter: nn.Parameter) -> bool:
    """Whether a parameter has elements yet (those of lazy modules come with the first call), and numbers in them."""
    return not is_lazy(parameter) and parameter.is_floating_point() and parameter.numel() > 0
