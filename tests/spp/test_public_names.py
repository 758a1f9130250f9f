"""The public names of the library: found by completion, and each with an example that runs."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import sppbench.spp
from sppbench.spp import run_figures
from sppbench.spp.history.writer import BatchNormWriter

STUB = Path(sppbench.spp.__file__).with_name("__init__.pyi")
NAMES = [
    alias.asname or alias.name
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]
TRAINED = {"SPPCallback"}  # its tests train; the example's trainer would write and print


def test_all_public_names_are_there() -> None:
    assert len(NAMES) == len(set(NAMES)) > 10
    assert set(NAMES) <= set(dir(sppbench.spp))
    assert sorted(sppbench.spp.__all__) == sorted(NAMES)
    with pytest.raises(AttributeError, match="nowhere"):
        sppbench.spp.nowhere  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_each_name_can_be_imported_and_shows_an_example(name: str) -> None:
    documentation = getattr(sppbench.spp, name).__doc__
    assert "Example:\n" in documentation
    assert ">>> " in documentation


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples begin with: a net, two batches, and what a run has recorded below the working directory."""
    monkeypatch.chdir(tmp_path)
    # Those of a whole run take seconds.
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(2)]
    criterion = nn.CrossEntropyLoss()
    signals, gains = sppbench.spp.HistoryWriter("run/spp.parquet"), BatchNormWriter("run/batchnorm.parquet")
    with sppbench.spp.SignalProbe(model) as probe, sppbench.spp.BatchNormProbe(model) as batchnorm_probe:
        for x, y in batches:
            criterion(model(x), y).backward()
            signals.append(probe.collect())
            gains.append(batchnorm_probe.collect())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "batches": batches, "criterion": criterion, "optimizer": optimizer}


@pytest.mark.parametrize("name", sorted(set(NAMES) - TRAINED))
def test_the_examples_are_right(name: str, training: dict[str, Any]) -> None:
    public = {other: getattr(sppbench.spp, other) for other in NAMES if other not in TRAINED}
    documentation = inspect.getdoc(public[name])
    assert documentation is not None
    example = doctest.DocTestParser().get_doctest(documentation, {**public, **training}, name, None, None)
    assert example.examples
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)
