"""What a process holds of the tensors of a model that FSDP or tensor parallelism spread over processes.

The only place that knows ``DTensor`` and the insides of FSDP. Importing it costs a second: only models that are
trained by several processes need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from sppbench.spp.probe.processes import Held, Processes, Share, Unknown

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Dimensions of a mesh over which processes have different parts of a batch, by how their names begin.
_DATA = ("dp", "ddp", "data", "batch", "fsdp", "hsdp", "replicate", "shard", "ep", "expert", "cp", "context")
_LEFT_OUT = "other processes hold parts of it, which process_group=None leaves out"
# So many operations back, a tensor's origin is looked for.
_REACH = 64


def processes_of(model: nn.Module, process_group: dist.ProcessGroup | str) -> Processes:
    """The processes that train a model together, where ``torch.distributed`` is running.

    Args:
        model: As it is called: the wrapper, where there is one.
        process_group: The data-parallel processes. ``"auto"``: those of DistributedDataParallel or FSDP where the model
            says so, else all that are not tensor-parallel.
    """
    fsdp = tuple(dict.fromkeys(_fsdp_meshes(model)))
    tensor_parallel = _tensor_parallel_groups(model, fsdp)
    data = _data_groups(model, fsdp) if isinstance(process_group, str) else [process_group]
    number, world = _product(tensor_parallel), dist.get_world_size()
    if not data or (isinstance(process_group, str) and _product(data) * number == world):
        everyone = dist.group.WORLD
        return Processes((everyone,) if everyone and world > 1 else (), max(1, world // number), number, fsdp)
    groups = [group for group in (*data, *tensor_parallel) if dist.get_world_size(group) > 1]
    return Processes(tuple(groups), _product(data), number, fsdp)


class _Slice(NamedTuple):
    """What of a flattened weight is here: its shape, the first element and the one behind the last, and the number of
    processes among which it is divided."""

    shape: tuple[int, ...]
    start: int
    end: int
    processes: int


class Shards:
    """Finds what this process holds of the tensors of a model; what steps share is found once."""

    def __init__(self, processes: Processes, model: nn.Module) -> None:
        self._processes = processes
        self._shares: dict[Any, Share] = {}
        self._slices = dict(_slices(model))

    def held(self, x: Tensor, axis: int | None) -> Held:
        """See ``Spread.held``."""
        if isinstance(x, DTensor):
            return self._of_dtensor(x, axis, of_batch=True)
        return Held(x, self._of_local(x, axis) if self._processes.tensor_parallel > 1 else None)

    def held_of_weight(self, parameter: nn.Parameter, x: Tensor) -> Held:
        """See ``Spread.held_of_weight``."""
        if isinstance(x, DTensor):
            return self._of_dtensor(x, 0 if x.ndim else None, of_batch=False)
        if id(parameter) not in self._slices:
            if isinstance(parameter, FlatParameter):
                raise Unknown("FSDP has merged several weights into one; with use_orig_params=True each is recorded")
            if getattr(parameter, "_fsdp_flattened", False):
                raise Unknown("FSDP wraps it outside the module that the probe was given: give the probe the wrapper")
            return Held(x, None)
        if self._processes.alone:
            raise Unknown(_LEFT_OUT)
        part = self._slices[id(parameter)]
        if x.numel() != part.end - part.start:
            raise Unknown("FSDP holds other elements of it here than between steps")
        if part not in self._shares:
            width = math.prod(part.shape[1:])
            held = torch.arange(part.start // width, -(-part.end // width)) if x.numel() else torch.arange(0)
            channels = part.shape[0] if part.shape else 1
            copies = self._processes.size / part.processes
            self._shares[part] = Share(copies, channels, held, 1, part.start % width, width)
        return Held(x.reshape(-1), self._shares[part])

    def ndim(self, parameter: nn.Parameter) -> int:
        """See ``Spread.ndim``."""
        return len(self._slices[id(parameter)].shape) if id(parameter) in self._slices else parameter.ndim

    def _of_dtensor(self, x: DTensor, axis: int | None, of_batch: bool) -> Held:
        parts = [place for place, size in zip(x.placements, x.device_mesh.shape, strict=True) if size > 1]
        if self._processes.alone and not all(place.is_replicate() for place in parts):
            raise Unknown(_LEFT_OUT)
        share = self._share(x.device_mesh, x.placements, tuple(x.shape), axis, of_batch)
        local = _local(x)
        if axis is not None and local.shape[axis] != (share.channels if share.held is None else len(share.held)):
            raise Unknown("it is spread over processes in an unknown way")
        return Held(local, share)

    def _share(
        self, mesh: DeviceMesh, placements: Sequence[Any], shape: tuple[int, ...], axis: int | None, of_batch: bool
    ) -> Share:
        key = (mesh, tuple(placements), shape, axis, of_batch)
        if key not in self._shares:
            self._shares[key] = self._found(mesh, placements, shape, axis, of_batch)
        return self._shares[key]

    def _found(
        self, mesh: DeviceMesh, placements: Sequence[Any], shape: tuple[int, ...], axis: int | None, of_batch: bool
    ) -> Share:
        coordinate = mesh.get_coordinate()
        if coordinate is None:
            raise Unknown("this process is not in its mesh")
        channels = 1 if axis is None else shape[axis]
        held, parts, pieces = torch.arange(channels), 1, 1
        for place, size, index in zip(placements, mesh.shape, coordinate, strict=True):
            if not _is_sharded(place):
                continue
            parts *= size
            pieces *= 1 if place.dim == 0 else size
            if place.dim == axis:
                held = _part(held, place, size, index)
        copies = self._processes.size / parts
        if of_batch:  # what is in no dimension of its mesh is another part of the batch
            inside = math.prod(mesh.size(i) for i in _data_dims(mesh, self._processes.meshes))
            copies /= self._processes.data / inside
        return Share(copies, channels, None if len(held) == channels else held, pieces)

    def _of_local(self, x: Tensor, axis: int | None) -> Share:
        """The share of a plain tensor between tensor-parallel modules: that of the DTensor that it was made from."""
        if not x.requires_grad:
            raise Unknown("without a gradient it is not known which part of it each tensor-parallel process holds")
        origins = {(one.mesh, tuple(one.placements), tuple(one.shape)) for one in _origins(x)}
        spread = [one for one in origins if not all(place.is_replicate() for place in one[1])]
        if not spread:
            channels = 1 if axis is None else int(x.shape[axis])
            return self._shares.setdefault(channels, Share(self._processes.tensor_parallel, channels))
        mesh, placements, shape = spread[0]
        local = list(shape)
        for place, size in zip(placements, mesh.shape, strict=True):
            if not _is_sharded(place) or local[place.dim] % size:
                raise Unknown("it is spread over processes in an unknown way")
            local[place.dim] //= size
        if len({one[:2] for one in origins}) > 1 or tuple(local) != tuple(x.shape):
            raise Unknown("its shape does not say which part of it each tensor-parallel process holds")
        return self._share(mesh, placements, shape, axis, of_batch=True)


def _fsdp_meshes(model: nn.Module) -> Iterator[DeviceMesh]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                yield group.mesh_info.mesh


def _slices(model: nn.Module) -> Iterator[tuple[int, _Slice]]:
    """Of the weights that FSDP1 flattens (``use_orig_params=True``), by their id."""
    for module in model.modules():
        handle = getattr(module, "_handle", None) if isinstance(module, FullyShardedDataParallel) else None
        if handle is None or not handle._use_orig_params:
            continue
        flat = handle.flat_param
        for parameter, shape, info in zip(flat._params, flat._shapes, flat._shard_param_infos, strict=True):
            if not handle.uses_sharded_strategy:
                yield id(parameter), _Slice(tuple(shape), 0, math.prod(shape), 1)
                continue
            start, end = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
            yield id(parameter), _Slice(tuple(shape), start, end, dist.get_world_size(handle.process_group))


def _data_dims(mesh: DeviceMesh, fsdp: Sequence[DeviceMesh]) -> set[int]:
    """The dimensions of a mesh over which processes have different parts of a batch."""
    if mesh in fsdp:
        return set(range(mesh.ndim))
    names = mesh.mesh_dim_names or ()
    known = {name for one in fsdp for name in one.mesh_dim_names or ()}
    return {i for i, name in enumerate(names) if name in known or name.lower().startswith(_DATA)}


def _tensor_parallel_groups(model: nn.Module, fsdp: Sequence[DeviceMesh]) -> list[dist.ProcessGroup]:
    found: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for mesh in {parameter.device_mesh: None for parameter in model.parameters() if isinstance(parameter, DTensor)}:
        for i in set(range(mesh.ndim)) - _data_dims(mesh, fsdp):
            if mesh.size(i) > 1:
                group = mesh.get_group(i)
                found.setdefault(tuple(dist.get_process_group_ranks(group)), group)
    return list(found.values())


def _data_groups(model: nn.Module, fsdp: Sequence[DeviceMesh]) -> list[dist.ProcessGroup]:
    """Those of a wrapper or of the mesh of FSDP2; none where the model does not say."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return [module.process_group]
        if isinstance(module, FullyShardedDataParallel):
            between_nodes = getattr(module, "_inter_node_pg", None)  # of hybrid sharding
            return [group for group in (module.process_group, between_nodes) if group is not None]
    return [fsdp[0].get_group(i) for i in range(fsdp[0].ndim)] if fsdp else []


def _product(groups: Sequence[dist.ProcessGroup]) -> int:
    return math.prod(dist.get_world_size(group) for group in groups)


@torch.no_grad()
def _local(x: DTensor) -> Tensor:
    """The elements that are here. Of a sum whose terms are in several processes, that sum: they communicate."""
    if any(place.is_partial() for place in x.placements):
        x = x.redistribute(placements=[Replicate() if place.is_partial() else place for place in x.placements])
    return x.to_local().detach()


def _is_sharded(place: Any) -> bool:
    return place.is_shard() or hasattr(place, "split_factor")  # a strided shard, which is_shard() leaves out


def _part(index: Tensor, place: Any, size: int, coordinate: int) -> Tensor:
    """What of an axis is in one of the processes that it is divided among."""
    found = []
    for piece in torch.chunk(index, getattr(place, "split_factor", 1)):
        chunks = torch.chunk(piece, size)
        found += [chunks[coordinate]] if coordinate < len(chunks) else []
    return torch.cat(found) if found else index[:0]


def _origins(x: Tensor) -> Iterator[Any]:
    """The specifications of the DTensors that a tensor was made from, as far as the nearest operations go."""
    nodes = [] if x.grad_fn is None else [x.grad_fn]
    seen = set(nodes)
    for node in nodes:
        spec = getattr(node, "dtensor_spec", None)
        if spec is not None:
            yield spec
        elif len(nodes) < _REACH:
            for before, _ in node.next_functions:
                if before is not None and before not in seen:
                    nodes.append(before)
                    seen.add(before)
