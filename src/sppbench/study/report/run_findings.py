"""What is wrong in the runs, by their recorded signals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.spp.diagnosis.diagnose import diagnose
from sppbench.spp.diagnosis.finding import Finding
from sppbench.study.report.run_pages import run_name


def findings(runs: Iterable[Run], directory: Path) -> dict[str, list[Finding]]:
    """By the path of a run below a directory: what is wrong in it, as far as its epoch means say it.

    Runs of which no signals were recorded, or of which they are damaged, are left out; so are those in which nothing is
    found.
    """
    found = {}
    for run in runs:
        if not run.has_signals:
            continue
        try:
            signals = run.signals()
            gains = run.gains if run.has_gains else None
        except EvidenceError:  # which is among the problems
            continue
        if of_run := diagnose(signals, batchnorm=gains):
            found[run_name(run, directory)] = list(of_run)
    return found
