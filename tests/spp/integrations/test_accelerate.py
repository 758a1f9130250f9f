"""The recorder in a loop of accelerate: accumulated batches, mixed precision, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sppbench.spp import run_figures
from sppbench.spp.history.reader import read_history
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recorder import Recorder

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def parts() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    data = TensorDataset(torch.randn(48, 4), torch.randint(3, (48,)))
    return model, torch.optim.SGD(model.parameters(), 0.1), DataLoader(data, 8)


def plain(autocast: bool) -> pd.DataFrame:
    model, optimizer, loader = parts()
    frames = []
    with SignalProbe(model) as probe:
        for i, (x, y) in enumerate(loader):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = model(x)
            (nn.functional.cross_entropy(output.float(), y) / 2).backward()
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()
                frames.append(probe.collect())
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_recipe(tmp_path: Path, precision: str) -> None:
    """As the documentation of ``sppbench.spp.integrations`` has it; the second part of it is resumed."""
    for until in (2, 3):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        model, optimizer, loader = accelerator.prepare(*parts())
        with Recorder(model, tmp_path / "run", scaler=accelerator.scaler) as recorder:
            accelerator.register_for_checkpointing(recorder)
            if until == 3:
                accelerator.load_state(tmp_path / "checkpoint")
                loader = accelerator.skip_first_batches(loader, 2)
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    recorder.step()
                    step = recorder.state_dict()["step"]
                    if step == 1:
                        accelerator.save_state(tmp_path / "checkpoint")
                    if step == until:
                        break
    found, expected = read_history(tmp_path / "run" / "spp.parquet"), plain(precision == "bf16")
    keys = ["step", "samples", "layer", "signal"]
    pd.testing.assert_frame_equal(found[keys], expected[keys], check_dtype=False)
    rtol = 1e-5 if precision == "no" else 1e-2
    np.testing.assert_allclose(found["second_moment"], expected["second_moment"], rtol=rtol)
    assert not (tmp_path / "run" / "spp-2.parquet").exists()
