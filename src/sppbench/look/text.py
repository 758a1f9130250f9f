"""A view of a net in words: a table of its layers, what theory says, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sppbench.look.look import NEAR, View
from sppbench.spp.names import short_name, shortened

WIDTH = 110  # columns of a terminal
MOST = 44  # rows of a table that is shown whole
NAME = 44  # columns of a layer's name


def table_of(view: View) -> pd.DataFrame:
    """One row per layer in the order of execution: depth, layer, kind, and second moments.

    Columns ``activation``, ``gradient`` and ``parameter`` are measured, ``expected`` is what theory gives for the
    activation; NaN where there is none. A weight that is not its layer's only one has a row of its own.
    """
    frame = view.frame[view.frame["signal"] != "parameter_gradient"]
    index = ["depth", "layer", "kind"]
    table = frame.pivot_table("second_moment", index, "signal", sort=False, dropna=False, observed=True)
    table = table.reindex(columns=["activation", "gradient", "parameter"]).dropna(how="all").reset_index()
    table["expected"] = table["layer"].map(view.expected.set_index("layer")["second_moment"])
    return table.sort_values("depth", kind="stable", ignore_index=True)


def text_of(view: View, inputs: str) -> str:
    """All of it as the command prints it; ``inputs`` says what the net was called with."""
    lines = [
        f"{view.name}: {view.parameters:,} parameters, {view.frame['layer'].nunique()} layers and weights recorded in "
        f"{view.seconds:.1f} s",
        f"called once with {inputs} of shape {view.shape}; loss: {view.loss}",
        "",
        *_layers(table_of(view)),
        "",
        *_paragraph(_theory(view)),
        *(line for note in view.notes for line in _paragraph(f"Note: {note}")),
        *_paragraph(_verdict(view)),
    ]
    return "\n".join(lines)


def _layers(table: pd.DataFrame) -> Iterator[str]:
    yield f"{'depth':>5}  {'layer':<{NAME}}  {'kind':<18}  {'E[x²]':>8}  {'theory':>8}  {'gradient':>8}  {'weight':>8}"
    half = MOST // 2
    for place, row in enumerate(table.itertuples(index=False)):
        if len(table) > MOST and place == half:
            yield f"{'':>5}  … {len(table) - MOST} more …"
        if len(table) > MOST and half <= place < len(table) - half:
            continue
        numbers = (row.activation, row.expected, row.gradient, row.parameter)
        yield (
            f"{row.depth:>5}  {short_name(str(row.layer), NAME):<{NAME}}  "
            f"{short_name(str(row.kind), 18):<18}  " + "  ".join(f"{_number(one):>8}" for one in numbers)
        ).rstrip()


def _number(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) and not np.isnan(value) else ""


def _theory(view: View) -> str:
    recorded, given, near = view.agreement()
    if not given:
        return "Theory: makes no prediction for this net."
    return (
        f"Theory: {given} of {recorded} activations; {near / given:.0%} of these were measured within {NEAR:.0%} of "
        "their expected second moment."
    )


def _verdict(view: View) -> str:
    skipped = f" Not recorded: {shortened(list(view.skipped), 3)}." if view.skipped else ""
    if not view.findings:
        return f"Verdict: nothing is wrong with its signals at initialization.{skipped}"
    found = "\n".join(f"- {one.kind}: {one.text}" for one in view.findings)
    return f"Verdict:{skipped}\n{found}"


def _paragraph(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
