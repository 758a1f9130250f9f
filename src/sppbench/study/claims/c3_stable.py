"""C3: do the nets without batch normalization train stably, and is the one with it better?"""

from __future__ import annotations

import math
from dataclasses import replace

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import HIGHER, Criterion, Record, Setup, accuracy_difference, compare
from sppbench.study.claims.thresholds import Stable
from sppbench.study.common.intervals import Verdict, above


def stable_parts(record: Record, rule: Stable) -> tuple[Part, ...]:
    """Deciding: each net trains stably, each is worse than the other net. Context: their losses in training."""
    lr = record.rules.lr
    better = Setup(rule.better, lr)
    nets = [Setup(net, lr) for net in rule.nets]
    return (
        *(_stable(record, rule, cell) for cell in nets),
        *(accuracy_difference(record, f"{rule.better} - {cell.net}", better, cell, HIGHER) for cell in nets),
        *(_loss(record, cell, better) for cell in nets),
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


def _loss(record: Record, cell: Setup, better: Setup) -> Part:
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


def _losses(record: Record, cell: Setup, problems: list[str]) -> dict[int, float]:
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
