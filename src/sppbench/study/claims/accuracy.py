"""C3, C4 and C6: what the study's Table 1 says, by test accuracy over seeds."""

from __future__ import annotations

import math
from dataclasses import replace

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.study.claims.chance import at_chance
from sppbench.study.claims.claim import Part
from sppbench.study.claims.groups import Criterion, accuracy_difference, compare
from sppbench.study.claims.record import Cell, Record
from sppbench.study.claims.thresholds import Magnitude, Rates, Stable
from sppbench.study.common.intervals import Verdict, above, below, mean, measured

_HIGHER = Criterion(lambda estimate: above(estimate, 0.0), "interval above 0")


def stable_parts(record: Record, rule: Stable) -> tuple[Part, ...]:
    """C3. Deciding: each net trains stably, each is worse than the other net. Context: their losses in training."""
    lr = record.rules.lr
    better = Cell(rule.better, lr)
    nets = [Cell(net, lr) for net in rule.nets]
    return (
        *(_stable(record, rule, cell) for cell in nets),
        *(accuracy_difference(record, f"{rule.better} - {cell.net}", better, cell, _HIGHER) for cell in nets),
        *(_loss(record, cell, better) for cell in nets),
    )


def _stable(record: Record, rule: Stable, cell: Cell) -> Part:
    runs, accuracies = record.runs(cell), record.accuracies(cell)
    needed = record.rules.seeds
    bad = {seed: text for seed, run in runs.items() if (text := _unstable(run, accuracies[seed], rule))}
    verdict: Verdict = "fails" if bad else "holds" if len(runs) >= needed else "undecided"
    return Part(
        f"{cell.net} trains stably",
        "lowest test accuracy, in percent",
        min(accuracies.values(), default=None),
        None,
        len(runs),
        f"every run ends with finite logits and > {rule.accuracy_above:g}",
        verdict,
        record.needs([(cell, record.unused(runs, needed - len(runs)))]) if verdict == "undecided" else "",
        tuple(f"seed {seed}: {text}" for seed, text in bad.items()),
    )


def _unstable(run: Run, accuracy: float, rule: Stable) -> str:
    if run.state == "diverged":
        return "diverged"
    if run.kind == "NaN":
        return "its logits are not finite"
    return f"{accuracy:.2f} %" if not accuracy > rule.accuracy_above else ""


def _loss(record: Record, cell: Cell, better: Cell) -> Part:
    """Context: whether the worse net is worse in training already."""
    problems: list[str] = []
    losses = {one: _losses(record, one, problems) for one in (cell, better)}
    part = compare(
        record,
        f"{cell.net} - {better.net}",
        "difference of training loss in the last epoch, in nats",
        (cell, losses[cell]),
        (better, losses[better]),
        Criterion(
            lambda estimate: above(estimate, 0.0),
            "interval above 0: the gap is one of optimization, and not of regularization",
        ),
        decides=False,
    )
    meaning = {
        "holds": "the training loss is higher, too: the gap is one of optimization",
        "fails": "the training loss is not higher: the gap is one of regularization (generalization)",
    }
    said = (meaning[part.verdict],) if part.verdict in meaning else ()
    return replace(part, details=(*part.details, *said, *problems))


def _losses(record: Record, cell: Cell, problems: list[str]) -> dict[int, float]:
    """Training loss of the last epoch by seed, of runs that were trained to their end."""
    losses = {}
    for seed, run in record.runs(cell).items():
        try:
            losses[seed] = _last_loss(run)
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    return losses


def _last_loss(run: Run) -> float:
    frame = run.metrics
    if run.state != "completed":
        raise EvidenceError(f"{run.path} {run.state}")
    if not {"epoch", "train/loss"} <= set(frame):
        raise EvidenceError(f"{run.path / 'metrics.csv'} has no training loss")
    import pandas as pd

    last = (run.result.epochs if run.result is not None else 0) - 1
    losses = pd.to_numeric(frame.loc[frame["epoch"] == last, "train/loss"], errors="coerce").dropna()
    if len(losses) != 1 or not math.isfinite(losses.iloc[0]):
        raise EvidenceError(f"{run.path / 'metrics.csv'} has no finite training loss of epoch {last}")
    return float(losses.iloc[0])


def magnitude_parts(record: Record, rule: Magnitude) -> tuple[Part, ...]:
    """C4. Deciding: the nets of the study, and those with equal initialization of the classifier."""
    lr = record.rules.lr
    criterion = Criterion(
        lambda estimate: below(estimate, rule.margin),
        f"interval ends below +{rule.margin:g}; fails if it lies above 0",
        f"the interval holds both 0 and +{rule.margin:g}",
    )
    without = Cell(rule.without_mp, lr)
    return tuple(
        accuracy_difference(record, f"{net} - {without.net}", Cell(net, lr), without, criterion)
        for net in (rule.with_mp, rule.with_mp_equal_init)
    )


def rate_parts(record: Record, rule: Rates) -> tuple[Part, ...]:
    """C6. Deciding: one net gets worse and survives, the others do not. Context: rates between."""
    small, larger, largest = (Cell(rule.survives, lr) for lr in rule.lrs)
    others = [Cell(net, lr) for net in rule.nets for lr in rule.lrs[1:]]
    between = [Cell(net, lr) for net in (rule.survives, *rule.nets) for lr in rule.context_lrs]
    return (
        accuracy_difference(record, _pair(small, larger), small, larger, _HIGHER),
        accuracy_difference(record, _pair(larger, largest), larger, largest, _HIGHER),
        _survives(record, larger),
        *(at_chance(record, cell, rule.seeds_at_chance) for cell in others),
        *(_survives(record, cell, decides=False) for cell in between if record.runs(cell)),
    )


def _pair(a: Cell, b: Cell) -> str:
    return f"{a.net}, lr {a.lr:g} - lr {b.lr:g}"


def _survives(record: Record, cell: Cell, decides: bool = True) -> Part:
    """A net is above chance at a learning rate."""
    rules = record.rules
    accuracies = record.accuracies(cell)
    threshold = rules.chance + rules.chance_tolerance
    estimate = mean(list(accuracies.values()), rules.confidence) if accuracies else None
    verdict: Verdict = "undecided"
    missing = record.needs([(cell, record.unused(accuracies, rules.seeds - len(accuracies)))])
    if estimate is not None and len(accuracies) >= rules.seeds:
        verdict = above(estimate, threshold)
        if verdict == "undecided":
            missing = record.more([cell], accuracies, f"the interval holds {threshold:g}")
    return Part(
        f"{cell} survives" if decides else str(cell),
        "mean test accuracy, in percent",
        *measured(estimate),
        len(accuracies),
        f"interval above {threshold:g}",
        verdict,
        missing,
        tuple(f"seed {seed}: {accuracy:.2f} %" for seed, accuracy in accuracies.items()),
        decides,
    )
