"""The blocks of docs/study/cnn.md, from the kept runs."""

from __future__ import annotations

from statistics import fmean

from cells import LR, accuracies_of, after_each_epoch, gained, over_seeds, unbroken

from sppbench.evidence.selection import Evidence
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.common.text_tables import DASH, pipes

WORSE, MENDED = "cnn_bn_conv", "cnn_bn_conv_fan_in"
NETS = ("cnn", WORSE, "cnn_bn_linear", "cnn_bn_both", MENDED)


def blocks(evidence: Evidence) -> dict[str, list[str]]:
    """The lines of each block, by its name."""
    return {"cnn": _accuracies(evidence), "cnn_mended": _mended(evidence)}


def _accuracies(evidence: Evidence) -> list[str]:
    """A row a net at the small learning rate: how well it learns, and how well it generalizes."""
    confidence, rows = read_rules().confidence, []
    found = {net: accuracies_of(evidence, net) for net in NETS}
    for net, accuracies in found.items():
        if accuracies:
            last = [after_each_epoch(run).iloc[-1]["train/accuracy"] for run in evidence.select(net, LR)]
            over = gained(accuracies, found[NETS[0]], confidence) if net != NETS[0] else DASH
            rows.append([net, f"{fmean(last):.1f}", over_seeds(accuracies), str(len(accuracies)), over])
    return unbroken(pipes(["net", "train %, last epoch", "test %", "seeds", f"over {NETS[0]} [95 %]"], rows))


def _mended(evidence: Evidence) -> list[str]:
    """A sentence: what the other initialization adds."""
    over = gained(accuracies_of(evidence, MENDED), accuracies_of(evidence, WORSE), read_rules().confidence)
    return [f"`{MENDED}` over `{WORSE}`: **{over}** points of test accuracy (95 % interval)."]
