"""Which expected values lie over which panel: from a table, or the name of a theory, to what a figure draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sppbench.spp.theory.chain import Init, expected_of_chain

STATISTICS = ("acsm", "acv", "second_moment", "mean")


COLUMNS = ["source", "signal", "layer", "x", "acsm", "acv", "second_moment"]


def overlay(
    expected: pd.DataFrame | Init | None, frame: pd.DataFrame, drawn: pd.DataFrame, statistics: Sequence[str]
) -> pd.DataFrame:
    """The expected values of the statistics that are drawn, for layers and signals that are.

    Args:
        expected: a table with the columns layer, signal, source and some of acsm, acv, second_moment and mean, as
            `expected_of_net` makes it; or the name of a theory, see `expected_of_chain`; or None, for nothing.
        frame: what the figure is of, whole.
        drawn: the figure's rows, with the columns layer, signal, x and departs, see `Curves`.
        statistics: which of acsm, acv and second_moment the figure draws.

    Returns:
        a row per (source, layer, signal), with the columns source, signal, layer, x, acsm, acv and second_moment. The
        last three hold the statistics that are drawn under these names, NaN where the table does not say.

    Raises:
        ValueError: an unknown theory, or one that is not for this net; a table that lacks columns, says something twice
            or has nothing for this figure.
    """
    if expected is None:
        return pd.DataFrame(columns=COLUMNS)
    table = expected_of_chain(frame, expected) if not isinstance(expected, pd.DataFrame) else _checked(expected)
    table = _completed(table)
    places = drawn[["layer", "signal", "x", "departs"]].drop_duplicates(["layer", "signal"])
    table = table.merge(places, on=["layer", "signal"])
    departs = table["departs"].astype(bool)
    table = table.assign(
        acsm=table["second_moment"].where(departs, table["acsm"]),
        acv=(table["second_moment"] - table["mean"] ** 2).where(departs, table["acv"]),
    )
    if not np.isfinite(table[list(statistics)].to_numpy(np.float64)).any():
        raise ValueError("`expected` says nothing about the layers, signals and statistics of this figure")
    return table.sort_values("x", kind="stable")[COLUMNS]


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in ("layer", "signal", "source") if name not in table]:
        raise ValueError(f"`expected` lacks the columns {', '.join(missing)}")
    if not set(STATISTICS) & set(table):
        raise ValueError(f"`expected` has none of the columns {', '.join(STATISTICS)}")
    twice = table[table.duplicated(["layer", "signal", "source"])]
    if not twice.empty:
        row = twice.iloc[0]
        raise ValueError(f"`expected` has two values of {row['source']!r} for the {row['signal']} of {row['layer']}")
    return table


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """With all statistics: of ACSM, ACV and their sum any two give the third; NaN where there is nothing to go by."""
    acsm, acv, moment, mean = (
        table[name].astype(np.float64) if name in table else pd.Series(np.nan, table.index) for name in STATISTICS
    )
    return table.assign(
        acsm=acsm.fillna(moment - acv),
        acv=acv.fillna(moment - acsm),
        second_moment=moment.fillna(acsm + acv),
        mean=mean,
    )
