"""Verdicts for people, on a terminal and in Markdown, and for programs, in JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sppbench.files import write_text
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.common.output import OutputError

WIDTH = 110  # columns of a terminal
DASH = "\N{EM DASH}"


def terminal(claims: Sequence[Claim]) -> str:
    """A block a claim: its verdict and statement, then its parts."""
    return "\n\n".join("\n".join(_block(claim)) for claim in claims)


def _block(claim: Claim) -> Iterable[str]:
    yield from _wrapped(f"{claim.id}  {claim.verdict.upper()}  {claim.statement}", "", " " * 4)
    yield from _wrapped(f"({claim.source})", "    ", "    ")
    said: set[str] = set()
    for (decides, quantity, criterion), parts in groupby(
        claim.parts, lambda part: (part.decides, part.quantity, part.criterion)
    ):
        yield ""
        sentence = f"{quantity}. Holds if {criterion}." if decides else f"Context: {quantity}. Holds if {criterion}."
        yield from _wrapped(sentence[0].upper() + sentence[1:], "  ", "  ")
        for part in parts:
            yield f"    {part.name:<50} {_measured(part):<30} n = {part.n:<3} {part.verdict}".rstrip()
            yield from _notes(part, said)


def _notes(part: Part, said: set[str]) -> Iterable[str]:
    """What is missing and the details; what was said above is not repeated."""
    if part.missing:
        yield from _wrapped("as above" if part.missing in said else part.missing, "      ! ", " " * 8)
        said.add(part.missing)
    for detail in part.details:
        if detail not in said:
            yield from _wrapped(detail, "      - ", " " * 8)
        said.add(detail)


def _wrapped(text: str, first: str, other: str) -> list[str]:
    # Paths and commands stay whole, to be copied.
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )


def _measured(part: Part) -> str:
    """The value and its interval."""
    if part.value is None:
        return DASH
    interval = f" [{_number(part.interval[0])}, {_number(part.interval[1])}]" if part.interval is not None else ""
    return _number(part.value) + interval


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}" if abs(value) < 100 else f"{value:.1f}"  # the sum turns -0.0 into 0.0


def markdown(claims: Sequence[Claim]) -> str:
    """A table of verdicts, then a table of parts and the details for each claim."""
    lines = ["# Claims", "", *_pipes(["claim", "verdict", "statement"], [_summary(claim) for claim in claims])]
    for claim in claims:
        rows = [
            [
                part.name if part.decides else f"(context) {part.name}",
                *(part.quantity, _measured(part), str(part.n), part.criterion, part.verdict, part.missing or DASH),
            ]
            for part in claim.parts
        ]
        header = ["part", "quantity", "value [interval]", "n", "criterion", "verdict", "missing"]
        details = [f"- {part.name}: {detail}" for part in claim.parts for detail in part.details]
        lines += ["", f"## {claim.id}: {claim.verdict}", "", _escaped(claim.statement), "", f"Source: {claim.source}."]
        lines += ["", *_pipes(header, rows), *([""] if details else []), *map(_escaped, details)]
    return "\n".join(lines)


def _summary(claim: Claim) -> list[str]:
    return [claim.id, claim.verdict, claim.statement]


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_escaped(value) for value in line)} |" for line in lines]


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\|*_`<" else letter for letter in text)


def to_json(claims: Sequence[Claim]) -> str:
    """A list with all fields of the claims and their parts, and each claim's verdict; what is not finite is null."""
    content = [{**dataclasses.asdict(claim), "verdict": claim.verdict} for claim in claims]
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORMATS = {"terminal": terminal, "markdown": markdown, "json": to_json}


def write_claims(text: str, file: Path) -> None:
    """Writes the verdicts into a file, whose folder is made.

    Raises:
        OutputError: It cannot be written to.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}") from error
