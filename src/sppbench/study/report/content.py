"""What the page says, before it has a form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppbench.evidence.runs import Evidence, EvidenceError, Run, read_evidence
from sppbench.study.claims.claim import Claim
from sppbench.study.claims.judge import judge
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.figures.draw_all import draw_figures
from sppbench.study.figures.drawing import Drawing
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
        problems: Files and runs that are damaged or odd, a line each.
        departures: Runs that do not count for the claims: by how they depart from the protocol, their paths.
    """

    evidence: Evidence
    claims: tuple[Claim, ...]
    table: Table | None
    table_problem: str
    drawings: tuple[Drawing, ...]
    figure_notes: tuple[str, ...]
    problems: tuple[str, ...]
    departures: dict[str, list[str]]


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
        problems=tuple(dict.fromkeys([*evidence.problems, *odd_runs(evidence)])),
        departures=departures(evidence.runs, read_rules().protocol),
    )


def _read_table(directory: Path) -> tuple[Table | None, str]:
    if not directory.is_dir():
        return None, f"There is no {directory}."
    try:
        return read_table(directory), ""
    except EvidenceError as error:
        return None, f"It cannot be made: {error}"


def odd_runs(evidence: Evidence) -> Iterator[str]:
    """Recorded signals that are damaged, not finite, or of other layers than the net's other runs have; a line each."""
    layers: dict[str, dict[Path, tuple[str, ...]]] = {}
    for run in evidence.runs:
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
        usual, _ = Counter(of_net.values()).most_common(1)[0]
        for path, names in of_net.items():
            if len(names) != len(usual):
                yield f"{path} recorded {len(names)} layers, and not {len(usual)} as other runs of the same net did"
            elif names != usual:
                yield f"{path} recorded layers of other names than other runs of the same net did"


def _not_finite(run: Run) -> Iterator[str]:
    frame = run.signals()
    bad = frame[~np.isfinite(frame["second_moment"])]
    if len(bad):
        first = int(bad["epoch"].min())
        share = f"{len(bad)} of {len(frame)} epoch means"
        yield f"{run.path}: {share} of its signals are not finite, the first in epoch {first}"
