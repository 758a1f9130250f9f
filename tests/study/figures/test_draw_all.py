"""The study's figures from runs whose curves are known: what is drawn, what is said, and which reading fits."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sppbench.evidence.keep import write_compact
from sppbench.evidence.selection import read_evidence
from sppbench.study.figures.draw_all import draw_figures, used_runs
from sppbench.study.figures.drawing import Drawing
from sppbench.study.figures.figure_output import all_curves, write_figures
from tests.fabricate.figures import FIGURE1, figure1, gradient, write_ffnn
from tests.fabricate.histories import ffnn_layers, write_signals

OFF_100, OFF_512, ON_512 = "ffnn_bn_noaffine_h100", "ffnn_bn_noaffine", "ffnn_bn"


@pytest.fixture(autouse=True)
def _no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of claim C2 have tests of their own."""
    monkeypatch.setattr("sppbench.study.figures.draw_all.draw_scale", lambda evidence: ([], []))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figure 1 as published at h = 100, a fifth of it at h = 512, two seeds; Figure 3's net, where nothing fits."""
    path = tmp_path_factory.mktemp("outputs") / "figures"
    for seed, shift in ((868, 1.0), (67, 10**0.02)):
        write_ffnn(path, OFF_100, seed, gradient(figure1, shift))
        write_ffnn(path, OFF_512, seed, gradient(figure1, shift / 5))
    write_ffnn(path, "ffnn", 67, lambda *_: (0.5, 0.5), layers=ffnn_layers(batch_norm=False))
    return path


def draw(path: Path) -> tuple[dict[str, Drawing], list[str]]:
    drawings, notes = draw_figures(read_evidence(path))
    return {drawing.name: drawing for drawing in drawings}, notes


@pytest.fixture(scope="module")
def drawn(whole: Path) -> tuple[dict[str, Drawing], list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sppbench.study.figures.draw_all.draw_scale", lambda evidence: ([], []))
        return draw(whole)


def test_what_there_are_runs_for_is_drawn_in_both_conventions(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    names = [
        f"{name}{suffix}" for name in ("figure1_h100", "figure1_h512", "figure3") for suffix in ("", "_definition")
    ]
    assert list(drawn[0]) == names


def test_curves_are_what_was_recorded(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    for name, share in (("figure1_h100", 1.0), ("figure1_h100_definition", 0.01)):
        curves = drawn[0][name].curves
        assert list(curves.columns) == ["panel", "curve", "x", "name", "value", "low", "high"]
        expected = {
            (f"Epoch {epoch}", depth, layer): share * figure1(layer, depth, epoch)
            for epoch in FIGURE1
            for depth, (layer, _) in enumerate(ffnn_layers())
        }
        found = curves.set_index(["curve", "x", "name"])["value"].to_dict()
        assert found == pytest.approx(expected, rel=1e-6)
        assert curves[["low", "high"]].isna().all(axis=None)
        assert set(curves["panel"]) == {panel.name for panel in drawn[0][name].panels} == {"gradients, ACSM"}


def test_the_figure_shows_the_curves(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    for name, shape in (("figure1_h512", (1, 1)), ("figure3", (3, 2)), ("figure3_definition", (3, 2))):
        drawing = drawn[0][name]
        axes = [ax for ax in drawing.figure.axes if ax.get_lines() and ax.get_ylabel()]
        places = [(panel.row, panel.column) for panel in drawing.panels]
        assert places == [tuple(place) for place in np.ndindex(shape)]
        for panel, ax in zip(drawing.panels, axes, strict=True):
            assert ax.get_ylabel().replace("\n", ": ") == panel.y_label
            assert ax.get_yscale() == panel.y_scale
            rows = drawing.curves[drawing.curves["panel"] == panel.name]
            lines = {line.get_label(): line for line in ax.get_lines() if str(line.get_label()).startswith("Epoch")}
            assert list(lines) == list(rows["curve"].unique()) == ["Epoch 0", "Epoch 9", "Epoch 19"]
            for curve, of_curve in rows.groupby("curve"):
                np.testing.assert_array_equal(lines[str(curve)].get_xdata(), of_curve["x"])
                np.testing.assert_array_equal(lines[str(curve)].get_ydata(), of_curve["value"])


def test_figure_and_caption_say_what_is_drawn(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    study, definition = drawn[0]["figure1_h100"], drawn[0]["figure1_h100_definition"]
    for drawing in (study, definition):
        title = drawing.figure.legends[0].get_title().get_text()
        assert "ffnn_bn_noaffine_h100, learning rate 0.001, seed 868" in title
        assert "ffnn_bn_noaffine_h100, learning rate 0.001, seed 868" in drawing.caption
        assert "mean over 2 steps of the epoch: all batches, the partial one included" in title
        assert "mean over 2 steps of the epoch: all batches, the partial one included" in drawing.caption
    assert "by the study's convention" in study.caption
    assert study.panels[0].y_label == "gradients: second moment mean(x²)"
    assert "by definition" in definition.caption
    assert "by definition" in definition.title
    assert definition.panels[0].y_label == "gradients: ACSM mean_c(mean(x)²)"
    assert "Swish" not in study.caption


def test_the_studys_first_seed_is_drawn_or_else_the_smallest(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    assert "seed 868" in drawn[0]["figure1_h100"].title + drawn[0]["figure1_h100"].caption
    assert "seed 67" in drawn[0]["figure3"].caption


def test_matches(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    fits, narrow = drawn[0]["figure1_h100"].matches, drawn[0]["figure1_h512"].matches
    assert [match.agrees for match in fits] == [True] * 7
    assert "(2 seeds: 0.000 to 0.020)" in fits[0].ours
    assert [match.agrees for match in narrow] == [False] + [True] * 6
    assert narrow[0].ours.startswith(
        f"{math.log10(5):.3f} (2 seeds: {math.log10(5) - 0.02:.3f} to {math.log10(5):.3f})"
    )
    assert not drawn[0]["figure1_h100_definition"].matches


def test_readings_find_the_width_the_averaging_and_the_convention(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    readings = {reading.reading: reading for reading in drawn[0]["figure1_h512"].readings}
    assert readings == {reading.reading: reading for reading in drawn[0]["figure1_h100"].readings}
    assert len(readings) == 4 * 2 * 2
    best = [reading for reading in readings.values() if reading.best]
    assert [reading.reading for reading in best] == ["h = 100, affine off; all batches; study's convention"]
    expected = {
        "h = 100, affine off; all batches; study's convention": 0.0,
        "h = 100, affine off; full batches only; study's convention": math.log10(2),
        "h = 100, affine off; all batches; by definition": 2.0,
        "h = 512, affine off; all batches; study's convention": math.log10(5),
        "h = 512, affine off; full batches only; by definition": math.log10(2 * 5 * 100),
    }
    for name, value in expected.items():
        assert readings[name].value == pytest.approx(value, abs=1e-6)
        assert readings[name].n == 2
        assert readings[name].spread == pytest.approx(tuple(sorted((value, abs(value - 0.02)))), abs=1e-6)
    lacking = readings["h = 512, affine on; all batches; study's convention"]
    assert (lacking.value, lacking.n, lacking.note) == (None, 0, "no usable run of ffnn_bn")


def test_the_numbers_of_layers_are_tried_with_and_without_merges(tmp_path: Path) -> None:
    layers = [(f"layer{i}", "Conv2d") for i in range(60)]
    layers[5] = ("merge", "MPScale")
    spikes = {"layer8": 5.0, "layer9": 6.0, "layer11": 3.0, "layer18": 2.0, "classifier.1": 9.0}

    def statistics(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        return spikes.get(layer, 1.0), spikes.get(layer, 1.0)

    run = write_ffnn(tmp_path, "sn_efficientnet_mp", 868, statistics, layers=[*layers, ("classifier.1", "Linear")])
    shutil.rmtree(run / "spp.parquet")
    # Peaks at the study's number 8 (layer 9 with the merge) and at 17 (layer 18).
    spikes.update({"layer8": 1.0, "layer11": 1.0})
    write_signals(run, statistics, layers=[*layers, ("classifier.1", "Linear")])
    readings = {reading.reading: reading for reading in draw(tmp_path)[0]["figure5"].readings}
    without, with_merges = (readings[f"sums and gates are {text} as layers"] for text in ("not counted", "counted"))
    assert without.best
    assert not with_merges.best
    assert "17 is layer18" in without.note
    assert "17 is layer17" in with_merges.note


def test_missing_runs_come_with_the_command_for_them(drawn: tuple[dict[str, Drawing], list[str]]) -> None:
    notes = drawn[1]
    assert "figure4 cannot be drawn: there is no usable run of efficientnet_bn at learning rate 0.001" in notes
    assert (
        f"{OFF_100} lacks seeds 472, 362, 970: python -m sppbench.train -m sweeps=figures model={OFF_100} "
        "seed=472,362,970"
    ) in notes
    assert (
        "efficientnet_bn lacks seed 868: python -m sppbench.train -m sweeps=figures model=efficientnet_bn seed=868"
    ) in notes


def test_compact_runs_give_the_same_curves(
    whole: Path, drawn: tuple[dict[str, Drawing], list[str]], tmp_path: Path
) -> None:
    for run in used_runs(read_evidence(whole)):
        write_compact(run, tmp_path / "results")
    assert not list(tmp_path.rglob("spp.parquet"))
    again, notes = draw(tmp_path / "results")
    pd.testing.assert_frame_equal(
        all_curves(list(drawn[0].values())), all_curves(list(again.values())), check_exact=True
    )
    assert [drawing.matches for drawing in again.values()] == [drawing.matches for drawing in drawn[0].values()]
    assert [drawing.readings for drawing in again.values()] == [drawing.readings for drawing in drawn[0].values()]
    assert notes == drawn[1]


def test_damaged_histories_are_told_and_the_others_drawn(
    whole: Path, drawn: tuple[dict[str, Drawing], list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "figures"
    shutil.copytree(whole, path)
    damaged = path / OFF_100 / "lr=0.001" / "seed=868" / "spp.parquet"
    for part in damaged.iterdir():
        part.write_bytes(b"PAR1 half a file")
    (path / OFF_512 / "lr=0.001" / "seed=868" / "result.json").write_text('{"status": "compl')
    drawings, notes = draw(path)
    assert list(drawings) == list(drawn[0])
    assert "seed 67" in drawings["figure1_h100"].caption
    assert any(note.startswith(f"not drawn: {OFF_100}, seed 868: ") and str(damaged) in note for note in notes)
    assert any("result.json" in note and OFF_512 in note for note in notes)


def test_a_damaged_net_costs_only_its_own_figure(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures"
    shutil.copytree(whole, path)
    for file in (path / OFF_100).rglob("*.parquet"):
        if file.is_file():
            file.write_bytes(b"PAR1 half a file")
    drawings, notes = draw(path)
    assert list(drawings) == ["figure1_h512", "figure1_h512_definition", "figure3", "figure3_definition"]
    assert f"figure1_h100 cannot be drawn: there is no usable run of {OFF_100} at learning rate 0.001" in notes


def test_values_that_are_not_finite_are_told_and_leave_gaps(tmp_path: Path) -> None:
    def dying(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        return (math.nan, math.nan) if epoch == 19 else gradient(figure1)(layer, depth, epoch, signal)

    run = write_ffnn(tmp_path, OFF_100, 868, dying)
    drawings, notes = draw(tmp_path)
    [note] = [note for note in notes if "not finite" in note]
    assert note.startswith(f"{run} has 77 of 231 epoch means that are not finite, first the activation of flatten in ")
    drawing = drawings["figure1_h100"]
    curves = drawing.curves.set_index("curve")["value"]
    assert curves["Epoch 19"].isna().all()
    assert np.isfinite(curves["Epoch 9"]).all()
    assert drawing.matches[0].agrees is None
    assert not any(reading.best for reading in drawing.readings)


def test_a_run_with_other_layers_than_its_fellows_is_left_out(tmp_path: Path) -> None:
    odd = write_ffnn(tmp_path, ON_512, 868, gradient(figure1), layers=ffnn_layers()[:-1])
    for seed in (67, 472):
        write_ffnn(tmp_path, ON_512, seed, gradient(figure1))
    drawings, notes = draw(tmp_path)
    assert f"not drawn: {odd} has 28 layers, not the 29 that the other seeds of {ON_512} have" in notes
    assert "seed 67" in drawings["figure2_h512"].caption
    assert len(drawings["figure2_h512"].curves) == 29 * 3


def test_runs_that_depart_from_the_protocol_do_not_count(tmp_path: Path) -> None:
    write_ffnn(tmp_path, ON_512, 868, gradient(figure1), overrides=("trainer.max_epochs=8",))
    write_ffnn(tmp_path, OFF_512, 868, gradient(figure1), overrides=("model.hidden_features=400",))
    write_ffnn(tmp_path, "ffnn", 868, gradient(figure1), overrides=("data=digits",))
    drawings, notes = draw(tmp_path)
    assert not drawings
    assert any("does not count" in note and "trainer.max_epochs is 8" in note for note in notes)
    assert any("does not count" in note and "model.hidden_features is 400" in note for note in notes)
    assert not any("Digits" in note for note in notes), "runs on other data are no runs of these figures"


def test_nothing_to_draw(tmp_path: Path) -> None:
    drawings, notes = draw(tmp_path)
    assert not drawings
    assert len([note for note in notes if "cannot be drawn" in note]) == 7


def test_swish_is_told(tmp_path: Path) -> None:
    layers = [("features.0.0", "Conv2d"), ("features.0.2", "SiLU"), ("classifier.1", "Linear")]
    write_ffnn(tmp_path, "efficientnet_bn", 868, lambda *_: (0.5, 0.5), layers=layers, ndim=4)
    drawing = draw(tmp_path)[0]["figure4"]
    text = "For Swish the study recorded the inner sigmoid; here it is the activation's output"
    assert text in drawing.caption
    assert text in drawing.figure.legends[0].get_title().get_text()


def failing(*arguments: object, **keywords: object) -> None:
    raise RuntimeError("latex was not found\non this machine")


@pytest.mark.parametrize("fault", ["plot_gradient", "match_figure", "try_readings"])
def test_a_figure_that_cannot_be_drawn_is_a_note_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    module = "figures_1_to_5" if fault == "plot_gradient" else "draw_all"
    original = getattr(importlib.import_module(f"sppbench.study.figures.{module}"), fault)
    calls = itertools.count()

    def first_fails(*arguments: Any, **keywords: Any) -> Any:
        return (failing if next(calls) == 0 else original)(*arguments, **keywords)

    monkeypatch.setattr(f"sppbench.study.figures.{module}.{fault}", first_fails)
    write_ffnn(tmp_path, OFF_100, 868, gradient(figure1))
    drawings, notes = draw(tmp_path)
    assert list(drawings) == ["figure1_h100_definition"]
    assert "figure1_h100 cannot be drawn: RuntimeError: latex was not found on this machine" in notes


def test_a_figure_that_cannot_be_saved_is_a_note_and_the_others_are_written(tmp_path: Path) -> None:
    write_ffnn(tmp_path / "runs", OFF_100, 868, gradient(figure1))
    found, notes = draw_figures(read_evidence(tmp_path / "runs"))
    drawings = [dataclasses.replace(drawing, figure=Figure((1, 1))) for drawing in found]  # quick to save
    drawings[0].figure.savefig = failing  # type: ignore[method-assign]
    paths, problems = write_figures(drawings, notes, [], tmp_path)
    text = "figure1_h100 cannot be drawn: RuntimeError: latex was not found on this machine"
    assert problems == [text]
    others = {f"{drawing.name}.{suffix}" for drawing in drawings[1:] for suffix in ("png", "pdf")}
    assert {path.name for path in paths if path.suffix != ".md"} == others | {"curves.parquet", "matches.json"}
    assert all(path.is_file() for path in paths)
    assert text in json.loads((tmp_path / "matches.json").read_text())["notes"]
