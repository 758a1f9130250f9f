"""C4: does magnitude preservation raise the accuracy?"""

from __future__ import annotations

from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Criterion, Record, Setup, accuracy_difference
from sppbench.study.claims.thresholds import Magnitude
from sppbench.study.common.intervals import below


def magnitude_parts(record: Record, rule: Magnitude) -> tuple[Part, ...]:
    """Deciding: the nets of the study, and those with equal initialization of the classifier."""
    lr = record.rules.lr
    criterion = Criterion(
        lambda estimate: below(estimate, rule.margin),
        f"interval ends below +{rule.margin:g}; fails if it lies above 0",
        f"the interval holds both 0 and +{rule.margin:g}",
    )
    without = Setup(rule.without_mp, lr)
    return tuple(
        accuracy_difference(record, f"{net} - {without.net}", Setup(net, lr), without, criterion)
        for net in (rule.with_mp, rule.with_mp_equal_init)
    )
