"""Which factor of the backward gain of batch normalization carries its change over training: context of C2.

The gain G = γ²·1/(v + ε)·p of a layer changes from the first to the last epoch by a sum of three logarithms.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import pandas as pd

from sppbench.evidence.seed_gains import log_gains
from sppbench.spp.names import FACTOR_SYMBOLS, GAIN_AND_FACTORS
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Cell, Record
from sppbench.study.claims.thresholds import Affine, Backward
from sppbench.study.common.intervals import Estimate, Verdict, above, mean, measured

_COLUMNS = list(GAIN_AND_FACTORS)


def gain_parts(record: Record, rule: Backward) -> tuple[Part, ...]:
    """Context, by width: the share of γ² in the change of the gain, where both scale and shift are learned."""
    return tuple(_part(record, rule, h, nets) for h, nets in sorted(rule.widths.items()))


def _part(record: Record, rule: Backward, h: int, nets: Affine) -> Part:
    rules = record.rules
    cell = Cell(nets.both, rules.lr)
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
        A row a seed; and which runs were left out, because their gains are not finite, do not reach the epochs, or are
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
            changes[int(seed)] = (end[_COLUMNS] - start[_COLUMNS]).mean(skipna=False)
    return pd.DataFrame(changes).T, problems


def _sentence(changes: pd.Series, rule: Backward) -> str:
    factors = ", ".join(f"{symbol} {changes[name]:+.2f}" for name, symbol in FACTOR_SYMBOLS.items())
    return f"log2 of the gain changed by {changes['gain']:+.2f} (mean over {rule.gain_layers} and seeds): {factors}"
