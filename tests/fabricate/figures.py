"""Runs that no one trained, whose curves are those of the published figures, or known to depart from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fabricate.histories import Statistics, write_signals
from tests.fabricate.runs import write_run

LR = 0.001
# Read off Figure 1 at the first, middle and last ReLU, by epoch (reference §6), and its last layer.
FIGURE1 = {0: (8.9e-7, 2.3e-7, 1.3e-7), 9: (3.1e-7, 1.35e-7, 1.35e-7), 19: (4.8e-7, 2.0e-7, 1.5e-7)}
LAST = 0.65e-7
SHARE = 0.01  # ACSM of the second moment


def figure1(layer: str, depth: int, epoch: int) -> float:
    """The gradient's second moment in Figure 1: geometric between the three ReLUs, half of it at norms and Linears."""
    if layer == "classifier":
        return LAST
    if layer in ("flatten", "block0.linear"):
        return 1e-9
    block, part = int(layer[5]), layer.partition(".")[2]
    if part == "linear":
        return figure1(f"block{block - 1}.activation", depth, epoch) / 2
    first, middle, last = FIGURE1[epoch]
    low, high, share = (first, middle, block / 4) if block <= 4 else (middle, last, (block - 4) / 4)
    return low ** (1 - share) * high**share * (0.45 if part == "norm" else 1.0)


def gradient(second_moment: Callable[[str, int, int], float], factor: float = 1.0) -> Statistics:
    """Gradients with this second moment times `factor`, a hundredth of it ACSM; all other signals are 1."""

    def statistics(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
        if signal != "gradient":
            return 0.5, 0.5
        value = factor * second_moment(layer, depth, epoch)
        return SHARE * value, (1 - SHARE) * value

    return statistics


def write_ffnn(
    directory: Path, model: str, seed: int, statistics: Statistics, overrides: tuple[str, ...] = (), **arguments: Any
) -> Path:
    """A run with these signals: a full batch and a partial one an epoch, whose statistics are ½ and 1½ of the given."""
    run = write_run(directory, model, LR, seed, 20.0, overrides=overrides)
    write_signals(run, statistics, **{"scales": (0.5, 1.5), **arguments})
    return run
