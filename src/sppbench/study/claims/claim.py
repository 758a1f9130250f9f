"""What a verdict on a claim consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppbench.study.common.intervals import Verdict


@dataclass(frozen=True)
class Part:
    """One test that a claim must pass.

    Attributes:
        name: What it is about, such as "h = 512".
        quantity: What is measured, with its unit.
        value: The measured value; None if there is nothing to measure it from.
        interval: Its interval over seeds; None where there is none.
        n: Runs, or pairs of runs, behind it.
        criterion: When it holds, as written in the rules.
        verdict: Whether it does.
        missing: Why it is undecided, and which runs would decide it; empty otherwise.
        details: What else the reader should know, a sentence each.
        decides: Whether the claim depends on it; parts that do not are context.
    """

    name: str
    quantity: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    criterion: str
    verdict: Verdict
    missing: str = ""
    details: tuple[str, ...] = ()
    decides: bool = True


@dataclass(frozen=True)
class Claim:
    """A claim, of the study or our own, and what the runs say to it.

    Attributes:
        id: "C1" to "C7".
        statement: The claim in the study's sense, one sentence.
        parts: The tests; those that decide first.
        source: Where the claim and its test are from.
    """

    id: str
    statement: str
    parts: tuple[Part, ...]
    source: str

    @property
    def verdict(self) -> Verdict:
        """Holds if all deciding parts hold, fails if one fails, else is undecided."""
        return combine([part.verdict for part in self.parts if part.decides])


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a conjunction; undecided if there is nothing to combine."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts and all(verdict == "holds" for verdict in verdicts) else "undecided"
