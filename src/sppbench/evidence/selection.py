"""All runs under a directory, and which of several of one net, learning rate and seed counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppbench.evidence.protocol import departures
from sppbench.evidence.run_places import find_runs
from sppbench.evidence.runs import EvidenceError, Run, read_run


@dataclass(frozen=True)
class Evidence:
    """All runs under a directory.

    Attributes:
        directory: Where they are.
        runs: Sorted by model, learning rate, seed and sweep.
        problems: What could not be read, one line each.
    """

    directory: Path
    runs: tuple[Run, ...]
    problems: tuple[str, ...]

    def select(
        self, model: str, lr: float | None = None, seeds: Iterable[int] | None = None, signals: bool = False
    ) -> list[Run]:
        """The runs of a net that came to their end, one per learning rate and seed, sorted.

        The rule for a run that is there more than once, of the same net, learning rate and seed: the one of the sweep
        `FIRST_SWEEP` counts; without it one with recorded signals, then one that was inspected, then the first by
        sweep. Where signals are asked for, the rule applies to the runs that recorded them. So all accuracies, losses
        and inspections of a net are of the runs of Table 1, whoever asks.

        Args:
            model: Name of the net.
            lr: Learning rate; None is all.
            seeds: None is all.
            signals: Whether only runs with recorded signals are wanted.
        """
        wanted = None if seeds is None else set(seeds)
        chosen: dict[tuple[float, int], Run] = {}
        for run in self.runs:
            fits = run.model == model and lr in (None, run.lr) and (wanted is None or run.seed in wanted)
            if fits and run.counts and (run.has_signals or not signals):
                known = chosen.get((run.lr, run.seed))
                if known is None or run.rank > known.rank:
                    chosen[run.lr, run.seed] = run
        return [chosen[key] for key in sorted(chosen)]

    @property
    def lost(self) -> tuple[str, ...]:
        """What runs that count have recorded and is gone or damaged, one line each; see `Run.lost`."""
        return tuple(line for run in self.runs for line in run.lost)

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Runs of the same net, learning rate, seed and settings: a line for each set, with what each counts for."""
        alike: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.counts:
                alike.setdefault(f"{run.model} {run.lr} {run.seed} {run.settings}", []).append(run)
        return tuple(_uses(runs) for runs in alike.values() if len(runs) > 1)

    def only(self, protocol: dict[str, Any], of_models: dict[str, dict[str, Any]] | None = None) -> Evidence:
        """The runs that follow a protocol; the others become problems that name the key in which they depart.

        Args:
            protocol: Dotted keys of the configuration and the values that runs must have.
            of_models: By name of a net, more of them; runs of nets that are not in it are left out without a word.
        """
        runs, problems = [], list(self.problems)
        for run in self.runs:
            if of_models is not None and run.model not in of_models:
                continue
            wanted = protocol | (of_models or {}).get(run.model, {})
            departing = [f"{key} is {value!r}" for key, (value, _) in departures(run.settings, wanted).items()]
            if departing:
                listed = ", ".join(departing)
                problems.append(f"{run.path} does not count, as its config.yaml departs from the protocol: {listed}")
            else:
                runs.append(run)
        return Evidence(self.directory, tuple(runs), tuple(problems))


def _uses(runs: Sequence[Run]) -> str:
    """What each of several runs that differ in nothing is used for."""
    counting = max(runs, key=lambda run: run.rank)
    recorded = [run for run in runs if run.has_signals]
    uses = {id(run): "is not used" for run in runs}
    if recorded:
        uses[id(max(recorded, key=lambda run: run.rank))] = "is used for its signals alone"
    uses[id(counting)] = "counts"
    texts = [f"{run.path} ({run.accuracy:.2f} %) {uses[id(run)]}" for run in runs]
    return f"{counting.model} at lr {counting.lr:g}, seed {counting.seed} ran {len(runs)} times: {'; '.join(texts)}"


def read_evidence(directory: str | Path) -> Evidence:
    """Finds all runs in a directory, at any depth and in folders of any name; the directory itself may be one.

    A run that is damaged is among the problems and not among the runs; one that is under way is among the runs.

    Raises:
        EvidenceError: It is not a directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise EvidenceError(f"{directory} is not a directory")
    runs, problems = [], []
    for path in find_runs(directory):
        try:
            run = read_run(path)
        except EvidenceError as error:
            problems.append(str(error))
            continue
        if run.state == "damaged":
            problems.append(str(run.problem))
        else:
            runs.append(run)
    runs.sort(key=lambda found: (found.model, found.lr, found.seed, found.sweep))
    return Evidence(directory, tuple(runs), tuple(problems))


def require_runs(evidence: Evidence) -> Evidence:
    """The evidence itself, if a run is there, be it a damaged one.

    Raises:
        EvidenceError: There is none.
    """
    if not evidence.runs and not evidence.problems:
        raise EvidenceError(f"no runs in {evidence.directory}: looked for the config.yaml of one, at any depth")
    return evidence
