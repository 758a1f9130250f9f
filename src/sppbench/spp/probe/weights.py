"""The weights of a model: what a probe calls its parameters."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sppbench.spp.probe.layers import class_name, named_modules
from sppbench.spp.probe.outputs import as_real
from sppbench.spp.probe.processes import Held, Share
from sppbench.spp.sums.batched import TAIL, FirstAxisSums, Plans, joined
from sppbench.spp.sums.statistics import folded, sums_of

# Elements that are copied in double precision at once.
_AT_ONCE = 1 << 24
# Channels of a weight, and elements of a channel, up to which a GPU adds up each channel by itself.
_MANY = 1 << 16


class Weight(NamedTuple):
    """A parameter that is not a bias, by its place: FSDP puts others there, and so may the loading of a checkpoint."""

    owner: nn.Module
    attribute: str
    module: str
    kind: str

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter that is there now."""
        found = getattr(self.owner, self.attribute, None)
        return found if isinstance(found, nn.Parameter) else None


def named_weights(model: nn.Module, layers: Collection[str], everything: bool) -> dict[str, Weight]:
    """The weights by name, which is that of the module where the parameter is called ``weight``; biases are left out.

    Args:
        model: Any module; a weight that several of its modules share is listed once.
        layers: Names of modules; weights of other modules, unless inside these, are left out.
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
            lazy = getattr(owner, "cls_to_become", None)  # which will have the name of another class
            found[name] = Weight(owner, own, module, class_name(owner) if lazy is None else lazy.__name__)
    return found


def _is_bias(name: str) -> bool:
    return name == "bias" or name.startswith("bias_") or name.endswith("_bias")


def can_be_read(x: Tensor) -> bool:
    """Whether a parameter or its gradient has elements yet (those of lazy modules come with the first call), and
    numbers in them."""
    return not is_lazy(x) and (x.is_floating_point() or x.is_complex()) and x.layout == torch.strided


def sums_of_sparse(x: Tensor) -> Tensor:
    """What ``channel_sums(x, 0)`` of ``sppbench.spp.sums.statistics`` gives, of a sparse tensor, by its values."""
    x = x.detach().coalesce()
    if x.sparse_dim() != 1 or not x._nnz():
        return folded(sums_of(*as_real(x.to_dense(), 0)))
    dense = torch.zeros(len(x) * (2 if x.is_complex() else 1) + len(TAIL), dtype=torch.float64, device=x.device)
    sums = folded(sums_of(*as_real(x.values(), 0)))
    channels = x.indices()[0]
    if x.is_complex():
        channels = torch.stack([2 * channels, 2 * channels + 1], dim=1).flatten()
    dense[channels] = sums[: -len(TAIL)]
    tail = dense[-len(TAIL) :]
    tail.copy_(sums[-len(TAIL) :])  # all others are zero
    tail[TAIL.index("zeros")] += (len(dense) - len(sums)) * tail[TAIL.index("count")]
    return dense


class WeightSums:
    """Sums over the channels of weights, or of what has their shapes; what steps share is computed once."""

    def __init__(self) -> None:
        self._plans = Plans[FirstAxisSums]()

    def __call__(self, weights: Mapping[str, Held]) -> dict[str, Tensor]:
        """What ``sums_of(weight, 0)`` of ``sppbench.spp.sums.statistics`` gives, of what is held of each."""
        found: dict[str, Tensor] = {}
        groups: dict[torch.device, list[dict[str, Tensor]]] = {}
        sizes: dict[torch.device, int] = {}
        for name, (x, share) in weights.items():
            x, _ = as_real(x, 0)
            number = x.numel()
            if number == 0 or (share is not None and share.width):
                found[name] = _of_slice(x, share)
                continue
            # A CPU starts its kernel at no cost, and is given one weight after the other while they are in its cache.
            channels = x.shape[0] if x.ndim else 1
            is_usual = number <= _AT_ONCE and channels <= _MANY and number <= _MANY * channels
            if x.is_cpu or type(x) is not Tensor or not is_usual:
                found[name] = sums_of(x, 0)
                continue
            sizes[x.device] = sizes.get(x.device, _AT_ONCE) + number
            if sizes[x.device] > _AT_ONCE:
                groups.setdefault(x.device, []).append({})
                sizes[x.device] = number
            groups[x.device][-1][name] = x
        for device, parts in groups.items():
            for part in parts:
                found |= zip(part, self._together(device, list(part.values())), strict=True)
        return found

    def _together(self, device: torch.device, weights: list[Tensor]) -> list[Tensor]:
        key = (device, tuple((weight.shape, weight.dtype) for weight in weights))
        if key not in self._plans:
            self._plans[key] = FirstAxisSums(weights)
        return self._plans[key](weights)


def _of_slice(x: Tensor, share: Share | None) -> Tensor:
    """``sums_of`` of consecutive elements of a flattened weight, and of none.

    Args:
        x: (n,), which may begin and end within a channel; or empty, of any shape.
        share: Where it begins, and how many elements a channel has.
    """
    if share is None or not x.numel():
        rows = 0 if share is None or share.width else x.shape[0]
        return torch.zeros(rows + len(TAIL), dtype=torch.float64, device=x.device)
    ends = [x[: share.width - share.start], x[share.width - share.start :]] if share.start else [x[:0], x]
    whole = len(ends[1]) // share.width * share.width
    parts = [ends[0][None], ends[1][:whole].view(-1, share.width), ends[1][whole:][None]]
    vectors = [folded(sums_of(part, 0)) for part in parts if part.numel()]
    tail = functools.reduce(joined, [vector[-len(TAIL) :] for vector in vectors])
    channels = torch.cat([vector[: -len(TAIL)] for vector in vectors])
    tail[TAIL.index("count")] = x.numel() / len(channels)
    return torch.cat([channels, tail])
