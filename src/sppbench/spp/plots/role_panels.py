"""Panels over the blocks of a net: a small one for each role that layers have in its blocks, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator

from sppbench.spp.names import PLACES, Signal
from sppbench.spp.plots import axes, lines
from sppbench.spp.plots.axes import YScale
from sppbench.spp.plots.curves import SIGNAL_NAMES, Curves, Statistic, formula
from sppbench.spp.plots.depth_panels import rows_of_marks
from sppbench.spp.plots.groups import Group, Size, draw_groups, floor_of
from sppbench.spp.plots.lines import Undrawn

FEWEST_BLOCKS = 4
COLUMNS = range(3, 7)  # of panels, those with the fewest rows
OTHERS_COLUMNS = 3  # of panels of other layers: one for each signal
# Inches: of all panels of a row together, of a row with its title and ticks, of what is above all.
WIDTH, ROW, MARGINS = 6.2, 1.05, 0.8
TITLE = 114  # characters of all titles of a row together
ITSELF = "."
STATISTIC_NAMES: dict[Statistic, str] = {"acsm": "ACSM", "acv": "ACV", "second_moment": "mean(x²)"}


def has_roles(table: pd.DataFrame) -> bool:
    """Whether a frame says the roles of its layers, in at least four equal blocks."""
    return set(PLACES) <= set(table) and table["block"][table["block"] >= 0].nunique() >= FEWEST_BLOCKS


@dataclass(frozen=True)
class RolePanel:
    """A panel: its role, the class of its layers, and their places; names at these where they are not blocks."""

    role: str
    kind: str
    group: Group
    names: list[str] | None = None

    @property
    def columns(self) -> int:
        """How many columns it needs: with names, all of them where one is too narrow."""
        fits = self.names is None or axes.fits_names(len(self.names), WIDTH / OTHERS_COLUMNS - 0.4)
        return 1 if fits else OTHERS_COLUMNS


def role_panels(rows: pd.DataFrame) -> list[RolePanel]:
    """The panels of a signal in order of depth: one for each role that layers of two blocks have, and one of the rest.

    Args:
        rows: of `Curves.table`, with the columns block and role.
    """
    net = rows.drop_duplicates("layer").sort_values(["x", "layer"], kind="stable")
    within = net[net["block"] >= 0]
    counts = within.groupby("role", observed=True)["block"].nunique()
    repeated = within[within["role"].isin(counts.index[counts > 1])]
    panels = []
    for role, of_role in repeated.groupby("role", sort=False, observed=True):
        title = "block output" if role == ITSELF else str(role)
        places = dict(zip(of_role["layer"], of_role["block"], strict=True))
        panels.append(RolePanel(title, str(of_role["kind"].iloc[0]), Group(places, breaks=True)))
    others = net[~net["layer"].isin(repeated["layer"])]
    if not others.empty:
        places = dict(zip(others["layer"], range(len(others)), strict=True))
        names = axes.layer_labels(list(others["layer"]), list(others["kind"]))
        panels.append(RolePanel("other layers", "", Group(places, joined=False), names))
    return panels


@dataclass(frozen=True)
class _Section:
    """The panels of a signal and a statistic, which share their y axis."""

    signal: Signal
    statistic: Statistic
    panels: list[RolePanel]
    others: list[RolePanel]


def draw_over_blocks(
    curves: Curves, signals: Sequence[Signal], statistics: Sequence[Statistic], yscale: YScale, height: float = ROW
) -> tuple[Figure, Undrawn]:
    """The figure with its panels, signal by signal and at last those of the other layers, and what could not be drawn.

    Args:
        curves: what is drawn.
        signals: one below the other.
        statistics: of each signal, one below the other.
        yscale: of all panels.
        height: of a row in inches.
    """
    sections = []
    for signal in signals:
        panels = role_panels(curves.table[curves.table["signal"] == signal])
        of_roles, others = [one for one in panels if not one.names], [one for one in panels if one.names]
        sections += [_Section(signal, statistic, of_roles, others) for statistic in statistics]
    counts = [len(section.panels) for section in sections]
    # As few rows as there can be, and for these as few columns.
    columns = min(COLUMNS, key=lambda columns: (sum(-(-count // columns) for count in counts), columns))
    cells = [_cells(section.panels, columns) for section in sections]
    rows = [max((row + 1 for row, _, _ in one), default=0) for one in cells]
    of_others = _cells([panel for section in sections for panel in section.others], OTHERS_COLUMNS)
    names = max(
        (axes.text_width(name) for one in sections for panel in one.others for name in panel.names or ()), default=0
    )
    heights = [height * sum(rows), (height + names / axes.POINTS_PER_INCH) * len({row for row, _, _ in of_others})]
    figure = axes.new_figure(sum(heights) + MARGINS)
    # Two grids, as the second one has values at each axes, and names.
    parts = figure.add_gridspec(sum(map(bool, heights)), 1, height_ratios=[one for one in heights if one])
    above = parts[0].subgridspec(max(sum(rows), 1), columns)
    below = parts[-1].subgridspec(max(len({row for row, _, _ in of_others}), 1), OTHERS_COLUMNS)
    undrawn = Undrawn()
    for number, (section, of_section) in enumerate(zip(sections, cells, strict=True)):
        first = sum(rows[:number])
        places = [above[first + row, column] for row, column, _ in of_section]
        for _ in section.others:
            row, column, span = of_others.pop(0)
            places.append(below[row, column : column + span])
        undrawn += _draw_section(figure, curves, section, places, yscale, TITLE // columns)
    return figure, undrawn


def _cells(panels: Sequence[RolePanel], columns: int) -> list[tuple[int, int, int]]:
    """Row, column and number of columns of each panel, in reading order."""
    places = []
    row = column = 0
    for panel in panels:
        span = min(panel.columns, columns)
        if column + span > columns:
            row, column = row + 1, 0
        places.append((row, column, span))
        column += span
    return places


def _draw_section(
    figure: Figure,
    curves: Curves,
    section: _Section,
    places: Sequence[SubplotSpec],
    yscale: YScale,
    longest: int,
) -> Undrawn:
    signal, statistic = section.signal, section.statistic
    rows = curves.table[curves.table["signal"] == signal]
    blocks = sorted(set(curves.table["block"]) - {-1})
    drawn: list[Axes] = []
    undrawn = Undrawn()
    for panel, place in zip([*section.panels, *section.others], places, strict=True):
        ax = figure.add_subplot(place, sharey=drawn[0] if drawn else None)
        drawn.append(ax)
        undrawn += draw_groups(ax, curves, signal, statistic, [panel.group], yscale, Size.SMALL)
        ax.tick_params("y", which="both", labelleft=place.is_first_col() or panel.names is not None)
        _draw_places(ax, panel, blocks[0], blocks[-1])
        ax.set_title(_title(panel, section, longest), fontsize=axes.SMALL_FONT, loc="left", pad=2)
    if not drawn:
        return undrawn
    axes.scale_values(drawn, yscale, rows_of_marks(curves, undrawn))
    for ax in drawn if undrawn.rounding else ():
        lines.draw_floor(ax, float(floor_of(rows, statistic).max()), len(curves.labels), words=ax is drawn[0])
    heading = f"{SIGNAL_NAMES[signal]}: {formula(rows, statistic)}".replace("\n", "; ")
    by_block = ", by block" if section.panels else ""
    title = f"{heading}{by_block}\n{drawn[0].get_title(loc='left')}"
    drawn[0].set_title(title, fontsize=axes.SMALL_FONT, loc="left", pad=2)
    return undrawn


def _title(panel: RolePanel, section: _Section, longest: int) -> str:
    if panel.names is None:
        return axes.layer_labels([panel.role], [panel.kind], longest=longest)[0]
    return f"{SIGNAL_NAMES[section.signal]} of {panel.role}, {STATISTIC_NAMES[section.statistic]}"


def _draw_places(ax: Axes, panel: RolePanel, first: int, last: int) -> None:
    if panel.names is not None:
        # Only every second name, or third, where not even a whole row has room for all.
        shown = range(0, len(panel.names), math.ceil(len(panel.names) * axes.SMALL_FONT / axes.POINTS_PER_INCH / WIDTH))
        ax.set_xticks(shown, labels=[panel.names[i] for i in shown])
        ax.tick_params("x", rotation=90, labelsize=axes.SMALL_FONT - 0.5, length=2, pad=1.5)
        ax.set_xlim(-0.6, len(panel.names) - 0.4)
        return
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10]))
    ax.tick_params("x", labelsize=axes.SMALL_FONT, length=2, pad=1.5)
    ax.set_xlim(first - 0.6, last + 0.6)
