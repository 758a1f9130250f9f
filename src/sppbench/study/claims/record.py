"""The runs under the rules, by seed; the tests that several claims share; and the words for what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

from sppbench.evidence.runs import Run
from sppbench.evidence.selection import Evidence
from sppbench.study.claims.claim import Part
from sppbench.study.claims.thresholds import Rules
from sppbench.study.common.intervals import Estimate, Verdict, above, difference, measured

CONSTANT = "constant prediction"  # as Run.kind calls it


@dataclass(frozen=True)
class Setup:
    """A net at a learning rate."""

    net: str
    lr: float

    def __str__(self) -> str:
        return f"{self.net} at lr {self.lr:g}"


@dataclass(frozen=True)
class Record:
    """Runs and rules.

    Attributes:
        everything: All runs under a directory.
        evidence: Those that follow the protocol.
        rules: Seeds, thresholds, protocol.
    """

    everything: Evidence
    evidence: Evidence
    rules: Rules

    @classmethod
    def of(cls, evidence: Evidence, rules: Rules) -> Record:
        return cls(evidence, evidence.only({}, rules.protocol), rules)

    def runs(self, cell: Setup) -> dict[int, Run]:
        """By seed; each is chosen once, and came to its end."""
        return {run.seed: run for run in self.evidence.select(cell.net, cell.lr)}

    def accuracies(self, cell: Setup) -> dict[int, float]:
        """Test accuracy in percent by seed."""
        found = {seed: run.accuracy for seed, run in self.runs(cell).items()}
        return {seed: accuracy for seed, accuracy in found.items() if accuracy is not None}

    def unused(self, seeds: Collection[int], number: int) -> list[int]:
        """So many other seeds than these: the study's, then 0, 1, 2, ..."""
        others = (seed for seed in chain(self.rules.study_seeds, count()) if seed not in seeds)
        return list(islice(others, max(number, 0)))

    def needs(self, wanted: Iterable[tuple[Setup, Sequence[int]]]) -> str:
        """Says which runs are missing, why runs that are there do not count, and how to get them."""
        alike: dict[tuple[float, tuple[int, ...]], list[str]] = {}
        for cell, seeds in wanted:
            if seeds and cell.net not in alike.setdefault((cell.lr, tuple(seeds)), []):
                alike[cell.lr, tuple(seeds)].append(cell.net)
        texts = []
        for (lr, seeds), nets in alike.items():
            numbers = ", ".join(map(str, seeds))
            text = f"{' and '.join(nets)} at lr {lr:g}, seed{'s' if len(seeds) > 1 else ''} {numbers}"
            command = f"model={','.join(nets)} optimizer.lr={lr:g} seed={','.join(map(str, seeds))}"
            why = "".join(f" ({reason})" for net in nets for reason in self._why_not(Setup(net, lr), seeds))
            texts.append(f"{text}: python -m sppbench.train -m {command}{why}")
        return "needs " + "; ".join(texts) if texts else ""

    def more(self, cells: Sequence[Setup], seeds: Collection[int], problem: str) -> str:
        """The words for a test that is undecided although it has its seeds, and the runs that would narrow it."""
        left = [seed for seed in self.rules.study_seeds if seed not in seeds]
        left = left or self.unused(seeds, self.rules.seeds)
        return f"{problem}; {self.needs((cell, left) for cell in cells)}"

    def inspected(self, cell: Setup, problems: Sequence[str]) -> str:
        """How to get an inspected run of a cell, none of whose inspections can be used."""
        command = f"sppbench inspect {self.everything.directory}"
        runs = self.runs(cell)
        bare = [str(run.path) for run in runs.values() if not (run.path / "inspection.json").exists()]
        if bare:
            return f"not inspected: {', '.join(bare)}: {command}"
        return f"{'; '.join([*problems, self.needs([(cell, self.unused(runs, 1))])])}, then {command}"

    def _why_not(self, cell: Setup, seeds: Iterable[int]) -> list[str]:
        """Why runs that are there do not count: they have not come to their end, or depart from the protocol.

        Those that depart in more than two settings are other experiments, and are passed over.
        """
        reasons = []
        wanted = self.rules.protocol[cell.net]
        for run in self.everything.runs:
            if (run.model, run.lr) != (cell.net, cell.lr) or run.seed not in seeds:
                continue
            found = run.settings
            departures = [f"{key} is {found.get(key)!r}" for key in wanted if found.get(key) != wanted[key]]
            if not departures and not run.counts:
                reasons.append(f"{run.path} is {run.state}")
            elif 1 <= len(departures) <= 2:
                reasons.append(f"{run.path} does not count: {', '.join(departures)}")
        return reasons


@dataclass(frozen=True)
class Criterion:
    """How a difference is judged.

    Attributes:
        decide: The verdict, from the estimate alone; it is asked only if both groups have their seeds.
        words: The same in words.
        unsure: The words for an interval from which no verdict follows.
    """

    decide: Callable[[Estimate], Verdict]
    words: str
    unsure: str = "the interval contains 0"


HIGHER = Criterion(lambda estimate: above(estimate, 0.0), "interval above 0")

Group = tuple[Setup, Mapping[int, float]]


def accuracy_difference(record: Record, name: str, minuend: Setup, subtrahend: Setup, criterion: Criterion) -> Part:
    """A deciding part: the difference of two cells' test accuracies, in points."""
    groups = [(cell, record.accuracies(cell)) for cell in (minuend, subtrahend)]
    return compare(record, name, "difference of test accuracy, in points", groups[0], groups[1], criterion)


def compare(
    record: Record,
    name: str,
    quantity: str,
    minuend: Group,
    subtrahend: Group,
    criterion: Criterion,
    decides: bool = True,
) -> Part:
    """The difference of two groups' means, as a part; the groups are values by seed."""
    rules = record.rules
    groups = (minuend, subtrahend)
    details = tuple(f"{cell}: {_summary(values)}" for cell, values in groups if values)
    short = [
        (cell, record.unused(record.runs(cell), rules.seeds - len(values)))
        for cell, values in groups
        if len(values) < rules.seeds
    ]
    estimate = None
    if all(values for _, values in groups):
        a, b = (list(values.values()) for _, values in groups)
        estimate = difference(a, b, rules.confidence)
    verdict: Verdict = "undecided"
    missing = record.needs(short)
    if estimate is not None and not short:
        verdict = criterion.decide(estimate)
        if verdict == "undecided":
            used = set(record.runs(minuend[0])) & set(record.runs(subtrahend[0]))
            missing = record.more([cell for cell, _ in groups], used, criterion.unsure)
    return Part(
        name,
        quantity,
        *measured(estimate),
        sum(len(values) for _, values in groups),
        criterion.words,
        verdict,
        missing,
        details,
        decides,
    )


def _summary(values: Mapping[int, float]) -> str:
    mean = statistics.fmean(values.values())
    if len(values) == 1:
        return f"{mean:.4g}, one seed"
    return f"{mean:.4g} ± {statistics.stdev(values.values()):.2g} (standard deviation), {len(values)} seeds"


def at_chance(record: Record, cell: Setup, seeds: int, kinds: Sequence[str] | None = None) -> Part:
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
