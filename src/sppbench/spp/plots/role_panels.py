"""Panels over the blocks of a net: a small one for each role that layers have in its blocks, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from sppbench.spp.names import PLACES, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import SIGNAL_NAMES, Curves, Statistic, formula
from sppbench.spp.plots.depth_panels import rows_of_marks
from sppbench.spp.plots.groups import Group, draw_groups, rounding_floor
from sppbench.spp.plots.lines import Undrawn

FEWEST_BLOCKS = 4
# Columns of panels, if there are no more than so many panels of a signal, and else.
FEW_PANELS, FEW_COLUMNS, COLUMNS = 8, 4, 6
# Inches: of all panels of a row together, of a row with its title and ticks, of the names below a row, of the rest.
WIDTH, ROW, NAMES, MARGINS = 6.2, 1.0, 0.6, 0.9
ITSELF = "."


def has_roles(table: pd.DataFrame) -> bool:
    """Whether a frame says the roles of its layers, in at least four equal blocks."""
    return set(PLACES) <= set(table) and table["block"][table["block"] >= 0].nunique() >= FEWEST_BLOCKS


@dataclass(frozen=True)
class RolePanel:
    """A panel: its title, its layers and their places; names at these, where they are not numbers of blocks."""

    title: str
    group: Group
    names: list[str] | None = None

    def columns(self, columns: int) -> int:
        """How many columns it needs for its names."""
        if self.names is None:
            return 1
        needed = (len(self.names) + 1) * 1.2 * axes.SMALL_FONT / axes.POINTS_PER_INCH
        return min(max(math.ceil(needed / (WIDTH / columns)), 1), columns)


def role_panels(rows: pd.DataFrame) -> list[RolePanel]:
    """The panels of a signal, in order of depth: one for each role that layers of two blocks have, and one of the rest.

    Args:
        rows: of `Curves.table`, with the columns block and role.
    """
    net = rows.drop_duplicates("layer").sort_values(["x", "layer"], kind="stable")
    within = net[net["block"] >= 0]
    counts = within.groupby("role", observed=True)["block"].nunique()
    repeated = within[within["role"].isin(counts.index[counts > 1])]
    panels = []
    for role, of_role in repeated.groupby("role", sort=False, observed=True):
        title = "output of the block" if role == ITSELF else axes.short_name(str(role), 22)
        places = dict(zip(of_role["layer"], of_role["block"], strict=True))
        panels.append(RolePanel(title, Group(places, breaks=True)))
    others = net[~net["layer"].isin(repeated["layer"])]
    if not others.empty:
        places = dict(zip(others["layer"], range(len(others)), strict=True))
        names = axes.layer_labels(list(others["layer"]), list(others["kind"]))
        panels.append(RolePanel("other layers", Group(places, joined=False), names))
    return panels


def draw_over_blocks(
    curves: Curves, signals: Sequence[Signal], statistics: Sequence[Statistic], yscale: YScale, height: float = ROW
) -> tuple[Figure, Undrawn]:
    """The figure with its panels, signal by signal, and what could not be drawn.

    Args:
        curves: what is drawn.
        signals: one below the other.
        statistics: of each signal, one below the other.
        yscale: of all panels.
        height: of a row in inches.
    """
    by_signal = {signal: role_panels(curves.table[curves.table["signal"] == signal]) for signal in signals}
    columns = FEW_COLUMNS if max(len(panels) for panels in by_signal.values()) <= FEW_PANELS else COLUMNS
    sections = [(signal, statistic) for signal in signals for statistic in statistics]
    places = [_places(by_signal[signal], columns) for signal, _ in sections]
    rows = [1 + max((row for row, _, _ in one), default=0) for one in places]
    named = sum(any(panel.names for panel in by_signal[signal]) for signal, _ in sections)
    figure = axes.new_figure(height * sum(rows) + NAMES * named + MARGINS)
    grid = figure.add_gridspec(sum(rows), columns)
    undrawn = Undrawn()
    for number, ((signal, statistic), of_section) in enumerate(zip(sections, places, strict=True)):
        above = sum(rows[:number])
        moved = [(row + above, column, span) for row, column, span in of_section]
        undrawn += _draw_section(figure, grid, curves, signal, statistic, by_signal[signal], moved, yscale)
    return figure, undrawn


def _places(panels: Sequence[RolePanel], columns: int) -> list[tuple[int, int, int]]:
    """Row, column and number of columns of each panel, in reading order."""
    places = []
    row, column = 0, 0
    for panel in panels:
        span = panel.columns(columns)
        if column + span > columns:
            row, column = row + 1, 0
        places.append((row, column, span))
        column += span
    return places


def _draw_section(
    figure: Figure,
    grid: GridSpec,
    curves: Curves,
    signal: Signal,
    statistic: Statistic,
    panels: Sequence[RolePanel],
    places: Sequence[tuple[int, int, int]],
    yscale: YScale,
) -> Undrawn:
    """The panels of a signal, which share their y axis."""
    rows = curves.table[curves.table["signal"] == signal]
    heading = f"{SIGNAL_NAMES[signal]}: {formula(rows, statistic)}".replace("\n", "; ")
    if not panels:
        return Undrawn()
    drawn: list[Axes] = []
    undrawn = Undrawn()
    blocks = sorted(set(curves.table["block"]) - {-1})
    for panel, (row, column, span) in zip(panels, places, strict=True):
        ax = figure.add_subplot(grid[row, column : column + span], sharey=drawn[0] if drawn else None)
        drawn.append(ax)
        undrawn += draw_groups(ax, curves, signal, statistic, [panel.group], yscale, dense=True)
        ax.tick_params("y", which="both", labelleft=column == 0)
        _draw_places(ax, panel, blocks[0], blocks[-1])
        ax.set_title(panel.title, fontsize=axes.SMALL_FONT, loc="left", pad=2)
    axes.scale_values(drawn, yscale, rows_of_marks(curves, undrawn))
    for ax in drawn if undrawn.rounding else ():
        lines.draw_floor(ax, float(rounding_floor(rows, statistic).max()), len(curves.labels), words=ax is drawn[0])
    drawn[0].set_title(f"{heading}\n{drawn[0].get_title(loc='left')}", fontsize=axes.SMALL_FONT, loc="left", pad=2)
    return undrawn


def _draw_places(ax: Axes, panel: RolePanel, first: int, last: int) -> None:
    if panel.names is not None:
        ax.set_xticks(range(len(panel.names)), labels=panel.names)
        ax.tick_params("x", rotation=90, labelsize=axes.SMALL_FONT - 0.5, length=2, pad=1.5)
        ax.set_xlim(-0.6, len(panel.names) - 0.4)
        return
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10]))
    ax.tick_params("x", labelsize=axes.SMALL_FONT, length=2, pad=1.5)
    ax.set_xlim(first - 0.6, last + 0.6)
