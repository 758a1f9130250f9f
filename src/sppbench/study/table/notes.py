"""What a reader of the table must know beside its numbers, one text per fact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sppbench.evidence.runs import FIRST_SWEEP, Run, State
from sppbench.study.table.cells import Cell, Table
from sppbench.study.table.verdict import can_be_reproduced

DAGGER = "\N{DAGGER}"


def describe_test(table: Table) -> str:
    """The tests behind the verdicts."""
    return (
        "Verdicts: reproduced, if Welch's 90 % interval of the difference (ours minus published) lies within "
        f"± {table.margin:g} points (two one-sided tests at 5 %; Schuirmann 1987); else higher or lower, if it "
        "excludes 0; else undecided. Where the published value is chance without spread: reproduced, if every run "
        "lies within ± 0.1 points of it. Incomplete: fewer runs than other cells or the published value have. "
        "Expected: 95 % prediction interval for the mean of so many runs, from the published values alone."
    )


def describe_source(table: Table) -> str:
    """Where the published values are from; empty without them."""
    if table.published is None:
        return ""
    return f"Published values: {table.published.citation} (n = {table.published.n}); {table.published.note}."


def notes(table: Table) -> list[str]:
    """All notes: on runs that do not count, on those that count but are special, and on the comparison."""
    texts = [
        *_uncounted(table),
        *_missing(table),
        *(f"Recorded, but now missing: {line}" for run in table.runs for line in run.lost),
        *_special(table),
        *_elsewhere(table),
        *_machines(table),
        *_departures(table),
    ]
    if table.published is not None:
        texts += [*_too_wide(table), describe_test(table), describe_source(table)]
    return texts


def _uncounted(table: Table) -> Iterable[str]:
    for run in table.runs:
        if run.state == "failed":
            yield f"Failed: {run.path / 'traceback.txt'} ({run.problem})"
        if run.state == "damaged":
            yield f"Damaged, so not counted: {run.problem}"
    words: dict[State, str] = {
        "interrupted": "interrupted",
        "stopped_early": "stopped before its last epoch",
        "unfinished": "under way or killed",
    }
    for state, word in words.items():
        if stopped := [run for run in table.runs if run.state == state]:
            yield f"Not finished ({word}): {'; '.join(_places(stopped))}."


def _places(runs: list[Run]) -> list[str]:
    """Runs in few words: seeds by net and learning rate."""
    seeds: dict[tuple[str, float], list[int]] = defaultdict(list)
    for run in runs:
        seeds[run.label, run.lr].append(run.seed)
    return [f"{model} at lr {lr:g}, {_seeds(of_cell)}" for (model, lr), of_cell in seeds.items()]


def _seeds(seeds: Iterable[int]) -> str:
    listed = list(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"


def _missing(table: Table) -> Iterable[str]:
    lacking = [(cell, f"Missing, {_missing_runs(cell)}") for cell in table.cells if cell.missing]
    return _grouped(lacking)


def _grouped(facts: Iterable[tuple[Cell, str]]) -> Iterable[str]:
    """One text for all cells of which the same is true; nets that share learning rates are named together."""
    rates: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cell, fact in facts:
        rates[fact, cell.model].append(f"{cell.lr:g}")
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (fact, model), lrs in rates.items():
        models[fact, ", ".join(lrs)].append(model)
    places: dict[str, list[str]] = defaultdict(list)
    for (fact, shared), alike in models.items():
        places[fact].append(f"{', '.join(alike)} at lr {shared}")
    return [f"{fact}: {'; '.join(listed)}." for fact, listed in places.items()]


def _missing_runs(cell: Cell) -> str:
    if not cell.runs:
        return f"all {cell.expected} runs" if cell.expected > 1 else "the only run"
    others = cell.missing - len(cell.missing_seeds)  # the published value has more runs than we have seeds
    parts = [_seeds(cell.missing_seeds)] if cell.missing_seeds else []
    if others:
        parts.append(f"{others} run{'s' if others > 1 else ''} with other seeds")
    return " and ".join(parts)


def _elsewhere(table: Table) -> Iterable[str]:
    """Runs that stand in the sweep `FIRST_SWEEP` and in another one beside it; see `Evidence.select` for the rule."""
    sweep = table.directory.resolve()
    others = [sweep.parent / FIRST_SWEEP] if sweep.name != FIRST_SWEEP else sorted(sweep.parent.iterdir())
    places = [run.place for run in table.runs if run.counts]
    twice = [
        one / place for one in others if one != sweep for place in places if (one / place / "result.json").exists()
    ]
    if twice:
        listed = ", ".join(path.relative_to(sweep.parent).as_posix() for path in twice)
        counting = "these do not count" if sweep.name == FIRST_SWEEP else "for the claims and the report, these count"
        yield f"Run in another sweep, too ({counting}): {listed}."


def _special(table: Table) -> Iterable[str]:
    if any(cell.count("diverged") for cell in table.cells):
        yield (
            f"{DAGGER} Runs that diverged: a loss that was not finite ended them, and they count with the accuracy "
            "that the net then had."
        )
    kinds = [(cell, kind, number) for cell in table.cells for kind, number in cell.kinds.items()]
    yield from _grouped((cell, f"{_capital(kind)} in {number} of {cell.n} runs") for cell, kind, number in kinds)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _machines(table: Table) -> Iterable[str]:
    if len(devices := devices_used(table)) > 1:
        yield f"Runs on different devices: {', '.join(devices)}."
    for package, versions in versions_used(table).items():
        if len(versions) > 1:
            yield f"Runs with different versions of {package}: {', '.join(versions)}."


def devices_used(table: Table) -> list[str]:
    """Of the runs that count."""
    return sorted({run.result.device for run in table.runs if run.accuracy is not None and run.result is not None})


def versions_used(table: Table) -> dict[str, list[str]]:
    """By package, of the runs that count."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in table.runs:
        if run.accuracy is not None and run.result is not None:
            for package, version in run.result.versions.items():
                found[package].add(version)
    return {package: sorted(versions) for package, versions in found.items()}


def _departures(table: Table) -> Iterable[str]:
    if table.departures:
        yield f"Not compared with the published values: {'; '.join(table.departures)}."


def _too_wide(table: Table) -> Iterable[str]:
    wide = [
        f"{cell.model} at lr {cell.lr:g} ({cell.published.mean:.1f} ± {cell.published.std:.1f})"
        for cell in table.cells
        if cell.published is not None and not can_be_reproduced(cell.published, table.margin)
    ]
    if wide:
        yield (
            f"The published spread alone is wider than ± {table.margin:g} points, so that no result could count as "
            f"reproduced: {'; '.join(wide)}."
        )
