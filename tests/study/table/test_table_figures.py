"""What is drawn, read from the axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from sppbench.study.table.cells import Table, read_table
from sppbench.study.table.table_figures import draw_figures, plot_accuracy, plot_curves
from tests.fabricate.runs import MODELS, write_cell, write_run


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "table1"
    write_run(path, "efficientnet_bn", 0.001, 868, 33.0, curve=[10.0, 20.0, 30.0, 32.0])
    write_run(path, "efficientnet_bn", 0.001, 67, 34.0, curve=[12.0, 21.0, 33.0, 35.0])
    write_run(path, "sn_efficientnet_mp", 0.001, 868, 29.0, curve=[9.0, 19.0, 27.0, 28.0])
    write_run(path, "sn_efficientnet_mp", 0.01, 868, 1.0, "diverged", curve=[6.0, 1.0])
    write_run(path, "sn_efficientnet_mp", 0.01, 67, 11.0, curve=[4.0, 5.0, 9.0, 10.0])
    write_run(path, "sn_efficientnet_mp", 0.01, 472, None, "failed", curve=[50.0, 60.0])
    return path


def panels(figure: Figure) -> dict[str, Axes]:
    return {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}


def line(ax: Axes, gid: str) -> list[tuple[float, float]]:
    [found] = [line for line in ax.get_lines() if line.get_gid() == gid]
    return [(float(x), float(y)) for x, y in np.asarray(found.get_xydata())]


def band(ax: Axes, model: str) -> dict[float, tuple[float, float]]:
    [found] = [item for item in ax.collections if item.get_gid() == f"band {model}"]
    points = np.asarray(found.get_paths()[0].vertices)
    return {
        x: (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in np.unique(points[:, 0])
    }


def values(figure: Figure, gid: str) -> ErrorbarContainer:
    [ax] = figure.axes
    [found] = [item for item in ax.containers if isinstance(item, ErrorbarContainer) and item[0].get_gid() == gid]
    return found


def spreads(container: ErrorbarContainer) -> list[float]:
    """Half lengths of the error bars."""
    return [float(np.ptp(segment[:, 1]) / 2) for segment in container[2][0].get_segments()]


def words(figure: Figure) -> list[str]:
    [legend] = figure.legends
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


def test_a_curve_is_the_mean_and_its_band_the_range(directory: Path) -> None:
    figure = plot_curves(read_table(directory))
    assert list(panels(figure)) == [f"learning rate {lr}" for lr in (0.1, 0.01, 0.001)]
    ax = panels(figure)["learning rate 0.001"]
    assert line(ax, "efficientnet_bn") == [(0, 11.0), (1, 20.5), (2, 31.5), (3, 33.5)]
    assert band(ax, "efficientnet_bn") == {0: (10, 12), 1: (20, 21), 2: (30, 33), 3: (32, 35)}
    assert line(ax, "sn_efficientnet_mp") == [(0, 9.0), (1, 19.0), (2, 27.0), (3, 28.0)]
    assert "band: lowest to highest" in words(figure)[0]


def test_a_diverged_run_is_marked_and_held(directory: Path) -> None:
    figure = plot_curves(read_table(directory))
    ax = panels(figure)["learning rate 0.01"]
    assert line(ax, "diverged sn_efficientnet_mp") == [(1, 1.0)]
    # (6 + 4) / 2, (1 + 5) / 2, and from there on the diverged run stays at 1. The failed run is not drawn.
    assert line(ax, "sn_efficientnet_mp") == [(0, 5.0), (1, 3.0), (2, 5.0), (3, 5.5)]
    assert "diverged; held from there on" in words(figure)


def test_all_panels_show_all_curves(directory: Path) -> None:
    """The axes are shared: limits must not be those of the first panel."""
    figure = plot_curves(read_table(directory))
    for ax in panels(figure).values():
        low, high = ax.get_ylim()
        assert low == 0
        assert high >= 35
        assert ax.get_xlim()[1] >= 3
    assert [text.get_text() for text in panels(figure)["learning rate 0.1"].texts] == ["no runs yet"]
    assert not panels(figure)["learning rate 0.01"].texts


def test_axes_say_what_they_show(directory: Path) -> None:
    table = read_table(directory)
    curves, accuracy = draw_figures(table).values()
    assert curves.axes[0].get_ylabel() == "validation accuracy (%)"
    assert {ax.get_xlabel() for ax in curves.axes} == {"epoch, counted from 0"}
    assert accuracy.axes[0].get_ylabel() == "test accuracy (%)"
    assert accuracy.axes[0].get_xlabel() == "learning rate"
    assert accuracy.axes[0].get_xscale() == "log"
    accuracy.canvas.draw()
    assert [tick.get_text() for tick in accuracy.axes[0].get_xticklabels()] == ["0.1", "0.01", "0.001"]
    for figure in (curves, accuracy):
        assert words(figure)[1:5] == list(table.titles.values())
        assert line(figure.axes[0], "chance")[0][1] == 1.0
    assert pyplot.get_fignums() == []


def test_accuracies_beside_the_published_ones(directory: Path) -> None:
    table = read_table(directory)
    figure = plot_accuracy(table)
    ours = values(figure, "efficientnet_bn")
    assert np.asarray(ours[0].get_ydata()).tolist() == [33.5]
    assert spreads(ours) == pytest.approx([0.5**0.5])  # of 33 and 34
    published = values(figure, "published efficientnet_bn")
    assert np.asarray(published[0].get_ydata()).tolist() == [1.2, 13.9, 33.5]
    assert spreads(published) == pytest.approx([0.4, 3.4, 0.8])
    assert published[0].get_markerfacecolor() == "white"
    assert np.asarray(values(figure, "sn_efficientnet_mp")[0].get_ydata()).tolist() == [6.0, 29.0]
    assert spreads(values(figure, "sn_efficientnet_mp")) == pytest.approx([50**0.5, 0.0]), "one run has no spread"
    assert "published" in words(figure)


@pytest.mark.parametrize("lrs", [(0.1, 0.01, 0.001), (0.001,), (0.003, 0.002, 0.001)])
def test_no_value_hides_another(tmp_path: Path, lrs: tuple[float, ...]) -> None:
    for model in MODELS:
        for lr in lrs:
            write_run(tmp_path, model, lr, 868, 1.0)
    figure = plot_accuracy(read_table(tmp_path))
    places = [
        float(np.log10(x))
        for item in figure.axes[0].containers
        for x in np.asarray(item[0].get_xdata())  # type: ignore[index]
    ]
    gaps = np.diff(sorted(places))
    assert gaps.min() > 0.01
    # A value is nearest to the tick of its own learning rate.
    every = np.log10(sorted({*lrs, 0.1, 0.01, 0.001}))
    for model in MODELS:
        for x, lr in zip(np.asarray(values(figure, model)[0].get_xdata()), sorted(lrs, reverse=True), strict=True):
            assert every[np.abs(every - np.log10(x)).argmin()] == pytest.approx(np.log10(lr))


def test_a_net_looks_the_same_in_both(directory: Path) -> None:
    curves, accuracy = draw_figures(read_table(directory)).values()
    looks: list[dict[str, Any]] = [{}, {}]
    for look, figure in zip(looks, (curves, accuracy), strict=True):
        for handle in figure.legends[0].legend_handles[:4]:
            look[handle.get_label()] = (to_hex(handle.get_color()), handle.get_marker())  # type: ignore[union-attr]
    assert looks[0] == looks[1]
    assert len(set(looks[0].values())) == 4
    drawn = values(accuracy, "efficientnet_bn")[0]
    assert (to_hex(drawn.get_color()), drawn.get_marker()) == looks[0]["EfficientNet (BN)"]


def test_a_run_without_metrics_is_counted(directory: Path) -> None:
    (directory / "efficientnet_bn" / "lr=0.001" / "seed=868" / "metrics.csv").unlink()
    damaged = directory / "sn_efficientnet_mp" / "lr=0.001" / "seed=868" / "metrics.csv"
    damaged.write_text("epoch,val/accuracy\nzero,1\n")
    figure = plot_curves(read_table(directory))
    assert "2 runs without a readable metrics.csv" in words(figure)[0]
    ax = panels(figure)["learning rate 0.001"]
    assert line(ax, "efficientnet_bn") == [(0, 12.0), (1, 21.0), (2, 33.0), (3, 35.0)]
    assert line(ax, "sn_efficientnet_mp") == []


def test_one_seed_has_no_spread_to_speak_of(tmp_path: Path) -> None:
    write_run(tmp_path, "ffnn", 0.001, 868, 20.0, curve=[5.0, 10.0])
    curves, accuracy = draw_figures(read_table(tmp_path)).values()
    assert words(curves)[0].endswith(": one seed")
    assert words(accuracy)[0].endswith(": one seed")
    assert "published" not in words(accuracy)
    assert len(panels(curves)) == 1


def test_a_rate_of_zero_and_many_rates(tmp_path: Path) -> None:
    for lr in (0.0, 0.1, 0.03, 0.01, 0.003):
        write_cell(tmp_path, "ffnn", lr, [20.0, 21.0], curve=[5.0, 10.0])
    table: Table = read_table(tmp_path)
    curves, accuracy = draw_figures(table).values()
    assert len(panels(curves)) == 5
    assert len(np.asarray(values(accuracy, "ffnn")[0].get_xdata())) == 4
    accuracy.canvas.draw()


def test_a_single_epoch_shows_its_range(tmp_path: Path) -> None:
    write_run(tmp_path, "ffnn", 0.001, 868, 20.0, curve=[5.0])
    write_run(tmp_path, "ffnn", 0.001, 67, 21.0, curve=[7.0])
    figure = plot_curves(read_table(tmp_path))
    [ax] = figure.axes
    [item] = [item for item in ax.collections if item.get_gid() == "range ffnn"]
    assert np.asarray(item.get_paths()[0].vertices).tolist() == [[0, 5], [0, 7]]
    figure.canvas.draw()
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [0]


def test_nothing_counts_yet(tmp_path: Path) -> None:
    write_run(tmp_path, "ffnn", 0.001, 868, None, None)
    for figure in draw_figures(read_table(tmp_path)).values():
        figure.canvas.draw()
