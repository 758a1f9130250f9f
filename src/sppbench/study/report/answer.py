"""The answer in a paragraph, and the commands that make the page or more of it."""

from __future__ import annotations

from sppbench.study.claims.claim import Claim
from sppbench.study.report.content import TABLE, Content

HEADLINE = "C2"
_WORDS = (("holds", "holds", "hold"), ("fails", "fails", "fail"), ("undecided", "is undecided", "are undecided"))


def answer(content: Content) -> list[str]:
    """What the runs say to the claims; one sentence each."""
    claims, runs = content.claims, content.evidence.runs
    counted = [run for run in runs if run.counts]
    nets = len({run.model for run in counted})
    if not counted:
        return [
            f"No run under {content.evidence.directory} has come to its end, so that nothing can be said on the "
            "study's claims yet."
        ]
    verdicts = []
    for verdict, one, several in _WORDS:
        if which := [claim.id for claim in claims if claim.verdict == verdict]:
            verdicts.append(f"{len(which)} {one if len(which) == 1 else several} ({', '.join(which)})")
    sentences = [
        f"Of the study's {len(claims)} claims, {_joined(verdicts)}, judged by {_count(len(counted), 'run')} of "
        f"{_count(nets, 'net')} that came to their end."
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
    """What to type, and what it is good for."""
    directory = content.evidence.directory
    return [
        (f"sppbench report {directory} --output report.html", "makes this page anew from what is there"),
        ("python -m sppbench.train -m sweeps=figures", "runs what is missing for the figures and for claims C1 and C2"),
        (f"python -m sppbench.train -m sweeps={TABLE}", "runs what is missing for Table 1 and for claims C3 to C6"),
        (f"sppbench inspect {directory}", "inspects the weights of finished runs, for claims C1 and C5"),
        (f"sppbench figures {directory} --output DIR", "writes the figures as PNG and PDF, with their data"),
        (f"sppbench claims {directory}", "the verdicts alone, in the terminal"),
        (f"sppbench table {directory / TABLE}", "Table 1 alone"),
    ]
