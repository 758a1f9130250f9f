"""C2: does the learnable scale and shift of batch normalization scale the gradients, at equal width?

Ratios of the second moments of gradients are of two nets with the same seed, as geometric means over layers and epochs;
intervals are of the mean logarithm over seeds.

Context is which factor of the backward gain G = γ²·1/(v + ε)·p of batch normalization carries its change over training:
from the first to the last epoch log2 of it changes by a sum of three logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pandas as pd

from sppbench.evidence.profiles import Profiles, log_gains, log_profiles, ratio_of_profiles
from sppbench.spp.names import FACTOR_SYMBOLS, GAIN_AND_FACTORS
from sppbench.study.claims.c2_accuracies import accuracy_parts
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Record, Setup
from sppbench.study.claims.thresholds import Affine, Backward
from sppbench.study.common.intervals import Estimate, Verdict, above, at_most, mean, measured

_CHANGES = list(GAIN_AND_FACTORS)
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
    """Deciding: affine on / off at each width. Context: epochs, widths, parts of affine, accuracies, gains."""
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
    profiles = {
        net: log_profiles(record.evidence, net, epochs, rule.layers, record.rules.lr)
        for net in {net for question in questions for net in (question.numerator, question.denominator)}
    }
    parts = [_ratio(record, question, profiles) for question in questions]
    return (*parts, *accuracy_parts(record, rule), *_gain_parts(record, rule))


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


def _ratio(record: Record, question: _Question, profiles: Mapping[str, Profiles]) -> Part:
    rules = record.rules
    nets = (question.numerator, question.denominator)
    pairs = ratio_of_profiles(nets[0], profiles[nets[0]], nets[1], profiles[nets[1]])
    table = pairs.table[pairs.table["epoch"].isin(question.epochs)]
    by_seed = table.groupby("seed")["log_ratio"].mean()
    logs = {int(seed): float(value) for seed, value in by_seed.items()}
    estimate = mean(list(logs.values()), rules.confidence).mapped(math.exp) if logs else None
    cells = [Setup(net, rules.lr) for net in nets]
    verdict: Verdict = "undecided"
    missing = ""
    if estimate is not None and len(logs) >= rules.seeds:
        verdict = question.decide(estimate)
        if verdict == "undecided":
            missing = record.more(cells, logs, "the interval is too wide")
    else:
        missing = _needs(record, cells, logs, profiles)
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


def _needs(record: Record, cells: Sequence[Setup], paired: dict[int, float], profiles: Mapping[str, Profiles]) -> str:
    """The runs for as many pairs as are needed, those first of whose pairs one run is there."""
    usable = {cell: set(profiles[cell.net].table["seed"]) for cell in cells}
    spoilt = {seed for cell in cells for seed in record.runs(cell) if seed not in usable[cell]}
    candidates = record.unused({*paired, *spoilt}, len(record.rules.study_seeds) + record.rules.seeds)
    candidates.sort(key=lambda seed: not any(seed in seeds for seeds in usable.values()))
    chosen = candidates[: record.rules.seeds - len(paired)]
    return record.needs((cell, [seed for seed in chosen if seed not in usable[cell]]) for cell in cells)


def _gain_parts(record: Record, rule: Backward) -> tuple[Part, ...]:
    """Context, by width: the share of γ² in the change of the gain, where both scale and shift are learned."""
    return tuple(_gain_part(record, rule, h, nets) for h, nets in sorted(rule.widths.items()))


def _gain_part(record: Record, rule: Backward, h: int, nets: Affine) -> Part:
    rules = record.rules
    cell = Setup(nets.both, rules.lr)
    by_seed, problems = _by_seed(record, rule, nets.both)
    off, _ = _by_seed(record, rule, nets.neither)
    changes = [int(seed) for seed in by_seed.index]
    verdict: Verdict = "undecided"
    estimate: Estimate | None = None
    missing, details = "", [*problems]
    if changes:
        averages = by_seed.mean()
        details = [
            _sentence(averages, rule),
            *([f"affine off: {_sentence(off.mean(), rule)}"] if len(off) else []),
            *problems,
        ]
        if abs(averages["gain"]) >= rule.gain_change:
            estimate = mean([float(share) for share in by_seed["gamma_squared"] / by_seed["gain"]], rules.confidence)
        else:
            missing = f"the gain hardly changed (by less than {rule.gain_change:g}): there is nothing to attribute"
    if len(changes) < rules.seeds:
        missing = record.needs([(cell, record.unused(record.runs(cell), rules.seeds - len(changes)))])
    elif estimate is not None:
        verdict = above(estimate, rule.gain_share)
        missing = record.more([cell], changes, "the interval is too wide") if verdict == "undecided" else ""
    return Part(
        f"γ² in the change of the gain, h = {h}",
        f"share of γ² in the change of log2 of the backward gain from epoch {rule.epochs[0]} to {rule.epochs[-1]}",
        *measured(estimate),
        len(changes),
        f"interval above {rule.gain_share:g}: the learned scale carries the change",
        verdict,
        missing,
        tuple(details),
        decides=False,
    )


def _by_seed(record: Record, rule: Backward, net: str) -> tuple[pd.DataFrame, list[str]]:
    """Change of log2 of the gain and of its factors from the first to the last epoch, as means over layers.

    Returns:
        One row per seed; and which runs were left out: their gains are not finite, do not reach the epochs, or are
        missed by the product of their factors.
    """
    found = log_gains(record.evidence, net, record.rules.lr)
    problems = [problem for problem in found.problems if problem.startswith("left out")]
    wanted = [layer for layer in found.table["layer"].unique() if fnmatchcase(layer, rule.gain_layers)]
    chosen = found.table[found.table["layer"].isin(wanted)]
    changes: dict[int, pd.Series] = {}
    for seed, rows in chosen.groupby("seed"):
        start, end = (rows[rows["epoch"] == epoch].set_index("layer") for epoch in (rule.epochs[0], rule.epochs[-1]))
        if start.empty or end.empty:
            problems.append(
                f"left out: {net}, seed {seed}, has no gains of epochs {rule.epochs[0]} and {rule.epochs[-1]}"
            )
        elif not max(start["closure"].max(), end["closure"].max()) <= rule.closure:
            problems.append(f"left out: {net}, seed {seed}, whose gains are not the product of their factors")
        else:
            changes[int(seed)] = (end[_CHANGES] - start[_CHANGES]).mean(skipna=False)
    return pd.DataFrame(changes).T, problems


def _sentence(changes: pd.Series, rule: Backward) -> str:
    factors = ", ".join(f"{symbol} {changes[name]:+.2f}" for name, symbol in FACTOR_SYMBOLS.items())
    return f"log2 of the gain changed by {changes['gain']:+.2f} (mean over {rule.gain_layers} and seeds): {factors}"
