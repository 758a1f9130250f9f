"""The probe in two processes (gloo): the numbers of one process on the whole batch."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sppbench.spp.probe.attention import AttentionProbe
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.processes import Processes
from tests.processes import in_processes
from tests.spp.reference import same, seeded, select

SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")
WORLD = 2


class Net(nn.Module):
    """With means that drift over the batch, and a layer that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)
        self.extra, self.head = nn.Softsign(), nn.Linear(4, 2)

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


def worker(rank: int, world: int) -> dict[str, Any]:
    """What a process sees."""
    parts = [batch(step).chunk(WORLD)[rank] for step in range(2)]
    found: dict[str, Any] = {}
    distributed = nn.parallel.DistributedDataParallel

    inner = seeded(Net)
    with SignalProbe(inner, signals=SIGNALS) as probe:
        found["inner"] = train(distributed(inner), probe, parts)
    for name, options in {"wrapper": {}, "static graph": {"static_graph": True}}.items():
        wrapped = distributed(seeded(Net), **options)
        with SignalProbe(wrapped, signals=SIGNALS) as probe:
            found[name] = train(wrapped, probe, parts)
    compiled = seeded(Net)
    with SignalProbe(compiled, signals=SIGNALS) as probe:
        compiled.compile(backend="eager", fullgraph=True)
        found["compiled"] = train(distributed(compiled), probe, parts)
    group = dist.new_group(list(range(WORLD)))
    for name, chosen in {"group": group, "alone": None}.items():
        with SignalProbe(inner := seeded(Net), signals=SIGNALS, process_group=chosen) as probe:
            found[name] = train(distributed(inner) if chosen else inner, probe, parts)

    model = seeded(Net)
    with SignalProbe(model) as probe:
        model(parts[0].index_fill(0, torch.tensor([0]), float("nan"))).square().mean().backward()
        found["nonfinite"] = probe.collect()
        model(parts[0] if rank == 0 else parts[0] * float("nan")).square().mean().backward()
        found["NaN in one"] = probe.collect()
    found |= attention(rank)
    found |= branches(rank, parts)
    found |= stages(rank, parts)
    return found


class Attending(nn.Module):
    """Two layers of attention, the second of which only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.MultiheadAttention(4, heads, batch_first=True) for heads in (2, 1))

    def forward(self, x: Tensor, second: bool = True) -> Tensor:
        x = self.first(x, x, x)[0]
        return self.second(x, x, x)[0] if second else x


def attention(rank: int) -> dict[str, Any]:
    """With logits of other sizes in each process; then one with a layer that only one runs."""
    x = sequences().chunk(WORLD)[rank]
    model = nn.parallel.DistributedDataParallel(seeded(Attending), find_unused_parameters=True)
    with AttentionProbe(model, multihead=True) as probe:
        model(x).sum().backward()
        found = probe.collect()
        model(x, second=rank == 0).sum().backward()
        branch = probe.collect()
    with AttentionProbe(model.module, multihead=True, process_group=None) as probe:
        model.module(x).sum().backward()
        return {"attention": found, "attention branch": branch, "attention alone": probe.collect()}


def sequences() -> Tensor:
    x = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(0.5, 3, 8).view(-1, 1, 1)


def branches(rank: int, parts: list[Tensor]) -> dict[str, Any]:
    """A layer that only one process runs, then one that runs nothing."""
    model = nn.parallel.DistributedDataParallel(seeded(Net), find_unused_parameters=True)
    log = listen("sppbench.spp.probe.readings")
    with SignalProbe(model) as probe:
        for step in range(2):
            model(parts[step], extra=rank == 0).square().mean().backward()
            found = {"branch": probe.collect()}
        messages = len(log)
        if rank == 0:
            model.module(parts[0]).square().mean().backward()
        found["idle"] = probe.collect()
    return found | {"messages": messages}


def stages(rank: int, parts: list[Tensor]) -> dict[str, Any]:
    """Each process has another net, as stages of a pipeline are."""
    stage = nn.ModuleDict({f"stage{rank}": nn.Linear(6, 6)})[f"stage{rank}"]
    net = nn.Sequential()
    net.add_module(f"stage{rank}", stage)
    log = listen("sppbench.spp.probe.probe")
    with SignalProbe(net) as probe:
        frames = []
        for x in parts:
            net(x).square().mean().backward()
            frames.append(len(probe.collect()))
    with SignalProbe(net, process_group=None) as probe:
        net(parts[0]).square().mean().backward()
        return {"stages": frames, "stage": len(probe.collect()), "refused": [one.getMessage() for one in log]}


def listen(logger: str) -> list[logging.LogRecord]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    return records


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes saw."""
    return in_processes(worker, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["inner", "wrapper", "static graph", "compiled"])
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
    largest = [found[rank]["NaN in one"].absmax for rank in range(WORLD)]
    assert all(one[found[0]["nonfinite"].signal == "activation"].isna().all() for one in largest)


def test_a_group_that_is_given_is_added_up_over_and_none_asks_nobody(found: Any) -> None:
    pd.testing.assert_frame_equal(found[0]["group"], found[0]["inner"], check_exact=True)
    for rank in range(WORLD):
        model = seeded(Net)
        with SignalProbe(model, signals=SIGNALS) as probe:
            same(found[rank]["alone"], train(model, probe, [batch(step).chunk(WORLD)[rank] for step in range(2)]))


def test_a_layer_that_one_process_runs_is_recorded_over_what_went_through_it(found: Any) -> None:
    pd.testing.assert_frame_equal(found[0]["branch"], found[1]["branch"], check_exact=True)
    model = seeded(Net)
    with SignalProbe(model) as probe:
        for step in range(2):
            model(batch(step).chunk(WORLD)[0], extra=True).square().mean().backward()
            expected = probe.collect()
    branch, alone = (select(frame, "activation", "extra") for frame in (found[0]["branch"], expected))
    assert branch.second_moment.item() == pytest.approx(alone.second_moment.item(), rel=1e-6)
    gradient, alone = (select(frame, "gradient", "extra") for frame in (found[0]["branch"], expected))
    assert gradient.second_moment.item() == pytest.approx(alone.second_moment.item() / WORLD**2, rel=1e-6)
    assert set(select(found[0]["branch"], "activation").layer) >= {"conv", "head", "extra"}
    assert found[0]["messages"] == found[1]["messages"] == 1


def test_a_process_that_runs_nothing_ends_no_other(found: Any) -> None:
    pd.testing.assert_frame_equal(found[0]["idle"], found[1]["idle"], check_exact=True)
    assert set(found[0]["idle"].samples) == {4}


def test_attention_of_two_processes_is_that_of_one_on_the_whole_batch(found: Any) -> None:
    pd.testing.assert_frame_equal(found[0]["attention"], found[1]["attention"], check_exact=True)
    pd.testing.assert_frame_equal(found[0]["attention"], attention_of(sequences()))
    for rank in range(WORLD):
        pd.testing.assert_frame_equal(found[rank]["attention alone"], attention_of(sequences().chunk(WORLD)[rank]))
    branch = found[0]["attention branch"].drop(columns="step")
    pd.testing.assert_frame_equal(branch, found[1]["attention branch"].drop(columns="step"), check_exact=True)
    first, second = (branch[branch.layer == layer].reset_index(drop=True) for layer in ("first", "second"))
    whole, half = (attention_of(x).drop(columns="step") for x in (sequences(), sequences().chunk(WORLD)[0]))
    pd.testing.assert_frame_equal(first, whole[whole.layer == "first"].reset_index(drop=True))
    pd.testing.assert_frame_equal(second, half[half.layer == "second"].reset_index(drop=True))


def attention_of(x: Tensor) -> pd.DataFrame:
    model = seeded(Attending)
    with AttentionProbe(model, multihead=True) as probe:
        model(x).sum().backward()
        return probe.collect()


def test_processes_with_different_nets_are_refused_in_one_line_and_go_on(found: Any) -> None:
    for rank in range(WORLD):
        assert found[rank]["stages"] == [0, 0]
        (message,) = found[rank]["refused"]
        assert "stages of a pipeline" in message
        assert "process_group" in message
        assert "\n" not in message
        assert found[rank]["stage"] == 3


def test_a_pipeline_stage_is_refused_in_one_line() -> None:
    class PipelineStage:
        pass

    with pytest.raises(TypeError, match=r"not into a PipelineStage; give each stage's submod a probe"):
        SignalProbe(PipelineStage())  # type: ignore[arg-type]


def test_processes_are_those_that_are_found_after_a_compiled_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass of a compiled net says that it begins: the net may have been spread since the probe was attached."""
    model, seen = nn.Sequential(nn.Linear(3, 2)), []
    with SignalProbe(model) as probe:
        later = Processes()
        monkeypatch.setattr(probe._spread, "find", lambda: setattr(probe._spread, "processes", later))
        monkeypatch.setattr(probe, "_reduce", lambda *arguments: seen.append(arguments[4]) or ((), None))
        model.compile(backend="aot_eager", fullgraph=True)
        model(torch.ones(4, 3)).sum().backward()
        probe.collect()
    assert seen[0] is later
