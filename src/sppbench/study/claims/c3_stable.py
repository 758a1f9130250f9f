"""C3: do the nets without batch normalization train stably, and is the one with it better?"""

from __future__ import annotations

from sppbench.evidence.runs import Run
from sppbench.study.claims.c3_fit import fit_parts
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import HIGHER, Record, Setup, accuracy_difference
from sppbench.study.claims.thresholds import Stable
from sppbench.study.common.intervals import Verdict


def stable_parts(record: Record, rule: Stable) -> tuple[Part, ...]:
    """Deciding: each net trains stably, each is worse than the other net. Context: optimization or generalization."""
    lr = record.rules.lr
    better = Setup(rule.better, lr)
    nets = [Setup(net, lr) for net in rule.nets]
    return (
        *(_stable(record, rule, cell) for cell in nets),
        *(accuracy_difference(record, f"{rule.better} - {cell.net}", better, cell, HIGHER) for cell in nets),
        *(part for cell in nets for part in fit_parts(record, cell, better)),
    )


def _stable(record: Record, rule: Stable, cell: Setup) -> Part:
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
