"""Where figures and their matches go: to the terminal, to files with the data behind them, and to Weights & Biases."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sppbench.evidence.keep import write_compact
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.files import replacing, write_text
from sppbench.study.common.output import OutputError, log_run, rendered
from sppbench.study.common.output import write_figures as write_images
from sppbench.study.common.plain_text import in_markdown, visible
from sppbench.study.common.text_tables import pipes
from sppbench.study.figures.drawing import Drawing, Match, Reading, reason

CURVES_FILE = "curves.parquet"
WIDTH = 118  # of the terminal's table
ANSWERS = {True: "yes", False: "no", None: "unknown"}
MATCH_HEADER = ("quantity", "ours", "published", "criterion", "agrees")
READING_HEADER = ("reading", "value", "over seeds", "fits best")
MATCH_WIDTHS = (27, 38, 24, 14, 7)  # of the columns; longer texts are wrapped


def all_curves(drawings: Sequence[Drawing]) -> pd.DataFrame:
    """The data of all figures, with the column ``figure`` first."""
    return pd.concat([drawing.curves.assign(figure=drawing.name) for drawing in drawings], ignore_index=True)[
        ["figure", *drawings[0].curves.columns]
    ]


def write_figures(
    drawings: Sequence[Drawing], notes: Sequence[str], runs: Sequence[Run], directory: Path
) -> tuple[list[Path], list[str]]:
    """Writes each figure as PNG and PDF, curves.parquet, matches.json and matches.md, and the runs in compact form.

    Each file is whole, or is what it was before. A figure that cannot be rendered becomes a note. Without figures only
    the texts are written.

    Args:
        drawings: The figures.
        notes: What must be said of the runs.
        runs: Those that the figures are made of.
        directory: Is made if it is not there.

    Returns:
        The files, without those of the runs; and what could not be written, a figure or a run a line.

    Raises:
        OutputError: The directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths, problems = _write_images(drawings, directory)
        if drawings:
            paths.append(directory / CURVES_FILE)
            with replacing(paths[-1]) as file:
                all_curves(drawings).to_parquet(file, index=False, compression="zstd")
        content = {"matches": match_rows(drawings), "readings": reading_rows(drawings), "notes": [*notes, *problems]}
        texts = {
            "matches.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
            "matches.md": markdown(drawings, [*notes, *problems]),
        }
        for name, text in texts.items():
            paths.append(directory / name)
            write_text(paths[-1], text)
    except OSError as error:
        raise OutputError(f"cannot write to {directory}: {error.strerror or error}") from error
    return paths, [*problems, *_write_runs(runs, directory)]


def _write_images(drawings: Sequence[Drawing], directory: Path) -> tuple[list[Path], list[str]]:
    paths, problems = [], []
    for drawing in drawings:
        try:
            paths += write_images({drawing.name: drawing.figure}, directory)
        except OSError:
            raise
        except Exception as error:  # matplotlib raises many kinds, and the other figures are wanted
            problems.append(f"{drawing.name} cannot be drawn: {reason(error)}")
    return paths, problems


def _write_runs(runs: Sequence[Run], directory: Path) -> list[str]:
    problems = []
    for run in runs:
        try:
            write_compact(run, directory)
        except EvidenceError as error:
            problems.append(f"{run.path} is not kept in compact form: {error}")
    return problems


def log_figures(drawings: Sequence[Drawing], directory: Path) -> list[str]:
    """Logs one W&B run with an image for each figure, and the tables ``matches`` and ``readings``.

    Returns:
        A line for each figure that cannot be rendered, and is left out.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    readings = [
        {**row, "value": None if row["value"] is None else float(row["value"]), "spread": str(row["spread"] or "")}
        for row in reading_rows(drawings)
    ]
    matches = [{**row, "agrees": str(row["agrees"])} for row in match_rows(drawings)]
    images, problems = renderable(drawings)
    log_run(directory, "figures", directory.resolve().name, {"matches": matches, "readings": readings}, images)
    return problems


def renderable(drawings: Sequence[Drawing]) -> tuple[dict[str, Figure], list[str]]:
    """The figures on paper that can be rendered, by name, and a line for each other one; found out by rendering."""
    figures, problems = {}, []
    for drawing in drawings:
        try:
            rendered(drawing.figure, "png")
        except Exception as error:  # as above
            problems.append(f"{drawing.name} cannot be drawn: {reason(error)}")
        else:
            figures[drawing.name] = drawing.figure
    return figures, problems


def terminal(drawing: Drawing) -> str:
    """Title, caption, matches and readings, aligned."""
    lines = [
        f"{drawing.name}: {visible(drawing.title)}",
        *textwrap.wrap(visible(drawing.caption), WIDTH, initial_indent="  ", subsequent_indent="  "),
    ]
    if drawing.matches:
        lines += ["", *_aligned(MATCH_HEADER, [_match(match) for match in drawing.matches], MATCH_WIDTHS)]
    for measure, readings in _by_measure(drawing.readings).items():
        rows = [_reading(reading) for reading in readings]
        widths = [max(len(row[column]) for row in [READING_HEADER, *rows]) for column in range(len(READING_HEADER))]
        lines += ["", f"  readings, by {measure}:", *_aligned(READING_HEADER, rows, widths)]
    return "\n".join(lines)


def markdown(drawings: Sequence[Drawing], notes: Sequence[str]) -> str:
    """All matches and readings, and the notes, as a document."""
    parts = ["# Our figures beside the published ones"]
    shown: set[tuple[Reading, ...]] = set()
    for drawing in drawings:
        if not drawing.matches and not drawing.readings:
            continue
        parts += [f"## {in_markdown(drawing.name)}: {in_markdown(drawing.title)}", in_markdown(drawing.caption)]
        if drawing.matches:
            parts.append("\n".join(pipes(MATCH_HEADER, [_match(match) for match in drawing.matches])))
        if drawing.readings in shown:
            parts.append("Readings: as above.")
            continue
        shown.add(drawing.readings)
        for measure, readings in _by_measure(drawing.readings).items():
            rows = [(*_reading(reading), reading.note) for reading in readings]
            parts += [f"Readings, by {in_markdown(measure)}:", "\n".join(pipes((*READING_HEADER, "note"), rows))]
    if notes:
        parts += ["## Notes", "\n".join(f"- {in_markdown(note)}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def match_rows(drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """A row for each match, with the column ``figure``."""
    return [{"figure": drawing.name, **vars(match)} for drawing in drawings for match in drawing.matches]


def reading_rows(drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """A row for each reading, with the column ``figure``; a value that is not finite becomes text, as JSON has none."""
    return [
        {
            "figure": drawing.name,
            **vars(reading),
            "value": _json(reading.value),
            "spread": None if reading.spread is None else [_json(value) for value in reading.spread],
        }
        for drawing in drawings
        for reading in drawing.readings
    ]


def _json(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _match(match: Match) -> tuple[str, ...]:
    return (match.quantity, match.ours, match.published, match.criterion, ANSWERS[match.agrees])


def _reading(reading: Reading) -> tuple[str, ...]:
    value = "?" if reading.value is None else _number(reading.value)
    spread = "" if reading.spread is None or reading.n < 2 else " to ".join(_number(end) for end in reading.spread)
    return (reading.reading, value, spread, "yes" if reading.best else "")


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.0f}" if value == round(value) else f"{value:.3f}"


def _by_measure(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    found: dict[str, list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.measure, []).append(reading)
    return found


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Lines of a table whose cells are wrapped to the widths of their columns."""
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            textwrap.wrap(visible(cell), width, break_on_hyphens=False) or [""]
            for cell, width in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append(
                "  " + "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            )
    return lines
