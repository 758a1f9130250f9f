"""From runs to the cells of a table: a net at a learning rate, over the seeds, beside the published value."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sppbench.evidence.run_places import find_runs, is_run
from sppbench.evidence.runs import COUNTED, EvidenceError, Run, State, read_run
from sppbench.study.common.intervals import Summary, summarize
from sppbench.study.common.published import Published, read_published
from sppbench.study.table.verdict import MARGIN, Comparison, Verdict, compare, decide, is_chance


@dataclass(frozen=True)
class Cell:
    """A net at a learning rate.

    Attributes:
        title: What the published table calls the net, else its name.
        runs: All that were found, also those that do not count.
        expected: Runs that the cell must have to be complete.
        missing_seeds: Seeds that other cells have, and this one has not.
        ours: Of the runs that count; None if there are none.
        published: None where there is no published value that the runs may be compared with.
        comparison: None where there is nothing to compare.
        verdict: None without a published value; "incomplete" also where there are no runs at all.
        at_chance: Whether the published value says that no run learned.
    """

    model: str
    title: str
    lr: float
    runs: tuple[Run, ...]
    expected: int
    missing_seeds: tuple[int, ...]
    ours: Summary | None
    published: Summary | None
    comparison: Comparison | None
    verdict: Verdict | None
    at_chance: bool

    @property
    def n(self) -> int:
        """Runs that count: completed and diverged ones."""
        return self.ours.n if self.ours is not None else 0

    @property
    def missing(self) -> int:
        """Runs of which there is no trace."""
        return max(0, self.expected - len(self.runs))

    @property
    def kinds(self) -> dict[str, int]:
        """Runs by how dead nets predict: all of a chance cell, elsewhere only NaN and constant predictions."""
        kinds = Counter(run.kind for run in self.runs if run.state in COUNTED and run.kind is not None)
        return {kind: n for kind, n in kinds.items() if self.at_chance or kind in ("NaN", "constant prediction")}

    def count(self, *states: State) -> int:
        """Runs in one of these states."""
        return sum(run.state in states for run in self.runs)


@dataclass(frozen=True)
class Table:
    """All cells, the largest learning rate first, as in the study.

    Attributes:
        directory: Where the runs are.
        titles: Names of the nets and what to call them, in the order of the columns: the published ones first.
        seeds: Of all runs.
        chance: Accuracy of a constant prediction, in percent, for equally frequent classes; NaN where data sets of
            different numbers of classes are compared.
        margin: Difference in points up to which two means count as equal.
        published: The published table; None if it does not apply.
        departures: Why it does not, or not for some nets: one text per reason.
    """

    directory: Path
    cells: tuple[Cell, ...]
    titles: dict[str, str]
    seeds: tuple[int, ...]
    chance: float
    margin: float
    published: Published | None
    departures: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part of the directory, which is the name of a sweep."""
        return self.directory.resolve().name

    @property
    def lrs(self) -> list[float]:
        return sorted({cell.lr for cell in self.cells}, reverse=True)

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs]

    def cell(self, model: str, lr: float) -> Cell | None:
        """The cell of a net at a learning rate; None where nobody expects one."""
        return next((cell for cell in self.cells if (cell.model, cell.lr) == (model, lr)), None)


def read_table(directory: str | Path, published: str | Path | None = None, margin: float = MARGIN) -> Table:
    """Reads all runs of a sweep and compares them with a published table.

    Args:
        directory: Holds ``<model>/lr=<lr>/seed=<seed>/``.
        published: YAML file with the published values; by default those of the study.
        margin: Difference in points up to which two means count as equal.

    Returns:
        The cells of all nets found at all learning rates found. Where the published table applies (at least one of its
        nets was run by its protocol), also its cells of which there is nothing yet.

    Raises:
        EvidenceError: There are no runs, or runs of different configurations, or a file cannot be read.
    """
    directory = Path(directory)
    known = read_published(Path(published) if published is not None else None)
    runs = read_sweep(directory)
    models, departures = _comparable(known, runs)
    values = {place: value for place, value in known.values.items() if place[0] in models}
    places = {(run.label, lr) for run in runs for lr in {other.lr for other in runs}} | values.keys()
    seeds = tuple(sorted({run.seed for run in runs}))
    classes = {int(run.settings["data.num_classes"]) for run in runs}
    chance = 100 / classes.pop() if len(classes) == 1 else math.nan
    here = {model for model, _ in places}
    titles = {model: title for model, title in known.titles.items() if model in here}
    titles |= {model: model for model in sorted(here - titles.keys())}
    order = list(titles)
    cells = []
    for model, lr in sorted(places, key=lambda place: (-place[1], order.index(place[0]))):
        found = [run for run in runs if (run.label, run.lr) == (model, lr)]
        cells.append(_cell((model, titles[model], lr), found, seeds, values.get((model, lr)), chance, margin))
    applied = known if models else None
    return Table(directory, tuple(cells), titles, seeds, chance, margin, applied, tuple(departures))


def _comparable(known: Published, runs: list[Run]) -> tuple[set[str], list[str]]:
    """The published nets that our runs may be compared with, found or yet to be run; and why not with others."""
    found = {run.label: run.settings for run in runs if run.label in known.titles}
    departures = {model: known.departures(model, settings) for model, settings in found.items()}
    of_all = {
        key: text for of_one in departures.values() for key, text in of_one.items() if key.split(".")[0] != "model"
    }
    if of_all:
        return set(), list(of_all.values())
    reasons = [f"{model}: {text}" for model, of_one in departures.items() for text in of_one.values()]
    if all(departures.values()):  # also if none of the published nets was found
        return set(), reasons or ["none of its nets is here"]
    return {model for model in known.titles if not departures.get(model)}, reasons


def _cell(
    place: tuple[str, str, float],
    runs: list[Run],
    seeds: tuple[int, ...],
    published: Summary | None,
    chance: float,
    margin: float,
) -> Cell:
    expected = max(len(seeds), published.n if published is not None else 0)
    missing = tuple(seed for seed in seeds if seed not in {run.seed for run in runs})
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    ours = summarize(accuracies) if accuracies else None
    comparison = compare(ours, published) if ours is not None and published is not None else None
    verdict: Verdict | None = None
    if published is not None:
        verdict = "incomplete"
        if comparison is not None and len(accuracies) >= expected:
            verdict = decide(accuracies, comparison, published, chance, margin)
    at_chance = published is not None and is_chance(published, chance)
    return Cell(*place, tuple(runs), expected, missing, ours, published, comparison, verdict, at_chance)


def read_sweep(directory: Path) -> list[Run]:
    """Reads the runs at ``directory/<name>/[<key>=<value>/...]lr=<lr>/seed=<seed>/``, sorted by net, rate and seed.

    Raises:
        EvidenceError: There are none; a configuration is missing or damaged; two runs are the same; or configurations
            differ in more than what their places say.
    """
    if not directory.is_dir():
        raise EvidenceError(f"{directory} is not a directory")
    linked = (path for path in directory.glob("*/lr=*/seed=*") if is_run(path))  # in folders that may be links
    paths = {path for path in (*find_runs(directory), *linked) if _is_cell(path.relative_to(directory))}
    runs = [read_run(path) for path in sorted(paths)]
    if not runs:
        raise EvidenceError(f"no runs in {directory}: looked for <model>/lr=<lr>/seed=<seed>/result.json")
    runs.sort(key=lambda run: (run.label, run.lr, run.seed))
    for one, other in pairwise(runs):
        if (one.label, one.lr, one.seed) == (other.label, other.lr, other.seed):
            raise EvidenceError(f"{one.path} and {other.path} are runs of the same net and seed")
    _refuse_mixture(runs)
    return runs


def _is_cell(path: Path) -> bool:
    """Whether a run's place below its sweep is ``<name>/[<key>=<value>/...]lr=<lr>/seed=<seed>``."""
    _, *folders = path.parts
    return len(folders) >= 2 and all("=" in folder for folder in folders)


def _refuse_mixture(runs: list[Run]) -> None:
    swept = {words.partition("=")[0] for run in runs for words in run.variant}
    first_of_model: dict[str, Run] = {}
    for run in runs:
        # Across models the settings of the nets differ, as they should.
        for other, nets_too in ((runs[0], False), (first_of_model.setdefault(run.label, run), True)):
            keys = sorted(run.settings.keys() | other.settings.keys())
            keys = [key for key in keys if nets_too or key.split(".")[0] != "model"]
            if run.label != other.label:
                keys = [key for key in keys if not any(f"{key}.".startswith(f"{one}.") for one in swept)]
            values = {key: (other.settings.get(key), run.settings.get(key)) for key in keys}
            if differing := [f"{key} ({a!r} and {b!r})" for key, (a, b) in values.items() if a != b]:
                raise EvidenceError(
                    f"{other.path} and {run.path} have different configurations (config.yaml), which a table never "
                    f"mixes: {', '.join(differing)}"
                )
