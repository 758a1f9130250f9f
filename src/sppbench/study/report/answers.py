"""The first sentences of the page: what the runs say."""

from __future__ import annotations

from collections import Counter

from sppbench.study.claims.claim import Claim
from sppbench.study.report.content import Content

HEADLINE, HEADLINE_FIGURE = "C2", "scale_effect"  # the claim of the study, and what decides it
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
        f"Of {len(claims)} claims, {_joined(verdicts)}, judged by {_count(len(counted), 'finished run')} "
        f"of {_count(nets, 'net')}."
    ]
    headline = next((claim for claim in claims if claim.id == HEADLINE), None)
    return sentences + ([_headline(headline)] if headline is not None else [])


def own_answer(content: Content) -> list[str]:
    """What there is to see of a user's own runs, in sentences."""
    pages = content.own
    states = Counter("still training" if page.run.is_under_way else page.run.state for page in pages)
    listed = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in states.most_common())
    several = _count(content.owned, "run")
    shown = f"The newest {len(pages)} of {several}" if content.owned > len(pages) else several
    sentences = [f"{shown}: {listed}."]
    tested = [page for page in pages if page.run.accuracy is not None]
    if tested:
        best = max(tested, key=lambda page: page.run.accuracy or 0.0)
        what = "The best test accuracy is" if len(tested) > 1 else "Its test accuracy is"
        sentences.append(f"{what} {best.run.accuracy:.2f} % ({best.name}).")
    found = sum(bool(page.findings or content.findings.get(page.name)) for page in pages)
    return sentences + ([f"There are findings on {found} of them."] if found else [])


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
