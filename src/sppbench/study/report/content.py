"""What the page says: a user's own runs, the study, what is odd, and the commands that make it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sppbench.evidence.profiles import unusual
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.evidence.selection import Evidence, read_evidence
from sppbench.spp.diagnosis.finding import Finding
from sppbench.study.claims.claim import Claim
from sppbench.study.claims.judge import judge
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.figures.draw_all import draw_figures
from sppbench.study.figures.drawing import Drawing
from sppbench.study.figures.drawn_runs import follow_protocol
from sppbench.study.figures.published_figures import read_published_figures
from sppbench.study.report.run_findings import findings
from sppbench.study.report.run_list import departures
from sppbench.study.report.run_pages import RunPage, not_finite, run_pages
from sppbench.study.table.cells import Table, read_table

TABLE, TABLE_OF_THESIS = "table1", "table3"
# The values of the second one are not known here.
TABLES = {TABLE: "Table 1, ours beside the published one", TABLE_OF_THESIS: "Table 3 of the thesis, ours alone"}
SWEEPS = frozenset({*TABLES, "figures", "claims", "nf"})  # of the study, see conf/sweeps


@dataclass(frozen=True)
class StudyTable:
    """One of `TABLES`: its sweep's name and its heading, and the table, or why there is none."""

    name: str
    heading: str
    table: Table | None
    problem: str = ""


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        evidence: All runs under the directory.
        own: Runs that are not of the study's sweeps; the newest, if they are many.
        owned: How many there are.
        studied: Whether runs of the study are here. Without them there are no claims and figures.
        claims: With their verdicts.
        tables: Of the sweeps `TABLES` that are here; where runs of the study are, also `TABLE` itself.
        drawings: The figures that could be drawn.
        figure_notes: What is missing or odd about them.
        problems: Files and runs that are damaged or odd, and runs that are there twice, one line each.
        departures: Runs that do not count for the claims: by how they depart from the protocol, their paths.
        findings: By the name of a run: what is wrong in it, see `run_findings`.
    """

    evidence: Evidence
    own: tuple[RunPage, ...]
    owned: int
    studied: bool
    claims: tuple[Claim, ...]
    tables: tuple[StudyTable, ...]
    drawings: tuple[Drawing, ...]
    figure_notes: tuple[str, ...]
    problems: tuple[str, ...]
    departures: dict[str, list[str]]
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def under_way(self) -> list[Run]:
        """The runs that a process is at work on."""
        return [run for run in self.evidence.runs if run.is_under_way]


def gather(directory: str | Path) -> Content:
    """Reads all runs under a directory, judges the claims and draws the figures.

    Raises:
        EvidenceError: It is not a directory.
        RulesError: The rules of the claims cannot be read.
        UserError: The published table cannot be read.
    """
    evidence = read_evidence(directory)
    of_study = study_runs(evidence)
    own = own_runs(evidence, of_study)
    drawings, figure_notes = draw_figures(evidence) if of_study else ([], [])
    return Content(
        evidence=evidence,
        own=tuple(run_pages(own, evidence.directory)),
        owned=len(own),
        studied=bool(of_study),
        claims=tuple(judge(evidence)) if of_study else (),
        tables=tuple(_tables(evidence.directory, bool(of_study))),
        drawings=tuple(drawings),
        figure_notes=tuple(figure_notes),
        problems=tuple(dict.fromkeys([*evidence.problems, *evidence.lost, *evidence.duplicates, *odd_runs(evidence)])),
        departures=departures(evidence.runs, read_rules().protocol) if of_study else {},
        findings=findings(evidence.runs, evidence.directory),
    )


def study_runs(evidence: Evidence) -> list[Run]:
    """The runs that follow the protocol of the study's claims or figures.

    Raises:
        RulesError: The rules of the claims cannot be read.
        UserError: The published numbers cannot be read.
    """
    of_claims = evidence.only({}, read_rules().protocol).runs
    of_figures = follow_protocol(evidence, read_published_figures()).runs
    paths = {run.path for run in (*of_claims, *of_figures)}
    return [run for run in evidence.runs if run.path in paths]


def own_runs(evidence: Evidence, of_study: list[Run]) -> list[Run]:
    """The runs that are not in one of the study's sweeps: also those that follow its protocol."""
    sweeps = {run.sweep for run in of_study} & SWEEPS | {TABLE_OF_THESIS}  # no claim is about the nets of that one
    return [run for run in evidence.runs if run.sweep not in sweeps]


def _tables(directory: Path, studied: bool) -> Iterator[StudyTable]:
    for name, heading in TABLES.items():
        if (directory / name).is_dir():
            try:
                yield StudyTable(name, heading, read_table(directory / name))
            except EvidenceError as error:
                yield StudyTable(name, heading, None, f"It cannot be made: {error}")
        elif studied and name == TABLE:
            yield StudyTable(name, heading, None, f"There is no {directory / name}.")


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
                yield from not_finite(run)
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
                yield f"{path} recorded {count} layers, not {others} as other runs of the same net did"
            else:
                yield f"{path} recorded layers with other names than other runs of the same net did"


def ways_to_make(content: Content) -> list[tuple[str, str]]:
    """Commands, and what each of them does."""
    directory = content.evidence.directory
    always = [
        (f"sppbench report {directory} --output report.html", "makes this page again, from the runs so far"),
        (f"sppbench report {directory} --every 60", "does so every minute, until all runs have ended"),
    ]
    if not content.studied:
        return [*always, ("python -m sppbench.train --help", "explains how to make a run")]
    return [
        *always,
        ("python -m sppbench.train -m sweeps=figures", "runs what is missing for the figures and for claims C1 and C2"),
        (f"python -m sppbench.train -m sweeps={TABLE}", "runs what is missing for Table 1 and for claims C3 to C6"),
        ("python -m sppbench.train -m sweeps=nf_efficientnet", "runs what is missing for claim C7"),
        (f"sppbench inspect {directory}", "inspects the weights of finished runs, for claims C1 and C5"),
        (f"sppbench figures {directory} --output DIR", "writes the figures as PNG and PDF, with their data"),
        (f"sppbench claims {directory}", "prints the verdicts"),
        (f"sppbench table {directory / TABLE}", "prints Table 1"),
    ]
