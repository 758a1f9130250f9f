"""Context of C2: published accuracies with affine off and on, beside ours of each width and setting."""

from __future__ import annotations

from sppbench.files import config_directory
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Record, Setup
from sppbench.study.claims.thresholds import Backward
from sppbench.study.common.intervals import Summary, Verdict, summarize, welch
from sppbench.study.common.published import read_published


def accuracy_parts(record: Record, rule: Backward) -> tuple[Part, ...]:
    """A part for each width and setting: are our accuracies the published ones of that setting?

    If the setting makes the difference, they are at each width; if the width does, one width has all that is published
    with affine off, the other one all that is published with affine on.
    """
    published = read_published(config_directory() / rule.accuracies)
    settings = [
        (f"h = {h}, affine {setting}", Setup(net, record.rules.lr))
        for h, nets in sorted(rule.widths.items())
        for setting, net in (("off", nets.neither), ("on", nets.both))
    ]
    return tuple(
        _part(record, rule, name, cell, published.values[cell.net, cell.lr])
        for name, cell in settings
        if (cell.net, cell.lr) in published.values
    )


def _part(record: Record, rule: Backward, name: str, cell: Setup, published: Summary) -> Part:
    rules = record.rules
    by_seed = record.accuracies(cell)
    ours = summarize(list(by_seed.values())) if by_seed else None
    interval = welch(ours, published, rules.confidence)[0] if ours is not None else None
    margin = rule.accuracy_margin
    verdict: Verdict = "undecided"
    missing = record.needs([(cell, record.unused(by_seed, rules.seeds - len(by_seed)))])
    if interval is not None and not missing:
        if -margin < interval[0] and interval[1] < margin:
            verdict = "holds"
        elif margin <= interval[0] or interval[1] <= -margin:
            verdict = "fails"
        else:
            missing = record.more([cell], by_seed, f"the interval holds {margin:g} or -{margin:g}")
    return Part(
        f"{name}: ours - {published.mean:g} ± {published.std:g}",
        "difference from the published test accuracy of the same setting, in points",
        ours.mean - published.mean if ours is not None else None,
        interval,
        len(by_seed),
        f"interval within ± {margin:g}; fails if it lies outside",
        verdict,
        missing,
        (f"{cell}: {ours.mean:.2f} ± {ours.std:.2f}",) if ours is not None and ours.std is not None else (),
        decides=False,
    )
