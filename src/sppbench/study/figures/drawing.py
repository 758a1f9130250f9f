"""A figure with the data behind it: for files, for comparison with published numbers, and for HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Columns of `Drawing.curves`.
COLUMNS = ("panel", "curve", "x", "name", "value", "low", "high")


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its place in the grid, counted from 0, its labels and how values are scaled and drawn.

    `kind` is "line", or "stack" for contributions that add up: positive ones are stacked upward from 0, negative ones
    downward; a curve that is a line in the figure on paper, such as the measured sum, lies over the stack.
    """

    name: str
    row: int
    column: int
    x_label: str
    y_label: str
    y_scale: Literal["linear", "log"] = "linear"
    kind: Literal["line", "stack"] = "line"


@dataclass(frozen=True)
class Drawing:
    """A figure and its data.

    Attributes:
        name: Stem of its files, such as "figure1_h100".
        title: One line.
        caption: What is drawn, from which runs and by which convention; sentences.
        panels: The axes.
        curves: All that is drawn, with the columns `COLUMNS`: the panel's name, the curve's name in the legend, x (the
            depth in layers, or the epoch), the name of this point (the layer), the value, and the ends of the band
            around it (NaN where there is none). Values that cannot be drawn are kept as they are.
        figure: The same for paper.
        matches: Numbers read off the published figure, beside ours.
        readings: Ways to read what is only inferred about the published figure, and which of them fits.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    curves: pd.DataFrame
    figure: Figure
    matches: tuple[Match, ...] = ()
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Match:
    """One comparison of ours with the published figure.

    Attributes:
        quantity: What is compared, in words, such as "RMSE of log10 at the peaks".
        ours: Our value or values, in words.
        published: The published ones.
        criterion: When they agree, such as "≤ 0.1".
        agrees: Whether they do; None where our runs do not tell.
    """

    quantity: str
    ours: str
    published: str
    criterion: str
    agrees: bool | None


@dataclass(frozen=True)
class Reading:
    """One reading of what is only inferred about a published figure, and how well our runs fit under it.

    Attributes:
        reading: In words, such as "h = 100, affine off; all batches; second moment (study's convention)".
        measure: What says how well it fits; readings of the same measure compete.
        value: Of the drawn seed; None where our runs do not tell, infinite where a value that should be there is 0.
        spread: Lowest and highest over the seeds; None where there are none.
        n: Seeds behind it.
        best: Whether it fits best; several may.
        note: Which seeds, or which layers.
    """

    reading: str
    measure: str
    value: float | None
    spread: tuple[float, float] | None
    n: int
    best: bool
    note: str = ""
