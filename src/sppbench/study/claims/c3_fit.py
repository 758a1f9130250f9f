"""C3, context: is the gap between two nets one of optimization, or of generalization?

Three comparisons of the worse net with the better one, each a difference of means over seeds:

- the training loss of the last epoch, as it was logged: with augmentation and dropout, before the steps of that epoch;
- the loss of the last weights on training images, without augmentation and in evaluation mode, where it was recorded;
- the validation loss at equal training loss, which does not depend on how far each net has come: if it is higher, what
  the worse net has learned generalizes less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Criterion, Record, Setup, compare
from sppbench.study.common.intervals import above

Losses = dict[int, float]  # by seed, in nats

FITS_LESS = Criterion(lambda estimate: above(estimate, 0.0), "interval above 0: the gap is one of optimization")
GENERALIZES_LESS = Criterion(
    lambda estimate: above(estimate, 0.0), "interval above 0: the gap is one of generalization"
)


def fit_parts(record: Record, net: Setup, better: Setup) -> tuple[Part, ...]:
    """The comparisons of a net with a better one, as far as their runs recorded what is needed."""
    name = f"{net.net} - {better.net}"
    parts = [
        _difference(record, name, "difference of training loss in the last epoch, in nats", (net, better), _last_loss)
    ]
    if any(_fit(run) is not None for setup in (net, better) for run in record.runs(setup).values()):
        quantity = "difference of loss on training images without augmentation, in evaluation mode, in nats"
        parts.append(_difference(record, f"{name}, fit", quantity, (net, better), _recorded_fit))
    if (at_equal := _at_equal_training_loss(record, net, better)) is not None:
        parts.append(at_equal)
    return tuple(parts)


def _difference(
    record: Record, name: str, quantity: str, setups: tuple[Setup, Setup], loss_of: Callable[[Run], float]
) -> Part:
    problems: list[str] = []
    net, better = ((setup, _losses(record, setup, loss_of, problems)) for setup in setups)
    part = compare(record, name, quantity, net, better, FITS_LESS, decides=False)
    meaning = {
        "holds": "the training loss is higher, too: the gap is one of optimization",
        "fails": "the training loss is not higher: the gap is one of regularization (generalization)",
    }
    said = (meaning[part.verdict],) if part.verdict in meaning else ()
    return replace(part, details=(*part.details, *said, *problems))


def _at_equal_training_loss(record: Record, net: Setup, better: Setup) -> Part | None:
    """Validation loss where the training loss first falls to the lowest value that all runs of both reach."""
    problems: list[str] = []
    curves = {setup: _curves(record, setup, problems) for setup in (net, better)}
    found = [curve for of_seed in curves.values() for curve in of_seed.values()]
    if not all(curves.values()):
        return None
    level = max(float(curve["train/loss"].min()) for curve in found)
    if any(float(curve["train/loss"].iloc[0]) <= level for curve in found):
        return None  # one begins below what another one ends with: they have no training loss in common
    losses = {
        setup: {seed: _validation_at(curve, level) for seed, curve in of_seed.items()}
        for setup, of_seed in curves.items()
    }
    part = compare(
        record,
        f"{net.net} - {better.net}, at equal training loss",
        "difference of validation loss, in nats, where the training loss (as logged: with augmentation and dropout) is "
        "the lowest that all runs reach",
        (net, losses[net]),
        (better, losses[better]),
        GENERALIZES_LESS,
        decides=False,
    )
    return replace(part, details=(f"at a training loss of {level:.3f}", *part.details, *problems))


def _losses(record: Record, setup: Setup, loss_of: Callable[[Run], float], problems: list[str]) -> Losses:
    losses = {}
    for seed, run in record.runs(setup).items():
        try:
            losses[seed] = loss_of(run)
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    return losses


def _last_loss(run: Run) -> float:
    losses = _epochs(run, ["train/loss"])["train/loss"]
    last = (run.result.epochs if run.result is not None else 0) - 1
    found = losses[losses.index == last]
    if len(found) != 1 or not math.isfinite(found.iloc[0]):
        raise EvidenceError(f"{run.path / 'metrics.csv'} has no finite training loss of epoch {last}")
    return float(found.iloc[0])


def _fit(run: Run) -> float | None:
    train = run.result.train if run.result is not None else None
    loss = train.get("loss") if train is not None else None
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None


def _recorded_fit(run: Run) -> float:
    if (loss := _fit(run)) is None:
        raise EvidenceError(f"{run.path} did not record its loss on training images without augmentation")
    return loss


def _curves(record: Record, setup: Setup, problems: list[str]) -> dict[int, pd.DataFrame]:
    curves = {}
    for seed, run in record.runs(setup).items():
        try:
            frame = _epochs(run, ["train/loss", "val/loss"]).dropna()
            if len(frame) < 2 or not np.isfinite(frame.to_numpy()).all():
                raise EvidenceError(f"{run.path / 'metrics.csv'} has no finite losses of two epochs")
            curves[seed] = frame
        except EvidenceError as error:
            problems.append(f"left out: {error}")
    return curves


def _validation_at(curve: pd.DataFrame, level: float) -> float:
    """Validation loss where the training loss first falls to a level, on a straight line between two epochs."""
    train, validation = curve["train/loss"].to_numpy(), curve["val/loss"].to_numpy()
    after = int(np.argmax(train <= level))
    share = (train[after - 1] - level) / (train[after - 1] - train[after])
    return float(validation[after - 1] + share * (validation[after] - validation[after - 1]))


def _epochs(run: Run, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of metrics.csv by epoch, without the row of the test; of runs that were trained to their end."""
    frame = run.metrics
    if run.state != "completed":
        raise EvidenceError(f"{run.path} {run.state}")
    if missing := [column for column in ("epoch", *columns) if column not in frame]:
        raise EvidenceError(f"{run.path / 'metrics.csv'} has no {missing[0]}")
    numbers = frame[["epoch", *columns]].apply(pd.to_numeric, errors="coerce").dropna(subset=["epoch", columns[0]])
    return numbers.set_index(numbers["epoch"].astype(int))[list(columns)]
