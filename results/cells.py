"""What several blocks have in their cells: accuracies over seeds and their differences."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from sppbench.evidence.runs import Run
from sppbench.evidence.selection import Evidence
from sppbench.study.common.intervals import difference, summarize
from sppbench.study.common.text_tables import DASH
from sppbench.study.table.formats import plus_minus

LR = 0.001
NO_BREAK = "\N{NO-BREAK SPACE}"


def after_each_epoch(run: Run) -> pd.DataFrame:
    """What was measured after each epoch."""
    metrics = pd.read_csv(run.path / "metrics.csv").set_index("epoch")
    return metrics[metrics["val/accuracy"].notna()]


def train_loss(run: Run) -> str:
    """On training images as they are, in evaluation mode; old runs have none."""
    train = run.result.train if run.result is not None else None
    return f"{train['loss']:.2f}" if train else DASH


def accuracies_of(known: Evidence, net: str, lr: float = LR) -> list[float]:
    """Test accuracies of a net's runs."""
    return [run.accuracy for run in known.select(net, lr) if run.accuracy is not None]


def gained(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> str:
    """The difference of two means, with its Welch interval."""
    estimate = difference(ours, theirs, confidence)
    interval = f" [{estimate.low:+.2f}, {estimate.high:+.2f}]" if estimate.interval else ""
    return f"{estimate.value:+.2f}{interval}"


def unbroken(rows: Sequence[str]) -> list[str]:
    """Mean and standard deviation stay on one line, and so do the ends of an interval."""
    joined = [row.replace(" ± ", f"{NO_BREAK}±{NO_BREAK}") for row in rows]
    return [re.sub(r"(\[[-+]\d+\.\d+,) ", rf"\1{NO_BREAK}", row) for row in joined]


def over_seeds(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation; of a single run its value."""
    return plus_minus(summarize(accuracies), digits=2) if len(accuracies) > 1 else f"{accuracies[0]:.2f}"
