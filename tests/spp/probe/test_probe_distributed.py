"""The probe in two processes (gloo): the numbers of one process on the whole batch."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sppbench.spp.probe.probe import SignalProbe
from tests.spp.reference import same, seeded, select

SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")
WORLD = 2


class Net(nn.Module):
    """With means that drift over the batch, and a layer that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)
        self.extra, self.head = nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: Tensor, extra: bool = False) -> Tensor:
        x = self.act(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.extra(x) if extra else x)


def batch(step: int) -> Tensor:
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step))
    return x + torch.linspace(-2, 2, 8).view(-1, 1, 1, 1)


def train(called: Any, probe: SignalProbe, parts: list[Tensor]) -> pd.DataFrame:
    """A step for each part of the batch that this process gets."""
    optimizer = torch.optim.SGD(called.parameters(), lr=0.1)
    frames = []
    for x in parts:
        optimizer.zero_grad()
        (called(x).square().mean() * 4).backward()
        optimizer.step()
        frames.append(probe.collect(loss_scale=4))
    return pd.concat(frames, ignore_index=True)


def worker(rank: int, port: int, directory: str) -> None:
    """What each process does; what it saw is left in a file."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    parts = [batch(step).chunk(WORLD)[rank] for step in range(2)]
    found: dict[str, Any] = {}

    inner = seeded(Net)
    with SignalProbe(inner, signals=SIGNALS) as probe:
        found["inner"] = train(nn.parallel.DistributedDataParallel(inner), probe, parts)
    wrapped = nn.parallel.DistributedDataParallel(seeded(Net))
    with SignalProbe(wrapped, signals=SIGNALS) as probe:
        found["wrapper"] = train(wrapped, probe, parts)
    compiled = seeded(Net)
    with SignalProbe(compiled, signals=SIGNALS) as probe:
        compiled.compile(backend="aot_eager", fullgraph=True)
        found["compiled"] = train(nn.parallel.DistributedDataParallel(compiled), probe, parts)

    model = seeded(Net)
    with SignalProbe(model) as probe:
        model(parts[0].index_fill(0, torch.tensor([0]), float("nan"))).square().mean().backward()
        found["nonfinite"] = probe.collect()
        model(parts[0], extra=rank == 0).square().mean().backward()
        with pytest.raises(RuntimeError, match="have not recorded the same layers"):
            probe.collect()
        model(parts[0]).square().mean().backward()
        found["afterwards"] = probe.collect()
    Path(directory, f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, pd.DataFrame]]:
    """What the two processes saw."""
    directory = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(worker, (port, str(directory)), nprocs=WORLD, start_method="spawn")
    return [pickle.loads((directory / f"{rank}.pickle").read_bytes()) for rank in range(WORLD)]


@pytest.mark.parametrize("name", ["inner", "wrapper", "compiled"])
@pytest.mark.parametrize("rank", range(WORLD))
def test_two_processes_see_what_one_sees_on_the_whole_batch(found: Any, name: str, rank: int) -> None:
    model = seeded(Net)
    with SignalProbe(model, signals=SIGNALS) as probe:
        expected = train(model, probe, [batch(step) for step in range(2)])
    same(found[rank][name], expected)
    assert set(found[rank][name].samples) == {8}
    assert len(select(found[rank][name], "update")) == 6
    pd.testing.assert_frame_equal(found[0][name], found[1][name], check_exact=True)


def test_elements_that_are_not_finite_are_counted_over_all_processes(found: Any) -> None:
    frame = found[0]["nonfinite"]
    assert select(frame, "activation", "conv").nonfinite.item() == WORLD * 4 * 4 * 4
    assert set(select(frame, "parameter").nonfinite) == {0}


def test_probe_is_usable_after_a_step_in_which_the_processes_differed(found: Any) -> None:
    assert set(found[0]["afterwards"].step) == {2}
