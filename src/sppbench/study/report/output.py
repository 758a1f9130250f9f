"""Where the report goes: one HTML file, and Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sppbench.errors import UserError
from sppbench.files import write_text
from sppbench.study.claims.claim import Claim
from sppbench.study.common.output import log_run
from sppbench.study.report.content import TABLE, Content
from sppbench.study.report.page import render
from sppbench.study.table.export import tidy


class ReportError(UserError):
    """Something that the user must mend; the message says what, in a line."""


def check_writable(path: Path) -> None:
    """Refuses a place for the page before the work begins.

    Raises:
        ReportError: There is no such directory, or one may not write to it, or the page's name is that of a directory.
    """
    if path.is_dir():
        raise ReportError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write {path}: {path.parent} is not a directory")
    if not os.access(path.parent, os.W_OK):
        raise ReportError(f"cannot write {path}: Permission denied")


def write_report(content: Content, path: Path) -> int:
    """Writes the page; whoever reads it meanwhile finds the old page or the new one.

    Returns:
        Its size in bytes.

    Raises:
        ReportError: The file cannot be written.
    """
    page = render(content, path)
    try:
        write_text(path, page)
        return path.stat().st_size
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from error


def claim_rows(claims: tuple[Claim, ...]) -> list[dict[str, Any]]:
    """A row for each part of each claim, with the same keys in each."""
    return [
        {
            "claim": claim.id,
            "claim_verdict": claim.verdict,
            "statement": claim.statement,
            "test": part.name,
            "decides": part.decides,
            "quantity": part.quantity,
            "value": part.value,
            "low": part.interval[0] if part.interval is not None else None,
            "high": part.interval[1] if part.interval is not None else None,
            "n": part.n,
            "criterion": part.criterion,
            "verdict": part.verdict,
            "missing": part.missing,
        }
        for claim in claims
        for part in claim.parts
    ]


def log_report(content: Content) -> None:
    """Logs one W&B run with the keys ``report/claims``, ``report/table1`` and ``report/<figure>``.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    directory = content.evidence.directory
    tables = {"report/claims": claim_rows(content.claims)}
    if content.table is not None:
        tables[f"report/{TABLE}"] = tidy(content.table)
    figures = {f"report/{drawing.name}": drawing.figure for drawing in content.drawings}
    log_run(directory, "report", directory.resolve().name, tables, figures)
