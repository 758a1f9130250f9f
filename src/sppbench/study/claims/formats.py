"""Verdicts for people, on a terminal and in Markdown, and for programs, in JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sppbench.files import write_text
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.common.output import OutputError
from sppbench.study.common.plain_text import in_markdown, visible
from sppbench.study.common.text_tables import DASH, pipes, wrapped


def terminal(claims: Sequence[Claim]) -> str:
    """A block a claim: its verdict and statement, then its parts."""
    return "\n\n".join("\n".join(_block(claim)) for claim in claims)


def _block(claim: Claim) -> Iterable[str]:
    yield from wrapped(f"{claim.id}  {claim.verdict.upper()}  {claim.statement}", "", " " * 4)
    yield from wrapped(f"({claim.source})", "    ", "    ")
    said: set[str] = set()
    for (decides, quantity, criterion), parts in groupby(
        claim.parts, lambda part: (part.decides, part.quantity, part.criterion)
    ):
        yield ""
        sentence = f"{quantity}. Holds if {criterion}." if decides else f"Context: {quantity}. Holds if {criterion}."
        yield from wrapped(sentence[0].upper() + sentence[1:], "  ", "  ")
        for part in parts:
            yield f"    {visible(part.name):<50} {_measured(part):<30} n = {part.n:<3} {part.verdict}".rstrip()
            yield from _notes(part, said)


def _notes(part: Part, said: set[str]) -> Iterable[str]:
    """What is missing and the details; what was said above is not repeated."""
    if part.missing:
        yield from wrapped("as above" if part.missing in said else part.missing, "      ! ", " " * 8)
        said.add(part.missing)
    for detail in part.details:
        if detail not in said:
            yield from wrapped(detail, "      - ", " " * 8)
        said.add(detail)


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
    lines = ["# Claims", "", *pipes(["claim", "verdict", "statement"], [_summary(claim) for claim in claims])]
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
        lines += [
            "",
            f"## {claim.id}: {claim.verdict}",
            "",
            in_markdown(claim.statement),
            "",
            f"Source: {in_markdown(claim.source)}.",
        ]
        lines += ["", *pipes(header, rows), *([""] if details else []), *map(in_markdown, details)]
    return "\n".join(lines)


def _summary(claim: Claim) -> list[str]:
    return [claim.id, claim.verdict, claim.statement]


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
