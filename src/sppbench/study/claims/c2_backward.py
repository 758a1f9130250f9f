"""C2: does the learnable scale and shift of batch normalization scale the gradients, at equal width?

Ratios of the second moments of gradients are of two nets with the same seed, as geometric means over layers and epochs;
intervals are of the mean logarithm over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sppbench.evidence.seeds import Profiles, log_profiles, paired_ratio
from sppbench.study.claims.c2_gains import gain_parts
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Cell, Record
from sppbench.study.claims.thresholds import Backward
from sppbench.study.common.intervals import Estimate, Verdict, at_most, mean, measured

_QUANTITY = "ratio of gradients' second moments at the ReLU outputs"


@dataclass(frozen=True)
class _Question:
    """What is asked of a ratio: the two nets, the epochs, and when the answer is yes."""

    name: str
    numerator: str
    denominator: str
    epochs: Sequence[int]
    decide: Callable[[Estimate], Verdict]
    criterion: str
    decides: bool = False


def backward_parts(record: Record, rule: Backward) -> tuple[Part, ...]:
    """Deciding: affine on / off at each width. Context: epochs, widths, interventions, and the factors of the gains."""
    epochs = rule.epochs
    reduced = (
        lambda estimate: at_most(estimate, rule.ratio, 1.0),
        f"≤ {rule.ratio:g}, interval below 1; fails if the interval lies above {rule.ratio:g}",
    )
    widths = sorted(rule.widths.items())
    questions = [
        _Question(f"affine on / off, h = {h}", nets.both, nets.neither, epochs, *reduced, decides=True)
        for h, nets in widths
    ]
    for h, nets in widths:
        for epoch in epochs:
            questions.append(
                _Question(f"affine on / off, h = {h}, epoch {epoch}", nets.both, nets.neither, [epoch], *reduced)
            )
    for h, nets in widths:
        questions.append(_Question(f"scale alone / affine off, h = {h}", nets.scale, nets.neither, epochs, *reduced))
        questions.append(_Question(f"shift alone / affine off, h = {h}", nets.shift, nets.neither, epochs, *reduced))
    questions.extend(_widths(rule))
    pairs = {
        (above, below): paired_ratio(record.evidence, above, below, epochs, rule.layers, record.rules.lr)
        for above, below in {(question.numerator, question.denominator) for question in questions}
    }
    parts = [_ratio(record, rule, question, pairs[question.numerator, question.denominator]) for question in questions]
    return (*parts, *gain_parts(record, rule))


def _widths(rule: Backward) -> list[_Question]:
    """Whether width, which the study's two figures may differ in, does as much as is asked of the scale."""
    (h_small, small), (h_large, large) = sorted(rule.widths.items())[0], sorted(rule.widths.items())[-1]
    raised = (
        lambda estimate: at_most(_inverse(estimate), rule.ratio, 1.0),
        f"≥ {1 / rule.ratio:g}, interval above 1: width alone does what is asked of the affine part",
    )
    both = (
        lambda estimate: at_most(_inverse(estimate), rule.ratio, 1.0),
        f"≥ {1 / rule.ratio:g}, interval above 1: two things changed at once",
    )
    ratio = f"h = {h_small} / h = {h_large}"
    return [
        _Question(f"{ratio}, affine off", small.neither, large.neither, rule.epochs, *raised),
        _Question(f"{ratio}, affine on", small.both, large.both, rule.epochs, *raised),
        _Question(
            f"as the study: off, h = {h_small} / on, h = {h_large}", small.neither, large.both, rule.epochs, *both
        ),
    ]


def _inverse(estimate: Estimate) -> Estimate:
    low, high = (1 / estimate.high, 1 / estimate.low) if estimate.interval else (0.0, math.inf)
    return Estimate(1 / estimate.value, (low, high) if estimate.interval else None, estimate.n)


def _ratio(record: Record, rule: Backward, question: _Question, pairs: Profiles) -> Part:
    rules = record.rules
    table = pairs.table[pairs.table["epoch"].isin(question.epochs)]
    by_seed = table.groupby("seed")["log_ratio"].mean()
    logs = {int(seed): float(value) for seed, value in by_seed.items()}
    estimate = mean(list(logs.values()), rules.confidence).mapped(math.exp) if logs else None
    cells = [Cell(net, rules.lr) for net in (question.numerator, question.denominator)]
    verdict: Verdict = "undecided"
    missing = ""
    if estimate is not None and len(logs) >= rules.seeds:
        verdict = question.decide(estimate)
        if verdict == "undecided":
            missing = record.more(cells, logs, "the interval is too wide")
    else:
        missing = _needs(record, rule, cells, logs)
    details = tuple(problem for problem in pairs.problems if problem.startswith("left out"))
    if len(logs) > 1:
        details = (f"by seed: {', '.join(f'{seed}: {math.exp(log):.3g}' for seed, log in logs.items())}", *details)
    return Part(
        question.name,
        _QUANTITY,
        *measured(estimate),
        len(logs),
        question.criterion,
        verdict,
        missing,
        details,
        question.decides,
    )


def _needs(record: Record, rule: Backward, cells: Sequence[Cell], paired: dict[int, float]) -> str:
    """The runs for as many pairs as are needed, those first of whose pairs one run is there."""
    usable = {
        cell: set(log_profiles(record.evidence, cell.net, rule.epochs, rule.layers, cell.lr).table["seed"])
        for cell in cells
    }
    spoilt = {seed for cell in cells for seed in record.runs(cell) if seed not in usable[cell]}
    candidates = record.unused({*paired, *spoilt}, len(record.rules.study_seeds) + record.rules.seeds)
    candidates.sort(key=lambda seed: not any(seed in seeds for seeds in usable.values()))
    chosen = candidates[: record.rules.seeds - len(paired)]
    return record.needs((cell, [seed for seed in chosen if seed not in usable[cell]]) for cell in cells)
