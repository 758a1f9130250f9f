"""C7: is a normalizer-free net better than the study's net with batch normalization, and as good as the best one?"""

from __future__ import annotations

from dataclasses import replace

from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import HIGHER, Criterion, Record, Setup, accuracy_difference
from sppbench.study.claims.thresholds import Superior
from sppbench.study.common.intervals import above


def superior_parts(record: Record, rule: Superior) -> tuple[Part, ...]:
    """Deciding: superiority to one net, non-inferiority to others. Context: the first pair at other rates.

    A net that is not inferior to each of several is not inferior to the best of them: an intersection-union test,
    whose level is that of each test (Berger 1982).
    """
    rules = replace(record.rules, seeds=rule.seeds)
    record = replace(record, rules=rules)
    one_sided = replace(record, rules=replace(rules, seeds=rule.rival_seeds, confidence=rule.one_sided_confidence))
    net, other = Setup(rule.net, rules.lr), Setup(rule.better, rules.lr)
    criterion = Criterion(
        lambda estimate: above(estimate, -rule.margin),
        f"{rule.one_sided_confidence:.0%} interval above -{rule.margin:g}",
        f"the interval contains -{rule.margin:g}",
    )
    deciding = [
        accuracy_difference(record, f"{net.net} - {other.net}", net, other, HIGHER),
        *(
            accuracy_difference(one_sided, f"not worse than {rival}", net, Setup(rival, rules.lr), criterion)
            for rival in rule.nets
        ),
    ]
    context = []
    for lr in rule.context_lrs:
        net, other = Setup(rule.net, lr), Setup(rule.better, lr)
        if record.runs(net) and record.runs(other):
            part = accuracy_difference(record, f"{rule.net} - {rule.better} at lr {lr:g}", net, other, HIGHER)
            context.append(replace(part, decides=False))
    return (*deciding, *context)
