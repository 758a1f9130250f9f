"""What a model says beside its history: the inputs of its weights, and how its blocks are built."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Structure:
    """What is known of a model.

    Attributes:
        fan_in: Module with weights → the number of inputs that each of its outputs sums over.
        skips: Modules that add what a branch gives to their input, or to a projection of it: name → names of the
            projection, as "downsample"; empty if there is none.
        weighted: Modules with weights of their own, beside those of their children.
        shares: Modules MPSum → the weight of the skip.
    """

    fan_in: dict[str, int] = field(default_factory=dict)
    skips: dict[str, str] = field(default_factory=dict)
    weighted: frozenset[str] = frozenset()
    shares: dict[str, float] = field(default_factory=dict)


def structure_of(model: nn.Module) -> Structure:
    """What a model says."""
    # Here, as a history alone is judged without torch.
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    from sppbench.spp.probe.layers import class_name, named_modules, unwrapped

    modules = named_modules(unwrapped(model))
    fans, skips, shares = {}, {}, {}
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not is_lazy(weight) and weight.ndim > 1 and weight.numel():
            # Conv1D is that of transformers, which has its inputs first; so have transposed convolutions.
            first = class_name(module) == "Conv1D" or getattr(module, "transposed", False)
            fans[name] = _fan_in(weight, bool(first))
        for projection in ("downsample", "shortcut"):
            if projection in {child for child, _ in module.named_children()} or hasattr(module, projection):
                skips[name] = projection
        if class_name(module) == "MPSum" and isinstance(share := getattr(module, "weight", None), float):
            shares[name] = share
    weighted = {
        name
        for name, module in modules.items()
        if any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False))
    }
    return Structure(fans, skips, frozenset(weighted), shares)


def _fan_in(weight: Tensor, has_inputs_first: bool) -> int:
    # By its shape alone: to read a weight that is spread over processes, all of them would have to.
    return math.prod(weight.shape) // weight.shape[1 if has_inputs_first else 0]
