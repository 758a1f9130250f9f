"""When a run draws figures by itself, and of which epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from sppbench.spp import run_figures
from sppbench.spp.run_figures import RunFigures
from sppbench.spp.settings import Settings


def test_figures_are_drawn_after_1_2_4_8_epochs() -> None:
    assert [epoch for epoch in range(40) if Settings().draws_after(epoch)] == [0, 1, 3, 7, 15, 31]
    assert [epoch for epoch in range(40) if Settings(epochs=[9, 2]).draws_after(epoch)] == [2, 9]
    assert not Settings(epochs=()).draws_after(0)


@pytest.mark.parametrize(
    ("epochs", "there", "drawn"),
    [
        (None, [0], [0]),
        (None, [0, 1], [0, 1]),
        (None, [0, 1, 3, 7, 15, 19], [0, 7, 19]),
        ((0, 9, 19), [0, 9, 12], [0, 9, 12]),
    ],
)
@pytest.mark.parametrize("convention", [None, "study"])
def test_panels_show_the_first_the_middle_and_the_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: Any, there: list[int], drawn: list[int], convention: Any
) -> None:
    calls: list[dict[str, Any]] = []

    def plot(frame: pd.DataFrame, **options: Any) -> Figure:
        calls.append(options)
        return Figure((1, 1))

    monkeypatch.setattr(run_figures, "find_plot", lambda name: plot)
    means = pd.DataFrame({"epoch": there, "signal": "gradient"})
    RunFigures(tmp_path / "spp.parquet", epochs, convention).draw_epoch(means, there[-1], 5)
    named = {} if convention is None else {"convention": convention}
    assert calls == [{"epochs": drawn, **named}] * 2
