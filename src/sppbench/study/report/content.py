"""What the page says: its content, its first paragraph, and the commands that make it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sppbench.evidence.profiles import unusual
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.evidence.selection import Evidence, read_evidence
from sppbench.spp.diagnosis.finding import Finding
from sppbench.study.claims.claim import Claim
from sppbench.study.claims.judge import judge
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.figures.draw_all import draw_figures
from sppbench.study.figures.drawing import Drawing
from sppbench.study.report.run_findings import findings
from sppbench.study.report.run_list import departures
from sppbench.study.table.cells import Table, read_table

TABLE = "table1"


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        evidence: All runs under the directory.
        claims: With their verdicts.
        table: The sweep `TABLE`; None if it is not there or cannot be read.
        table_problem: Why there is none; empty if there is one.
        drawings: The figures that could be drawn.
        figure_notes: What is missing or odd about them.
        problems: Files and runs that are damaged or odd, and runs that are there twice, a line each.
        departures: Runs that do not count for the claims: by how they depart from the protocol, their paths.
        findings: By the name of a run: what is wrong in it, see `run_findings`.
    """

    evidence: Evidence
    claims: tuple[Claim, ...]
    table: Table | None
    table_problem: str
    drawings: tuple[Drawing, ...]
    figure_notes: tuple[str, ...]
    problems: tuple[str, ...]
    departures: dict[str, list[str]]
    findings: dict[str, list[Finding]] = field(default_factory=dict)


def gather(directory: str | Path) -> Content:
    """Reads all runs under a directory, judges the claims and draws the figures.

    Raises:
        EvidenceError: It is not a directory.
        RulesError: The rules of the claims cannot be read.
        UserError: The published table cannot be read.
    """
    evidence = read_evidence(directory)
    table, table_problem = _read_table(evidence.directory / TABLE)
    drawings, figure_notes = draw_figures(evidence)
    return Content(
        evidence=evidence,
        claims=tuple(judge(evidence)),
        table=table,
        table_problem=table_problem,
        drawings=tuple(drawings),
        figure_notes=tuple(figure_notes),
        problems=tuple(dict.fromkeys([*evidence.problems, *evidence.lost, *evidence.duplicates, *odd_runs(evidence)])),
        departures=departures(evidence.runs, read_rules().protocol),
        findings=findings(evidence.runs, evidence.directory),
    )


def _read_table(directory: Path) -> tuple[Table | None, str]:
    if not directory.is_dir():
        return None, f"There is no {directory}."
    try:
        return read_table(directory), ""
    except EvidenceError as error:
        return None, f"It cannot be made: {error}"


def odd_runs(evidence: Evidence) -> Iterator[str]:
    """Histories that are damaged, or whose signals are not finite or of other layers than usual; a line each."""
    layers: dict[str, dict[Path, tuple[str, ...]]] = {}
    for run in evidence.runs:
        if run.counts and run.has_gains:
            try:
                _ = run.gains
            except EvidenceError as error:
                yield str(error)
        if run.counts and run.has_signals:
            try:
                yield from _not_finite(run)
                frame = run.signals()
            except EvidenceError as error:
                yield str(error)
                continue
            names = tuple(dict.fromkeys(frame.sort_values("depth", kind="stable")["layer"]))
            net = {key: value for key, value in run.settings.items() if key.startswith("model.")}
            layers.setdefault(f"{run.model} {net}", {})[run.path] = names
    for of_net in layers.values():
        usual, odd = unusual(of_net)
        for path in odd:
            count, others = len(of_net[path]), len(usual or ())
            if count != others:
                yield f"{path} recorded {count} layers, and not {others} as other runs of the same net did"
            else:
                yield f"{path} recorded layers of other names than other runs of the same net did"


def _not_finite(run: Run) -> Iterator[str]:
    frame = run.signals()
    bad = frame[~np.isfinite(frame["second_moment"])]
    if len(bad):
        first = int(bad["epoch"].min())
        share = f"{len(bad)} of {len(frame)} epoch means"
        yield f"{run.path}: {share} of its signals are not finite, the first in epoch {first}"


HEADLINE = "C2"
_WORDS = (("holds", "holds", "hold"), ("fails", "fails", "fail"), ("undecided", "is undecided", "are undecided"))


def answer(content: Content) -> list[str]:
    """What the runs say about the claims, in sentences."""
    claims, runs = content.claims, content.evidence.runs
    counted = [run for run in runs if run.counts]
    nets = len({run.model for run in counted})
    if not counted:
        return [
            f"No run under {content.evidence.directory} has finished, so nothing can be said about the study's claims "
            "yet."
        ]
    verdicts = []
    for verdict, one, several in _WORDS:
        if which := [claim.id for claim in claims if claim.verdict == verdict]:
            verdicts.append(f"{len(which)} {one if len(which) == 1 else several} ({', '.join(which)})")
    sentences = [
        f"Of the study's {len(claims)} claims, {_joined(verdicts)}, judged by {_count(len(counted), 'finished run')} "
        f"of {_count(nets, 'net')}."
    ]
    headline = next((claim for claim in claims if claim.id == HEADLINE), None)
    return sentences + ([_headline(headline)] if headline is not None else [])


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n != 1 else ''}"


def _headline(claim: Claim) -> str:
    verb = "is undecided" if claim.verdict == "undecided" else claim.verdict
    measured = []
    for part in claim.parts:
        if part.decides and part.value is not None:
            interval = f" [{part.interval[0]:.3g}, {part.interval[1]:.3g}]" if part.interval is not None else ""
            measured.append(f"{part.name}: {part.value:.3g}{interval}")
    what = claim.parts[0].quantity if claim.parts else ""
    numbers = f" ({what}; {'; '.join(measured)})" if measured else ""
    return f"The headline claim {claim.id} {verb}{numbers}."


def ways_to_make(content: Content) -> list[tuple[str, str]]:
    """Commands, and what each of them does."""
    directory = content.evidence.directory
    return [
        (f"sppbench report {directory} --output report.html", "makes this page again, from the runs so far"),
        ("python -m sppbench.train -m sweeps=figures", "runs what is missing for the figures and for claims C1 and C2"),
        (f"python -m sppbench.train -m sweeps={TABLE}", "runs what is missing for Table 1 and for claims C3 to C6"),
        (f"sppbench inspect {directory}", "inspects the weights of finished runs, for claims C1 and C5"),
        (f"sppbench figures {directory} --output DIR", "writes the figures as PNG and PDF, with their data"),
        (f"sppbench claims {directory}", "prints the verdicts"),
        (f"sppbench table {directory / TABLE}", "prints Table 1"),
    ]
