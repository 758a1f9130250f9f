"""Which steps are recorded, and that a history knows which ones it should have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from sppbench.spp import run_figures
from sppbench.spp.history.parts import origin_of
from sppbench.spp.history.reader import check_end, read_batchnorm, read_history
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recorder import Recorder
from sppbench.spp.schedule import Schedule
from tests.spp.history.imagined import rows


def powers_of_two(step: int) -> bool:
    return step & (step - 1) == 0


SCHEDULES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, list(range(12))),
    ({"every_n_steps": 5}, [0, 5, 10]),
    ({"start": 3, "stop": 6}, [3, 4, 5]),
    ({"every_n_steps": 4, "start": 3}, [4, 8]),
    ({"every_n_steps": powers_of_two}, [0, 1, 2, 4, 8]),
    ({"every_n_steps": powers_of_two, "start": 2, "stop": 8}, [2, 4]),
    ({"stop": 0}, []),
]
schedules = pytest.mark.parametrize(("options", "steps"), SCHEDULES)


@pytest.fixture(autouse=True)
def _empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))


@schedules
def test_a_schedule_is_a_function_of_the_step(options: dict[str, Any], steps: list[int]) -> None:
    schedule = Schedule(**options)
    assert [step for step in range(12) if schedule(step)] == steps
    for begin in range(12):
        for end in range(begin, 13):
            assert schedule.first(begin, end) == next((step for step in steps if begin <= step < end), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be an integer of at least 1; got 0"),
        ({"every_n_steps": None}, "every_n_steps must be an integer of at least 1; got None"),
        ({"start": -1}, "start must be an integer of at least 0; got -1"),
        ({"stop": 1.5}, "stop must be an integer of at least 0; got 1.5"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())


def training(model: nn.Module, end: int = 12, begin: int = 0) -> Iterator[int]:
    """Steps; each ends when the next one is asked for."""
    for step in range(begin, end):
        model(torch.full((4, 2), float(step)) + torch.arange(8).view(4, 2)).square().mean().backward()
        yield step


@schedules
def test_probes_record_these_steps(options: dict[str, Any], steps: list[int]) -> None:
    model = net()
    with SignalProbe(model, **options) as probe, BatchNormProbe(model, **options) as gains:
        assert [step for step in training(model) if len(probe.collect()) + len(gains.collect())] == steps


def test_a_compiled_graph_is_guarded_by_it() -> None:
    """One graph for steps that are recorded, one for those that are not, and no other."""
    torch.compiler.reset()
    model, graphs = net(), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with SignalProbe(model, every_n_steps=powers_of_two, stop=6) as probe:
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        recorded = []
        for step in range(12):
            compiled(torch.randn(4, 2)).sum().backward()
            if len(probe.collect()):
                recorded.append(step)
    assert recorded == [0, 1, 2, 4]
    assert len(graphs) == 2


@schedules
def test_a_history_that_ends_early_is_known(tmp_path: Path, options: dict[str, Any], steps: list[int]) -> None:
    """By its metadata: no reader has the function."""
    model = net()
    with Recorder(model, tmp_path, flush_every_n_steps=2, **options) as recorder:
        for step in training(model):
            recorder.step()
            if step == 6:
                recorder.state_dict()  # a checkpoint
    for read, name in ((read_history, "spp.parquet"), (read_batchnorm, "batchnorm.parquet")):
        if not steps:
            assert origin_of(tmp_path / name) is None
            continue
        assert sorted(set(read(tmp_path / name)["step"])) == steps
        check_end(tmp_path / name, 12)
        further = Schedule(**options).first(12, 40)
        if further is not None:
            with pytest.raises(HistoryError, match="the last ones of its run"):
                check_end(tmp_path / name, 40)
        elif "stop" in options:
            check_end(tmp_path / name, 40)


@schedules
@pytest.mark.parametrize("at", [3, 7])
def test_a_resumed_run_misses_nothing_that_was_not_to_be_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], steps: list[int], at: int
) -> None:
    state: dict[str, Any] | None = None
    for begin, end in ((0, at), (at, 12)):
        model = net()
        with Recorder(model, tmp_path, **options) as recorder:
            if state is not None:
                recorder.load_state_dict(state)
            for _ in training(model, end, begin):
                recorder.step()
            state = recorder.state_dict()
    assert caplog.records == []
    if steps:
        assert sorted(set(read_history(tmp_path / "spp.parquet")["step"])) == steps
        check_end(tmp_path / "spp.parquet", 12)


@pytest.mark.parametrize("every", [1, powers_of_two])
def test_a_lost_part_is_a_gap(tmp_path: Path, every: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spp.parquet"
    writer = HistoryWriter(path, every_n_steps=every)
    for step in (0, 1, 2, 4, 8):
        writer._table = None  # each step in a part of its own
        writer.append(rows(step, step + 1), end=step + 1)
        writer.cover(step + 1)
    writer.cover(12)
    (path / "steps-000000002.parquet").unlink()
    with pytest.raises(HistoryError, match="lacks the steps 2 to"):
        read_history(path)
    HistoryWriter(path, every_n_steps=every, resume_at=12)
    assert "lacks the steps 2 to 2" in caplog.text
