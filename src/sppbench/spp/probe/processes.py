"""The processes that train a model together, and how what each of them has recorded is added up.

A batch is spread over data-parallel processes. A tensor may be spread, too: FSDP and tensor parallelism keep parts of
it in each process (:mod:`sppbench.spp.probe.shards` finds which). Sums over channels add up over any spread, as long as
what several processes hold counts once and the sum of a channel stands where that channel is in the whole tensor. Both
are said by a :class:`Share`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: The data-parallel processes; None: this one alone; ``"auto"``: what the model says.
ProcessGroup: TypeAlias = "dist.ProcessGroup | Literal['auto'] | None"


@dataclass(frozen=True, eq=False)
class Share:
    """What this process holds of a tensor.

    Args:
        copies: How many processes, of all whose sums are added up, hold the same elements.
        channels: Number of channels of the whole tensor.
        held: Which of them are here, int64 (number of channels here,); None: all.
        pieces: How many processes hold other elements of the same samples.
        start: Of a slice of a flattened weight, its place in the first channel that is held.
        width: Of a slice of a flattened weight, the number of elements of a channel; else 0.
    """

    copies: float
    channels: int
    held: Tensor | None = None
    pieces: int = 1
    start: int = 0
    width: int = 0


class Held(NamedTuple):
    """The elements of a tensor that are in this process, and their share of it; None: that of a plain tensor."""

    local: Tensor
    share: Share | None


class Unknown(Exception):
    """A process cannot say what it holds of a tensor; the message is the reason, to be put behind the layer's name."""


@dataclass(frozen=True)
class Processes:
    """The processes that train a model together.

    Args:
        groups: Sums are added up over each of these, one after the other.
        data: Number of parts of the batch.
        tensor_parallel: Number of processes that work on the same part.
        meshes: The meshes of FSDP2, all of whose dimensions are data-parallel.
        alone: No other process may be asked for anything.
    """

    groups: tuple[dist.ProcessGroup, ...] = ()
    data: int = 1
    tensor_parallel: int = 1
    meshes: tuple[DeviceMesh, ...] = ()
    alone: bool = False

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.data * self.tensor_parallel

    def device(self, devices: Sequence[torch.device]) -> torch.device:
        """Where sums from several devices, or from none, are brought together."""
        found = min(devices, key=lambda one: one.type == "cpu", default=torch.device("cpu"))
        if found.type == "cpu" and any("cpu" not in dist.get_backend_config(group) for group in self.groups):
            kind = torch.accelerator.current_accelerator()  # the backend does not communicate from a CPU
            found = found if kind is None else torch.device(kind.type, torch.accelerator.current_device_index())
        return found

    def agree(self, checksum: int, device: torch.device) -> bool:
        """Whether all processes have the same checksum."""
        bounds = torch.tensor([checksum, -checksum], device=device)
        for group in self.groups:
            dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
        return bool(bounds[0] == -bounds[1])

    def add_up(self, vector: Tensor, largest: Tensor | None = None) -> None:
        """Adds the vectors of all processes up, in place; at the places ``largest`` the largest magnitude stays."""
        # As integers, in whose order NaN is the largest of what has no sign: as a float it may get lost.
        magnitudes = vector[largest].view(torch.int64) if largest is not None and self.groups else None
        for group in self.groups:
            dist.all_reduce(vector, group=group)
            if magnitudes is not None:
                dist.all_reduce(magnitudes, op=dist.ReduceOp.MAX, group=group)
        if magnitudes is not None:
            vector[largest] = magnitudes.view(torch.float64)

    def gather(self, own: Any) -> list[Any]:
        """What each process gives, in the same order in all of them."""
        found = [(dist.get_rank(), own)]
        for group in self.groups:
            lists: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(lists, found, group=group)
            found = [one for part in lists for one in part]
        return [one for _, one in sorted(found, key=lambda item: item[0])]
