"""C5: does EfficientNet without batch normalization learn, and what keeps it from learning?"""

from __future__ import annotations

from typing import Any

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.stored_files import is_number
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import CONSTANT, Record, Setup, at_chance
from sppbench.study.claims.thresholds import Lifeless
from sppbench.study.common.intervals import Verdict


def lifeless_parts(record: Record, rule: Lifeless) -> tuple[Part, ...]:
    """Deciding parts: one a learning rate, and the control; context: what moved, by learning rate."""
    cells = [Setup(rule.net, lr) for lr in rule.lrs]
    chance = [at_chance(record, cell, rule.seeds, [CONSTANT]) for cell in cells]
    return (*chance, _control(record, rule), *(_moved(record, rule, cell) for cell in cells))


def _control(record: Record, rule: Lifeless) -> Part:
    cell = Setup(rule.control, record.rules.lr)
    accuracies = record.accuracies(cell)
    best = max(accuracies.values(), default=None)
    verdict: Verdict = "holds" if best is not None and best > rule.control_accuracy else "undecided"
    missing = ""
    if best is None:
        missing = record.needs([(cell, record.unused((), 1))])
    elif verdict == "undecided":
        missing = "needs a control that learns: as it is, something else may be what stops both nets"
    runs = record.runs(cell)
    details = tuple(f"seed {seed}: {accuracies[seed]:.2f} % after {_epochs(run)} epochs" for seed, run in runs.items())
    return Part(
        f"control: {cell}",
        "highest test accuracy, in percent",
        best,
        None,
        len(accuracies),
        f"> {rule.control_accuracy:g} after any number of epochs; one run is enough",
        verdict,
        missing,
        details,
    )


def _epochs(run: Run) -> int:
    return run.result.epochs if run.result is not None else 0


def _moved(record: Record, rule: Lifeless, cell: Setup) -> Part:
    """Context: how far training has moved the parameters that should have stayed where they were."""
    runs = record.runs(cell)
    farthest: dict[int, float] = {}
    details, problems = [], []
    for seed, run in runs.items():
        try:
            changes = _changes(run)
        except EvidenceError as error:
            problems.append(str(error))
            continue
        others = {name: change for name, change in changes.items() if name != rule.moves}
        farthest[seed] = max(others.values(), default=0.0)
        moved = [name for name, change in changes.items() if change > rule.moved]
        details.append(f"seed {seed}: {len(moved)} of {len(changes)} parameters moved{_named(moved, changes)}")
    worst = max(farthest.values(), default=None)
    verdict: Verdict = "undecided"
    missing = ""
    if worst is not None:
        verdict = "holds" if worst <= rule.moved else "fails"
    else:
        missing = record.inspected(cell, problems)
    return Part(
        f"weights of {cell}",
        f"largest change of a parameter other than {rule.moves}, relative to its initial value",
        worst,
        None,
        len(farthest),
        f"≤ {rule.moved:g}: gradients below Adam's ε move nothing",
        verdict,
        missing,
        (*details, *(problems if worst is not None else ())),
        decides=False,
    )


def _changes(run: Run) -> dict[str, float]:
    """By parameter: the root mean square of its change, relative to its initial value where that is not 0.

    Raises:
        EvidenceError: The run was not inspected, or not all changes are finite.
    """
    moved = run.inspection.get("moved")
    file = run.path / "inspection.json"
    if not isinstance(moved, dict) or not moved:
        raise EvidenceError(f"{file} does not say which parameters moved")
    changes = {}
    for name, change in moved.items():
        relative, absolute = (_number(change, key) for key in ("relative", "absolute"))
        if absolute is None:
            raise EvidenceError(f"{file}: the change of {name} is not finite")
        changes[str(name)] = absolute if relative is None else relative
    return changes


def _number(change: Any, key: str) -> float | None:
    value = change.get(key) if isinstance(change, dict) else None
    return float(value) if is_number(value) else None


def _named(names: list[str], changes: dict[str, float]) -> str:
    if not names:
        return ""
    texts = [f"{name} by {changes[name]:.2g}" for name in sorted(names, key=lambda name: -changes[name])]
    return f": {', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''}"
