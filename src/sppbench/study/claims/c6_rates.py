"""C6: which nets survive large learning rates?"""

from __future__ import annotations

from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import HIGHER, Record, Setup, accuracy_difference, at_chance
from sppbench.study.claims.thresholds import Rates
from sppbench.study.common.intervals import Verdict, above, mean, measured


def rate_parts(record: Record, rule: Rates) -> tuple[Part, ...]:
    """Deciding: one net gets worse and survives, the others do not. Context: rates between."""
    small, larger, largest = (Setup(rule.survives, lr) for lr in rule.lrs)
    others = [Setup(net, lr) for net in rule.nets for lr in rule.lrs[1:]]
    between = [Setup(net, lr) for net in (rule.survives, *rule.nets) for lr in rule.context_lrs]
    return (
        accuracy_difference(record, _pair(small, larger), small, larger, HIGHER),
        accuracy_difference(record, _pair(larger, largest), larger, largest, HIGHER),
        _survives(record, larger),
        *(at_chance(record, cell, rule.seeds_at_chance) for cell in others),
        *(_survives(record, cell, decides=False) for cell in between if record.runs(cell)),
    )


def _pair(a: Setup, b: Setup) -> str:
    return f"{a.net}, lr {a.lr:g} - lr {b.lr:g}"


def _survives(record: Record, cell: Setup, decides: bool = True) -> Part:
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
