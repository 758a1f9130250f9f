"""What the runs say, under the rules: accuracies by seed, and the words for what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

from sppbench.evidence.runs import Evidence, Run
from sppbench.study.claims.thresholds import Rules


@dataclass(frozen=True)
class Cell:
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

    def runs(self, cell: Cell) -> dict[int, Run]:
        """By seed; each is chosen once, and came to its end."""
        return {run.seed: run for run in self.evidence.select(cell.net, cell.lr)}

    def accuracies(self, cell: Cell) -> dict[int, float]:
        """Test accuracy in percent by seed."""
        found = {seed: run.accuracy for seed, run in self.runs(cell).items()}
        return {seed: accuracy for seed, accuracy in found.items() if accuracy is not None}

    def unused(self, seeds: Collection[int], number: int) -> list[int]:
        """So many other seeds than these: the study's, then 0, 1, 2, ..."""
        others = (seed for seed in chain(self.rules.study_seeds, count()) if seed not in seeds)
        return list(islice(others, max(number, 0)))

    def needs(self, wanted: Iterable[tuple[Cell, Sequence[int]]]) -> str:
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
            why = "".join(f" ({reason})" for net in nets for reason in self._why_not(Cell(net, lr), seeds))
            texts.append(f"{text}: python -m sppbench.train -m {command}{why}")
        return "needs " + "; ".join(texts) if texts else ""

    def more(self, cells: Sequence[Cell], seeds: Collection[int], problem: str) -> str:
        """The words for a test that does not tell although it has its seeds, and the runs that would narrow it."""
        left = [seed for seed in self.rules.study_seeds if seed not in seeds]
        left = left or self.unused(seeds, self.rules.seeds)
        return f"{problem}; {self.needs((cell, left) for cell in cells)}"

    def inspected(self, cell: Cell, problems: Sequence[str]) -> str:
        """How to get an inspected run of a cell, none of whose inspections can be used."""
        command = f"sppbench inspect {self.everything.directory}"
        runs = self.runs(cell)
        bare = [str(run.path) for run in runs.values() if not (run.path / "inspection.json").exists()]
        if bare:
            return f"not inspected: {', '.join(bare)}: {command}"
        return f"{'; '.join([*problems, self.needs([(cell, self.unused(runs, 1))])])}, then {command}"

    def _why_not(self, cell: Cell, seeds: Iterable[int]) -> list[str]:
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
