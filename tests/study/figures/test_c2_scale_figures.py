"""The figures of claim C2: the drawn values and bands are those of runs whose ratios and spread are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from sppbench.evidence.profiles import gradient_profile, log_profiles, paired_ratio
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.evidence.selection import Evidence
from sppbench.study.figures.c2_scale_figures import draw_scale
from sppbench.study.figures.drawing import Drawing
from tests.fabricate.histories import ffnn_layers, write_signals

SEEDS = (1, 2, 3)
# Of seeds: what all their nets share, which pairs must cancel, and in what on differs from off.
SHARED = {1: -2.0, 2: 0.0, 3: 2.0}
SPREAD = {1: -0.1, 2: 0.0, 3: 0.1}
T_2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table
REACH = T_2 * 0.1 / math.sqrt(3)  # half a 95 % interval of the mean of SPREAD, whose standard deviation is 0.1

Value = Callable[[str, int, int, int], float]  # (layer, depth, epoch, seed) -> second moment of the gradient


def base(layer: str, depth: int, epoch: int) -> float:
    return 1e-7 * (1 + depth) * (1 + epoch)


def on_off(layer: str) -> float:
    return 0.5 if layer.endswith("activation") else 0.8


def times(factor: Callable[[str], float], spread: Mapping[int, float] | None = None) -> Value:
    def value(layer: str, depth: int, epoch: int, seed: int) -> float:
        return base(layer, depth, epoch) * factor(layer) * math.exp(SHARED[seed] + (spread or {}).get(seed, 0.0))

    return value


NETS: dict[str, Value] = {
    "ffnn_bn_noaffine": times(lambda layer: 1.0),
    "ffnn_bn": times(on_off, SPREAD),
    "ffnn_bn_noaffine_h100": times(lambda layer: 4.0),
    "ffnn_bn_h100": times(lambda layer: 3 * on_off(layer), SPREAD),
}
INTERVENTIONS: dict[str, Value] = {
    "ffnn_bn_scale": times(lambda layer: 0.7, SPREAD),
    "ffnn_bn_shift": times(lambda layer: 0.9, SPREAD),
}


def write(
    directory: Path,
    model: str,
    seed: int,
    value: Value,
    layers: Sequence[tuple[str, str]] | None = None,
    epochs: Sequence[int] = (0, 9, 19),
    scales: Sequence[float] | None = None,
) -> Run:
    path = directory / model / "lr=0.001" / f"seed={seed}"

    def statistics(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        moment = value(layer, depth, epoch, seed) if signal == "gradient" else 1e3
        return 0.25 * moment, 0.75 * moment

    write_signals(path, statistics, layers, epochs, scales=scales)
    return Run(path, "figures", model, 0.001, seed, {}, "completed", None, None)


def fabricate(directory: Path, nets: Mapping[str, Value], seeds: Mapping[str, Sequence[int]] | None = None) -> Evidence:
    runs = [
        write(directory, model, seed, value)
        for model, value in nets.items()
        for seed in (seeds or {}).get(model, SEEDS)
    ]
    return Evidence(directory, tuple(runs), ())


def drawn(evidence: Evidence) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in draw_scale(evidence)[0]}


def curve(drawing: Drawing, panel: str, name: str) -> pd.DataFrame:
    rows = drawing.curves[(drawing.curves["panel"] == panel) & (drawing.curves["curve"] == name)]
    assert len(rows), f"{name!r} is not in {panel!r}"
    return rows.set_index("name")


def axes(drawing: Drawing, title: str) -> Axes:
    return next(ax for ax in drawing.figure.axes if ax.get_title() == title)


def assert_band(rows: pd.DataFrame, value: Callable[[str], float], reach: float) -> None:
    expected = np.array([value(str(layer)) for layer in rows.index])
    np.testing.assert_allclose(rows["value"], expected, rtol=1e-6)
    np.testing.assert_allclose(rows["low"], expected * math.exp(-reach), rtol=1e-6)
    np.testing.assert_allclose(rows["high"], expected * math.exp(reach), rtol=1e-6)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return fabricate(tmp_path_factory.mktemp("complete"), NETS | INTERVENTIONS)


@pytest.fixture(scope="module")
def drawings(complete: Evidence) -> dict[str, Drawing]:
    return drawn(complete)


@pytest.mark.parametrize("epoch", [0, 9, 19])
def test_profiles_are_geometric_means_with_t_intervals(drawings: dict[str, Drawing], epoch: int) -> None:
    depths = {layer: depth for depth, (layer, _) in enumerate(ffnn_layers())}
    rows = curve(drawings["scale_effect"], f"gradient, epoch {epoch}", "h = 100, affine off")
    assert dict(zip(rows.index, rows["x"], strict=True)) == depths
    assert_band(rows, lambda layer: 4 * base(layer, depths[layer], epoch), T_2 * 2 / math.sqrt(3))


@pytest.mark.parametrize("epoch", [0, 9, 19])
@pytest.mark.parametrize(("width", "of_on"), [(100, 0.75), (512, 1.0)])
def test_on_over_off_is_formed_seed_by_seed(drawings: dict[str, Drawing], epoch: int, width: int, of_on: float) -> None:
    rows = curve(drawings["scale_effect"], f"on / off, epoch {epoch}", f"on / off at h = {width}")
    assert_band(rows, lambda layer: of_on * on_off(layer), REACH)
    lines = {"ratio 1": 1.0, "ratio ½, the threshold of C2": 0.5}
    for name, value in lines.items():
        assert set(curve(drawings["scale_effect"], f"on / off, epoch {epoch}", name)["value"]) == {value}


def test_width_ratios(drawings: dict[str, Drawing]) -> None:
    effect, panel = drawings["scale_effect"], "h = 100 / h = 512, epoch 9"
    assert_band(curve(effect, panel, "affine off"), lambda layer: 4.0, 0.0)
    assert_band(curve(effect, panel, "affine on"), lambda layer: 3.0, 0.0)
    studys = curve(effect, panel, "off, h = 100 / on, h = 512: what the study compared")
    assert_band(studys, lambda layer: 4 / on_off(layer), REACH)


def test_the_caption_says_what_is_pooled(drawings: dict[str, Drawing]) -> None:
    caption = drawings["scale_effect"].caption
    low, high = 0.5 * math.exp(-REACH), 0.5 * math.exp(REACH)
    assert f"h = 512: 0.500 [{low:.3f}, {high:.3f}], n = 3" in caption
    assert "h = 100: 0.375 [" in caption
    assert "seeds 1, 2, 3 of ffnn_bn_noaffine_h100, ffnn_bn_h100, ffnn_bn_noaffine, ffnn_bn." in caption
    assert "Missing" not in caption
    assert "Left out" not in caption


def test_the_figure_draws_the_curves(drawings: dict[str, Drawing]) -> None:
    for name in ("scale_effect", "scale_interventions"):
        drawing = drawings[name]
        places = {panel.name: (panel.row, panel.column) for panel in drawing.panels}
        assert len(set(places.values())) == len(places) == len(set(drawing.curves["panel"]))
        for (panel, label), rows in drawing.curves.groupby(["panel", "curve"]):
            ax = axes(drawing, str(panel))
            (line,) = [line for line in ax.get_lines() if line.get_gid() == label]
            np.testing.assert_array_equal(line.get_xydata(), rows.sort_values("x")[["x", "value"]])
            bands = [band for band in ax.collections if band.get_gid() == f"band {label}"]
            assert len(bands) == rows["low"].notna().any()
            if bands:
                heights = bands[0].get_paths()[0].vertices[:, 1]
                assert {heights.min(), heights.max()} == {rows["low"].min(), rows["high"].max()}
    line = next(
        line for line in axes(drawings["scale_effect"], "on / off, epoch 0").get_lines() if line.get_marker() == "o"
    )
    assert line.get_markevery() == [3 * block + 3 for block in range(9)]  # the ReLU outputs


def test_interventions(drawings: dict[str, Drawing]) -> None:
    figure = drawings["scale_interventions"]
    assert [panel.name for panel in figure.panels] == ["h = 512, epoch 9", "h = 512, epoch 19"]
    gamma = "\N{GREEK SMALL LETTER GAMMA}"
    for panel in figure.panels:
        assert_band(curve(figure, panel.name, f"{gamma} alone / none"), lambda layer: 0.7, REACH)
        assert_band(curve(figure, panel.name, "β alone / none"), lambda layer: 0.9, REACH)
        assert_band(curve(figure, panel.name, f"{gamma} and β learned / none"), on_off, REACH)
    assert "ffnn_bn_scale_h100 (all); ffnn_bn_shift_h100 (all)" in figure.caption


def test_without_runs_there_are_no_figures(tmp_path: Path) -> None:
    assert draw_scale(Evidence(tmp_path, (), ())) == ([], [])
    assert draw_scale(fabricate(tmp_path, {"ffnn": NETS["ffnn_bn"]})) == ([], [])


@pytest.mark.filterwarnings("error")
def test_few_seeds(tmp_path: Path) -> None:
    """Two pairs give a band from the lower to the higher; one pair gives none; a seed without a partner is not used."""
    seeds = {"ffnn_bn": (1, 2), "ffnn_bn_noaffine": (1, 2, 3), "ffnn_bn_h100": (3,), "ffnn_bn_noaffine_h100": (1, 3)}
    effect = drawn(fabricate(tmp_path, NETS, seeds))["scale_effect"]
    two = curve(effect, "on / off, epoch 0", "on / off at h = 512")
    expected = np.array([on_off(str(layer)) for layer in two.index])
    np.testing.assert_allclose(two["value"], expected * math.exp(-0.05), rtol=1e-6)
    np.testing.assert_allclose(two["low"], expected * math.exp(-0.1), rtol=1e-6)
    np.testing.assert_allclose(two["high"], expected, rtol=1e-6)
    one = curve(effect, "on / off, epoch 0", "on / off at h = 100")
    np.testing.assert_allclose(
        one["value"], [0.75 * on_off(str(layer)) * math.exp(0.1) for layer in one.index], rtol=1e-6
    )
    assert one[["low", "high"]].isna().all(axis=None)
    assert "ffnn_bn_noaffine_h100 (seed 2); ffnn_bn_h100 (seeds 1, 2); ffnn_bn (seed 3)" in effect.caption
    assert "n = 1;" in effect.caption
    assert "n = 2." in effect.caption


def test_a_missing_net_leaves_its_curves_out(tmp_path: Path) -> None:
    nets = {"ffnn_bn": NETS["ffnn_bn"], "ffnn_bn_h100": NETS["ffnn_bn_h100"]}
    (effect,), notes = draw_scale(fabricate(tmp_path, nets))  # and no figure of interventions
    assert notes == []
    assert {panel.name for panel in effect.panels if panel.row == 1} == {
        f"h = 100 / h = 512, epoch {epoch}" for epoch in (0, 9, 19)
    }
    assert "Missing: ffnn_bn_noaffine_h100 (all); ffnn_bn_noaffine (all)." in effect.caption
    assert "h = 100: not known; h = 512: not known" in effect.caption


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    nets = {model: NETS[model] for model in ("ffnn_bn", "ffnn_bn_noaffine")}
    return fabricate(tmp_path_factory.mktemp("good"), nets, {"ffnn_bn": (1, 3)})


def damage(run: Path) -> None:
    for file in (run / "spp.parquet").iterdir():
        file.write_bytes(file.read_bytes()[:100])


OTHER = [(name.replace("block8", "last"), kind) for name, kind in ffnn_layers()]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("NaN", "the gradient of block2.activation is nan in epoch 9"),
        ("zero", "the gradient of block2.activation is 0 in epoch 9"),
        ("layers", "ffnn_bn, seed 2, does not have the same layers as the other seeds"),
        ("damaged", "seed=2/spp.parquet"),
        ("short", "has no gradients of epoch 19"),
    ],
)
def test_a_faulty_run_is_left_out_with_the_reason(good: Evidence, tmp_path: Path, fault: str, reason: str) -> None:
    wrong = math.nan if fault == "NaN" else 0.0

    def value(layer: str, depth: int, epoch: int, seed: int) -> float:
        hit = fault in ("NaN", "zero") and (layer, epoch) == ("block2.activation", 9)
        return wrong if hit else NETS["ffnn_bn"](layer, depth, epoch, seed)

    layers, epochs = (OTHER if fault == "layers" else None), ((0, 9) if fault == "short" else (0, 9, 19))
    bad = write(tmp_path / "bad", "ffnn_bn", 2, value, layers, epochs)
    if fault == "damaged":
        damage(bad.path)
    evidence = Evidence(tmp_path, tuple(sorted((*good.runs, bad), key=lambda run: (run.model, run.seed))), ())
    found = paired_ratio(evidence, "ffnn_bn", "ffnn_bn_noaffine", (0, 9, 19))
    pd.testing.assert_frame_equal(found.table, paired_ratio(good, "ffnn_bn", "ffnn_bn_noaffine", (0, 9, 19)).table)
    assert any(reason in problem for problem in found.problems)
    assert any("seed 2, for which there is no usable run of ffnn_bn" in problem for problem in found.problems)
    effect = drawn(evidence)["scale_effect"]
    assert reason in effect.caption.partition("Left out: ")[2]
    last = curve(effect, "on / off, epoch 19", "on / off at h = 512")
    # A net that is NaN or zero in epoch 9 is still drawn at epoch 19.
    assert last.loc["block0.activation", "high"] == pytest.approx(
        0.5 * math.exp(REACH if fault in ("NaN", "zero") else 0.1), rel=1e-6
    )


def test_paired_ratio_is_tidy(complete: Evidence) -> None:
    table = paired_ratio(complete, "ffnn_bn", "ffnn_bn_noaffine", (0, 9)).table
    assert list(table) == ["seed", "epoch", "layer", "log_ratio"]
    assert len(table) == 3 * 2 * 9
    assert list(table["layer"][:9]) == [f"block{block}.activation" for block in range(9)]
    np.testing.assert_allclose(table["log_ratio"], math.log(0.5) + table["seed"].map(SPREAD), atol=1e-6)
    assert not paired_ratio(complete, "ffnn_bn", "ffnn_bn_noaffine", (0, 9)).problems


def test_nets_with_different_layers_have_no_ratio(complete: Evidence, tmp_path: Path) -> None:
    evidence = complete
    for seed in SEEDS:
        run = write(tmp_path, "ffnn_bn", seed, NETS["ffnn_bn"], OTHER)
        kept = tuple(other for other in evidence.runs if (other.model, other.seed) != ("ffnn_bn", seed))
        evidence = Evidence(tmp_path, (*kept, run), ())
    found = paired_ratio(evidence, "ffnn_bn", "ffnn_bn_noaffine", (0,))
    assert found.table.empty
    assert found.problems == ("left out: ffnn_bn and ffnn_bn_noaffine have different layers",)


def test_missing_runs_and_layers_are_problems_and_not_errors(complete: Evidence) -> None:
    assert paired_ratio(complete, "ffnn_bn", "nothing", (0,)).table.empty
    assert "no run of nothing" in paired_ratio(complete, "nothing", "ffnn_bn", (0,)).problems[0]
    assert paired_ratio(complete, "ffnn_bn", "ffnn_bn_noaffine", (0,), lr=0.1).table.empty
    found = log_profiles(complete, "ffnn_bn", (0,), "*.convolution")
    assert found.table.empty
    assert "has no layer '*.convolution'" in found.problems[0]


def test_gradient_profile_averages_all_or_full_batches(tmp_path: Path) -> None:
    run = write(tmp_path, "ffnn_bn", 2, NETS["ffnn_bn_noaffine"], scales=(1.0, 64.0))
    everything, full = gradient_profile(run, 9), gradient_profile(run, 9, batches="full")
    expected = [base(layer, depth, 9) for depth, (layer, _) in enumerate(ffnn_layers())]
    assert list(full.index) == [layer for layer, _ in ffnn_layers()]
    np.testing.assert_allclose(full, expected, rtol=1e-6)
    np.testing.assert_allclose(everything, 32.5 * np.array(expected), rtol=1e-6)
    with pytest.raises(EvidenceError, match="no gradients of epoch 5"):
        gradient_profile(run, 5)
