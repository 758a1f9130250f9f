"""One figure of the study, drawn from one run in its layout."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sppbench.evidence.runs import Run
from sppbench.spp.names import PANEL_SIGNALS, Signal
from sppbench.spp.plots.axes import DEPTH_LABEL, fixed_settings
from sppbench.spp.plots.curves import SIGNAL_NAMES, Convention, formula
from sppbench.spp.plots.lines import Style
from sppbench.study.figures.drawing import COLUMNS, Drawing, Look, Match, Panel, Reading
from sppbench.study.figures.drawn_runs import Values, epoch_means
from sppbench.study.figures.published_figures import PublishedFigure, PublishedFigures, Statistic
from sppbench.study.figures.study_panels import plot_gradient, plot_spp

# By layout, the panels in rows and columns.
GRIDS: dict[str, tuple[tuple[tuple[Signal, Statistic], ...], ...]] = {
    "gradient": ((("gradient", "acsm"),),),
    "panels": tuple(((signal, "acsm"), (signal, "acv")) for signal in PANEL_SIGNALS),
}
CONVENTION_WORDS: dict[Convention, str] = {
    "study": (
        "Statistics by the study's convention: for tensors of two or fewer dimensions and for all weights its ACSM is "
        "the second moment mean(x²), and its ACV the overall variance"
    ),
    "definition": "Statistics by definition (Brock, De & Smith 2021): ACSM mean_c(mean(x)²), ACV mean_c(var(x))",
}
NO_MEAN = (
    "Where a layer feeds a batch normalization the mean of its gradient is zero up to rounding, so that ACSM by "
    "definition is, too: the saw-tooth of the published figure is that of second moments"
)
SWISH = "For Swish the study recorded the inner sigmoid; here it is the activation's output"


@fixed_settings()
def draw_study(
    name: str,
    figure: PublishedFigure,
    label: str,
    run: Run,
    convention: Convention,
    published: PublishedFigures,
    matches: tuple[Match, ...] = (),
    readings: tuple[Reading, ...] = (),
) -> Drawing:
    """Draws a published figure with the values of one of our runs.

    Args:
        name: Of the drawing.
        figure: The published one.
        label: What its net is, beside the figure's title; may be empty.
        run: The run.
        convention: As in `sppbench.spp.plot_spp`.
        published: What is common to all figures.
        matches: To be handed on.
        readings: To be handed on.

    Raises:
        EvidenceError: The run's signals are missing or damaged, or it has none of the epochs.
        ValueError: They lack columns.
    """
    values = Values(run, "all", convention, published.epochs)
    panels, curves = _curves(figure, values)
    plot = plot_gradient if figure.layout == "gradient" else plot_spp
    frame = epoch_means(run, "all", published.epochs)
    paper = plot(frame, published.epochs, convention)
    title = f"{figure.title}{f', {label}' if label else ''}"
    title += " (by definition)" if convention == "definition" else ""
    swish = "SiLU" in values.layers.kinds
    _entitle(paper, f"{title}; our run {_say_run(run)}", SWISH if swish and figure.layout == "panels" else "")
    epochs = ", ".join(str(epoch) for epoch in sorted(set(values.table["epoch"])))
    caption = [
        f"Drawn like {figure.title.partition(':')[0]} of the study from our run {_say_run(run)}",
        f"Epochs {epochs}; each curve is the {values.averaging}",
        CONVENTION_WORDS[convention],
        *([NO_MEAN] if convention == "definition" and "BatchNorm1d" in values.layers.kinds else []),
        *([SWISH] if swish else []),
        f"{len(values.layers.names)} layers, numbered from 0 as in the study; sums and gates have no number",
    ]
    return Drawing(name, title, ". ".join(caption) + ".", panels, curves, _looks(values), paper, matches, readings)


def _say_run(run: Run) -> str:
    return f"{run.model}, learning rate {run.lr:g}, seed {run.seed}"


def _entitle(figure: Figure, first: str, last: str) -> None:
    """Puts the figure's own name above what its legend says already, and a line below it."""
    title = figure.legends[0].get_title()
    title.set_text("\n".join(line for line in (first, title.get_text(), last) if line))


def _looks(values: Values) -> dict[str, Look]:
    """Those that `plot_spp` and `plot_gradient` give to the curves, where layers are dense."""
    looks = {}
    for index, label in enumerate(values.labels.values()):
        style = Style(index, len(values.labels), dense=True)
        looks[label] = Look(style.color, style.arguments()["linestyle"])
    return looks


def _curves(figure: PublishedFigure, values: Values) -> tuple[tuple[Panel, ...], pd.DataFrame]:
    """The panels, and exactly what the figure draws in them."""
    panels, parts = [], []
    for row, line in enumerate(GRIDS[figure.layout]):
        for column, (signal, statistic) in enumerate(line):
            rows = values.table[values.table["signal"] == signal].sort_values(["epoch", "x"], kind="stable")
            name = f"{SIGNAL_NAMES[signal]}, {statistic.upper()}"
            y_label = f"{SIGNAL_NAMES[signal]}: {formula(rows, statistic)}".replace("\n", "; ")
            panels.append(Panel(name, row, column, DEPTH_LABEL, y_label))
            parts.append(
                pd.DataFrame(
                    {
                        "panel": name,
                        "curve": [values.labels[epoch] for epoch in rows["epoch"]],
                        "x": rows["x"].to_numpy(np.float64),
                        "name": rows["layer"].to_numpy(object),
                        "value": rows[statistic].to_numpy(np.float64),
                        "low": np.nan,
                        "high": np.nan,
                    }
                )
            )
    return tuple(panels), pd.concat(parts, ignore_index=True)[list(COLUMNS)]
