"""A user's own runs, each with what it is, how far it is, its scores, findings and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.spp.history.reader import read_history
from sppbench.spp.plots.axes import FONT, GRID_COLOR, fixed_settings, new_figure
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.panels import plot_spp
from sppbench.study.figures.drawing import reason
from sppbench.study.report.pictures import picture, stored_picture

MOST = 12  # runs that are shown with figures; of more the newest, and the rest is in the list of all runs
_PANELS = re.compile(r"spp_epoch=(\d+)\.png")
_SCORES = (
    ("val/accuracy", "validation accuracy", "%"),
    ("val/loss", "validation loss", "nats"),
    ("train/loss", "training loss", "nats"),
)


@dataclass(frozen=True)
class Score:
    """A number of a run; its unit, and of which epoch or images it is, in words."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI."""

    title: str
    source: str


@dataclass(frozen=True)
class RunPage:
    """What the page says of one run.

    Attributes:
        run: Which.
        name: Its path below the directory of all runs.
        status: How far it is, or how it ended, in words.
        scores: Those of the test, or of the last epoch so far.
        findings: What is odd about it, one line each; empty if nothing is.
        pictures: Its figures.
        notes: Figures that cannot be drawn, and why.
    """

    run: Run
    name: str
    status: str
    scores: tuple[Score, ...]
    findings: tuple[str, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        """For links within the page."""
        return "run-" + re.sub(r"[^\w.=-]+", "-", self.name)


def run_pages(runs: Iterable[Run], directory: Path) -> list[RunPage]:
    """Of each run what the page says: those under way first, then the newest first, at most `MOST`."""
    ordered = sorted(runs, key=lambda run: (run.is_under_way, _last_change(run)), reverse=True)
    return [_run_page(run, directory) for run in ordered[:MOST]]


def _last_change(run: Run) -> float:
    files = (run.path / name for name in ("result.json", "metrics.csv", "config.yaml"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _run_page(run: Run, directory: Path) -> RunPage:
    pictures, notes = [], []
    for title, make in _figures(run):
        try:
            pictures.append(Picture(title, make()))
        except Exception as error:  # matplotlib, Pillow and pandas raise many kinds
            notes.append(f"{title}: {reason(error)}")
    name = run_name(run, directory)
    found = tuple(dict.fromkeys(oddities(run)))
    return RunPage(run, name, status(run), tuple(_scores(run)), found, tuple(pictures), tuple(notes))


def run_name(run: Run, directory: Path) -> str:
    """A run's path below the directory of all runs; of the directory itself its name."""
    below = run.path.relative_to(directory).as_posix()
    return below if below != "." else directory.resolve().name


# -- In words and numbers ----------------------------------------------------------------------------------------------


def status(run: Run) -> str:
    """How far a run is, or how it ended.

    Example:
        >>> status(run)
        'still training: 2 of 20 epochs are over'
    """
    rows = _epochs(run)
    done = int(rows["epoch"].max()) + 1 if len(rows) else 0
    wanted = run.settings.get("trainer.max_epochs")
    progress = f"{done} of {wanted} epochs are over"
    if run.is_under_way:
        return f"still training: {progress}"
    if run.state == "unfinished":
        return f"ended without a result, for example because it was killed; the same command resumes it ({progress})"
    if run.state == "interrupted":
        return f"interrupted; the same command resumes it ({progress})"
    words = {"stopped_early": f"stopped early ({progress})", "failed": f"failed ({progress})"}
    return words.get(run.state, run.state)


def _scores(run: Run) -> Iterator[Score]:
    result, rows = run.result, _epochs(run)
    test = (result.test if result is not None else None) or {}
    for key, name, unit in (
        ("accuracy", "test accuracy", "%"),
        ("top5", "top-5 on the test images", "%"),
        ("loss", "test loss", "nats"),
    ):
        if test.get(key) is not None:
            yield Score(name, float(test[key]), unit)
    for key, name, unit in _SCORES:
        values = rows[["epoch", key]].dropna() if key in rows else rows.iloc[:0]
        if len(values) and not (test and key.startswith("val")):
            epoch, value = values.iloc[-1]
            yield Score(f"{name} in epoch {epoch:.0f}", float(value), unit)
    if result is not None:
        yield Score("time", result.wall_seconds / 60, "min")


def _epochs(run: Run) -> pd.DataFrame:
    """The rows of metrics.csv that are of an epoch, not of the test; none if they cannot be read."""
    try:
        rows = run.metrics
        numbers = rows.apply(pd.to_numeric, errors="coerce").dropna(subset="epoch")
        return numbers[numbers.drop(columns=["epoch", "step"]).filter(regex="^(train|val)/").notna().any(axis=1)]
    except (EvidenceError, KeyError):
        return pd.DataFrame({"epoch": []})


def oddities(run: Run) -> Iterator[str]:
    """What is odd about a run, one line each."""
    result = run.result
    if run.problem:
        yield run.problem
    if result is not None and result.diverged_at is not None:
        yield f"diverged: the loss of step {result.diverged_at} is not finite"
    if run.kind in ("NaN", "constant prediction"):
        what = "NaN" if run.kind == "NaN" else "the same class for all test images"
        yield f"it predicts {what}"
    yield from run.lost
    if run.has_signals:
        try:
            yield from not_finite(run)
        except EvidenceError as error:
            if not run.is_under_way:  # whose first steps may not be written yet
                yield str(error)


def not_finite(run: Run) -> Iterator[str]:
    """How many of a run's recorded signals are not finite, in a line; nothing if all are.

    Raises:
        EvidenceError: They are damaged.
    """
    frame = run.signals()
    bad = frame[~np.isfinite(frame["second_moment"])]
    if len(bad):
        first = int(bad["epoch"].min())
        share = f"{len(bad)} of {len(frame)} epoch means"
        yield f"{run.path}: {share} of its signals are not finite, the first in epoch {first}"


# -- Figures -----------------------------------------------------------------------------------------------------------


def _figures(run: Run) -> Iterator[tuple[str, Callable[[], str]]]:
    """The figures of a run: those that it drew itself at its end, else drawn from what it has recorded so far."""
    if not run.has_signals:
        return
    heatmap = run.path / "spp_heatmap_gradient.png"
    if run.is_under_way or not heatmap.exists():
        yield "Signal propagation", lambda: picture(_draw_panels(run))
        if (history := run.path / "spp.parquet").exists():
            yield "Gradients, step by step", lambda: picture(plot_heatmap(read_history(history), signal="gradient"))
        return
    drawn = {int(found[1]): path for path in run.path.iterdir() if (found := _PANELS.fullmatch(path.name))}
    if drawn:
        yield "Signal propagation", lambda: stored_picture(drawn[max(drawn)])
    yield "Gradients, step by step", lambda: stored_picture(heatmap)


def _draw_panels(run: Run) -> Figure:
    frame = run.signals()
    epochs = sorted({int(epoch) for epoch in frame["epoch"]})
    return plot_spp(frame, epochs=sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}))


@fixed_settings()
def draw_learning(pages: Sequence[RunPage]) -> Figure | None:
    """Losses and accuracies of all runs over the epochs; None where there are none."""
    found = {page.name: rows for page in pages if len(rows := _epochs(page.run))}
    if not found:
        return None
    figure = new_figure(2.9 + 0.16 * len(found))
    panels = figure.subplots(1, 3)
    for ax, (key, label, unit) in zip(panels, _SCORES, strict=True):
        for name, rows in found.items():
            values = rows[["epoch", key]].dropna() if key in rows else rows.iloc[:0].assign(**{key: []})
            ax.plot(values["epoch"], values[key], marker=".", markersize=3, linewidth=1.2, label=name)
        ax.set_title(f"{label} ({unit})", fontsize=FONT)
        ax.set_xlabel("epoch", fontsize=FONT)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(True, color=GRID_COLOR, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=FONT - 1.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", fontsize=FONT - 1, frameon=False)
    return figure
