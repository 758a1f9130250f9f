"""Nets that are trained by several processes (gloo), each in one way of spreading it, and what a process sees of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from sppbench.spp.probe.probe import SignalProbe
from tests.spp.reference import seeded

SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")
STEPS = 2


class Block(nn.Module):
    """Of a transformer, without its attention; widths that two and four processes do not divide evenly."""

    def __init__(self, width: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.SiLU()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(5, 6), nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batch(step: int) -> Tensor:
    """(8, 4, 5), with means that drift over the batch."""
    x = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(step))
    return x + torch.linspace(-2, 2, 8).view(-1, 1, 1)


def train(model: nn.Module, probe: SignalProbe | None, part: int = 0, parts: int = 1) -> pd.DataFrame:
    """Trains with its part of each batch; what the probe saw, or, without one, the losses."""
    optimizer, frames = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step).chunk(parts)[part]).float().square().mean() * 4
        loss.backward()
        optimizer.step()
        frames.append(pd.DataFrame({"loss": [float(loss)]}) if probe is None else probe.collect(loss_scale=4))
    return pd.concat(frames, ignore_index=True)


def sharded(model: Net, mesh: DeviceMesh, **options: Any) -> nn.Module:
    """By FSDP2, each block by itself."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model: Net, mesh: DeviceMesh, sequence: bool = False) -> Net:
    """Column- and row-parallel layers; with ``sequence``, what is between them is divided by position."""
    for block in model.blocks:
        plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        if sequence:
            local = {"use_local_output": False}
            plan = {
                "norm": SequenceParallel(**local),
                "up": ColwiseParallel(input_layouts=Shard(1)),
                "down": RowwiseParallel(output_layouts=Shard(1), **local),
            }
        parallelize_module(block, mesh, plan)
    if sequence:
        first = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False)
        head = ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())
        parallelize_module(model, mesh, {"first": first, "head": head})
    return model


def flattened(model: Net, **options: Any) -> nn.Module:
    """By FSDP1."""
    policy, device = ModuleWrapPolicy({Block}), torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=device, **options)


def with_checkpoints(model: Net) -> Net:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return model


Way = Callable[[Net], nn.Module]


def ways_of_two() -> dict[str, tuple[Way, int]]:
    """How two processes train the net, by name, and into how many parts the batch is divided."""
    mesh = init_device_mesh("cpu", (2,))
    both = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    return {
        "FSDP2": (lambda net: sharded(net, mesh), 2),
        "FSDP2, not resharded": (lambda net: sharded(net, mesh, reshard_after_forward=False), 2),
        "FSDP2, offloaded": (lambda net: sharded(net, mesh, offload_policy=CPUOffloadPolicy(pin_memory=False)), 2),
        "FSDP2, half precision": (lambda net: sharded(net, mesh, mp_policy=half), 2),
        "FSDP2, checkpoints": (lambda net: sharded(with_checkpoints(net), mesh), 2),
        "HSDP": (lambda net: sharded(net, both), 2),
        "tensor parallel": (lambda net: tensor_parallel(net, mesh), 1),
        "sequence parallel": (lambda net: tensor_parallel(net, mesh, sequence=True), 1),
        "FSDP1": (lambda net: flattened(net, use_orig_params=True), 2),
        "FSDP1, not sharded": (
            lambda net: flattened(net, use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD),
            2,
        ),
    }


def ways_of_four() -> dict[str, tuple[Way, int]]:
    """As `ways_of_two`, of four processes."""
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    data, tensor = mesh["dp"], mesh["tp"]
    return {
        "HSDP": (lambda net: sharded(net, hybrid), 4),
        "FSDP2 and tensor parallel": (lambda net: sharded(tensor_parallel(net, tensor), data), 2),
        "FSDP2 and sequence parallel": (lambda net: sharded(tensor_parallel(net, tensor, sequence=True), data), 2),
    }


def seen(way: Way, parts: int, attach_first: bool = False, **options: Any) -> tuple[pd.DataFrame, dict[str, str], bool]:
    """What a probe sees of a net that is trained in a way; what it skips; whether losses are those without a probe."""
    part = dist.get_rank() * parts // dist.get_world_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of FSDP
        plain = train(way(seeded(Net)), None, part, parts)
        net = seeded(Net)
        model = net if attach_first else way(net)
        losses: list[float] = []
        with SignalProbe(model, signals=SIGNALS, **options) as probe:
            model = way(net) if attach_first else model
            model.register_forward_hook(
                lambda module, arguments, output: losses.append(float(output.detach().float().square().mean() * 4))
            )
            frame = train(model, probe, part, parts)
    return frame, dict(probe.skipped), losses == list(plain.loss)
