"""What the command prints and the files say: the matches and readings of the figures, as text, Markdown and rows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from sppbench.study.figures.drawing import Drawing, Match, Reading

WIDTH = 118  # of the terminal's table
ANSWERS = {True: "yes", False: "no", None: "unknown"}
MATCH_HEADER = ("quantity", "ours", "published", "criterion", "agrees")
READING_HEADER = ("reading", "value", "over seeds", "fits best")
MATCH_WIDTHS = (27, 38, 24, 14, 7)  # of the columns; longer texts are wrapped


def terminal(drawing: Drawing) -> str:
    """Title, caption, matches and readings, aligned."""
    lines = [
        f"{drawing.name}: {drawing.title}",
        *textwrap.wrap(drawing.caption, WIDTH, initial_indent="  ", subsequent_indent="  "),
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
        parts += [f"## {_escape(drawing.name)}: {_escape(drawing.title)}", _escape(drawing.caption)]
        if drawing.matches:
            parts.append(_pipes(MATCH_HEADER, [_match(match) for match in drawing.matches]))
        if drawing.readings in shown:
            parts.append("Readings: as above.")
            continue
        shown.add(drawing.readings)
        for measure, readings in _by_measure(drawing.readings).items():
            rows = [(*_reading(reading), reading.note) for reading in readings]
            parts += [f"Readings, by {_escape(measure)}:", _pipes((*READING_HEADER, "note"), rows)]
    if notes:
        parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in notes)]
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
            textwrap.wrap(cell, width, break_on_hyphens=False) or [""] for cell, width in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append(
                "  " + "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            )
    return lines


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *[[_escape(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    for character in "\\|*_<":
        text = text.replace(character, f"\\{character}")
    return text
