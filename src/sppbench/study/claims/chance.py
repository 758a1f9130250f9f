"""Whether runs learned at all, and if not, how they fail to."""

from __future__ import annotations

from collections.abc import Sequence

from sppbench.evidence.runs import Run
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Cell, Record
from sppbench.study.common.intervals import Verdict

CONSTANT = "constant prediction"  # as Run.kind calls it


def at_chance(record: Record, cell: Cell, seeds: int, kinds: Sequence[str] | None = None) -> Part:
    """A deciding part: no run of a cell learned. One run that did refutes it.

    Args:
        record: Runs and rules.
        cell: A net at a learning rate.
        seeds: How many runs are needed.
        kinds: How they may fail to learn, in the words of `Run.kind`; None is in any way.
    """
    rules = record.rules
    runs = record.runs(cell)
    accuracies = record.accuracies(cell)
    failing = [seed for seed, run in runs.items() if _fails(run, accuracies[seed], record, kinds)]
    unknown = [str(run.path) for run in runs.values() if kinds is not None and run.kind is None]
    verdict: Verdict = "holds"
    missing = ""
    if failing:
        verdict = "fails"
    elif len(runs) < seeds:
        verdict, missing = "undecided", record.needs([(cell, record.unused(runs, seeds - len(runs)))])
    elif unknown:
        verdict, missing = "undecided", f"result.json does not say how many classes are predicted: {', '.join(unknown)}"
    wanted = f", {' or '.join(kinds)}" if kinds is not None else ""
    return Part(
        str(cell),
        "test accuracy that is farthest from chance, in percent",
        max(accuracies.values(), key=lambda accuracy: abs(accuracy - rules.chance), default=None),
        None,
        len(runs),
        f"every run within {rules.chance:g} ± {rules.chance_tolerance:g}{wanted}; {_count(seeds)}",
        verdict,
        missing,
        tuple(f"seed {seed}: {_kind(run, accuracies[seed], record)}" for seed, run in runs.items()),
    )


def _fails(run: Run, accuracy: float, record: Record, kinds: Sequence[str] | None) -> bool:
    kind = run.kind
    return _learned(accuracy, record) or (kinds is not None and kind is not None and kind not in kinds)


def _learned(accuracy: float, record: Record) -> bool:
    # The accuracy is of whole images in 10,000, and 1.1 - 1.0 is more than 0.1 in floating point.
    return abs(accuracy - record.rules.chance) > record.rules.chance_tolerance + 1e-9


def _kind(run: Run, accuracy: float, record: Record) -> str:
    """What became of a run, in words, such as "1.00 %, constant prediction, logits spread by 1e-15"."""
    kind = run.kind or "predictions not recorded"
    how = "learning, " if _learned(accuracy, record) and kind not in ("NaN", CONSTANT) else ""
    test = (run.result.test if run.result is not None else None) or {}
    spread = test.get("logit_std")
    spreading = f", standard deviation of the logits {spread:.2g}" if isinstance(spread, int | float) else ""
    return f"{accuracy:.2f} %, {how}{kind}{spreading}"


def _count(seeds: int) -> str:
    return "one run is enough" if seeds == 1 else f"needs {seeds} runs"
