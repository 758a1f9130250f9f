"""The probe on nets that FSDP and tensor parallelism spread over two processes: the numbers of one process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sppbench.spp.probe.probe import SignalProbe
from tests.processes import in_processes
from tests.spp.probe.lightning_sharding import histories
from tests.spp.probe.sharding import SIGNALS, STEPS, Net, batch, flattened, seen, train, ways_of_two
from tests.spp.reference import same, seeded, select

WORLD = 2
HALF = "FSDP2, half precision"
WAYS = (
    *("FSDP2", "FSDP2, not resharded", "FSDP2, offloaded", "FSDP2, checkpoints", "HSDP"),
    *("tensor parallel", "sequence parallel", "FSDP1", "FSDP1, not sharded"),
)


def worker(rank: int, number: int) -> dict[str, Any]:
    """What a process sees."""
    ways = ways_of_two()
    found: dict[str, Any] = {name: seen(way, parts) for name, (way, parts) in ways.items()}
    found["attached first"] = {name: seen(*ways[name], attach_first=True) for name in ("FSDP2", "sequence parallel")}
    found["alone"] = {name: seen(*ways[name], process_group=None) for name in ("FSDP2", "FSDP1", "tensor parallel")}
    with tempfile.TemporaryDirectory() as directory:
        found["lightning"] = histories(rank, number, Path(directory))
    found["flat"] = seen(lambda net: flattened(net, use_orig_params=False), 2)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes saw."""
    return in_processes(worker, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def expected() -> pd.DataFrame:
    """What one process sees, on the whole batch."""
    net = seeded(Net)
    with SignalProbe(net, signals=SIGNALS) as probe:
        return train(net, probe)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_what_one_sees(found: Any, expected: pd.DataFrame, way: str) -> None:
    for rank in range(WORLD):
        frame, skipped, untouched = found[rank][way]
        same(frame, expected)
        assert not skipped
        assert untouched


@pytest.mark.parametrize("way", ["FSDP2", "sequence parallel"])
def test_a_probe_may_be_attached_before_the_net_is_spread(found: Any, expected: pd.DataFrame, way: str) -> None:
    frame, skipped, untouched = found[0]["attached first"][way]
    same(frame, expected)
    assert not skipped
    assert untouched


def test_under_half_precision_weights_are_the_sharded_ones_and_activations_those_that_were_computed(
    found: Any, expected: pd.DataFrame
) -> None:
    frame, skipped, untouched = found[0][HALF]
    first = frame.step == 0
    same(select(frame[first], "parameter"), select(expected[expected.step == 0], "parameter"))
    net = seeded(Net).to(torch.bfloat16)
    with SignalProbe(net) as probe:
        net(batch(0).to(torch.bfloat16)).float().square().mean().backward()
        half = probe.collect()
    same(select(frame[first], "activation"), select(half, "activation"))
    assert not skipped
    assert untouched


def test_weights_in_other_processes_are_skipped_where_none_may_be_asked(found: Any) -> None:
    for rank in range(WORLD):
        for way, spread in {"FSDP2": 6, "FSDP1": 6}.items():
            frame, skipped, untouched = found[rank]["alone"][way]
            assert select(frame, "parameter").empty
            assert not select(frame, "gradient").empty
            assert {"process_group=None leaves out" in reason for reason in skipped.values()} == {True}
            assert len(skipped) >= spread
            assert untouched


def test_flat_parameters_of_fsdp_are_skipped_with_the_way_out(found: Any, expected: pd.DataFrame) -> None:
    frame, skipped, untouched = found[0]["flat"]
    assert select(frame, "parameter").empty
    assert {"use_orig_params=True" in reason for reason in skipped.values()} == {True}
    for signal in ("activation", "gradient"):
        one, other = (select(each, signal).sort_values(["step", "layer"]) for each in (frame, expected))
        assert one.second_moment.tolist() == pytest.approx(other.second_moment.tolist(), rel=1e-4)
    assert untouched


@pytest.mark.parametrize("way", ["FSDP2", "tensor parallel", "FSDP1"])
def test_lightning_s_strategies_with_the_callback(found: Any, way: str) -> None:
    net = seeded(Net)
    with SignalProbe(net, signals=SIGNALS) as probe:
        optimizer, frames = torch.optim.SGD(net.parameters(), lr=0.1), []
        for step in range(STEPS):
            optimizer.zero_grad()
            net(batch(step)).square().mean().backward()
            optimizer.step()
            frames.append(probe.collect())
    history = found[0]["lightning"][way]
    history["layer"] = history["layer"].str.removeprefix("net.")
    keys = ["step", "layer", "signal"]
    one, other = (each.set_index(keys).sort_index() for each in (history, pd.concat(frames)))
    assert list(one.index) == list(other.index)
    one.index = other.index
    for name in ("acsm", "acv", "mean", "absmax"):
        scale = other["second_moment"] ** (0.5 if name in ("mean", "absmax") else 1)
        assert ((one[name] - other[name]).abs() <= 1e-5 * scale + 1e-12).all()
    assert (one["samples"] == other["samples"]).all()
