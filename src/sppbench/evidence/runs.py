"""All runs under a directory of outputs, and what they recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sppbench.errors import UserError
from sppbench.evidence import epochs
from sppbench.evidence.run_files import COUNTED, Run, TableError, read_run
from sppbench.spp.history.schema import HistoryError


class EvidenceError(UserError):
    """Something that the user must mend, or a file of a run that cannot be read; the message says what, in a line."""


@dataclass(frozen=True)
class Recorded:
    """A run and what it recorded.

    Attributes:
        path: Its directory.
        sweep: The sweep that it is from: the name of the directory that holds ``<model>/lr=<lr>/seed=<seed>/``.
        run: Its configuration and result.
    """

    path: Path
    sweep: str
    run: Run

    @property
    def model(self) -> str:
        return self.run.model

    @property
    def lr(self) -> float:
        return self.run.lr

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def counts(self) -> bool:
        """Whether it came to its end: completed, or diverged."""
        return self.run.state in COUNTED

    @property
    def has_signals(self) -> bool:
        return any((self.path / name).exists() for name in ("spp.parquet", epochs.SPP_FILE))

    @property
    def _tells(self) -> tuple[bool, bool]:
        return self.has_signals, (self.path / "inspection.json").exists()

    def signals(self, batches: str = "all") -> pd.DataFrame:
        """Epoch means of the signals, as `sppbench.spp.epoch_mean` gives them, over "all" batches or "full" ones.

        Raises:
            EvidenceError: They were not recorded, or are damaged.
        """
        if batches not in self._signals:
            raise EvidenceError(f"{self.path} has no epoch means over {batches} batches")
        return self._signals[batches]

    @cached_property
    def _signals(self) -> dict[str, pd.DataFrame]:
        frame = self._read(epochs.spp_epochs)
        return {str(name): rows.drop(columns="batches") for name, rows in frame.groupby("batches")}

    @cached_property
    def gains(self) -> pd.DataFrame:
        """Epoch means of the backward gains, see `sppbench.evidence.epochs.batchnorm_epochs`.

        Raises:
            EvidenceError: They were not recorded, or are damaged.
        """
        return self._read(epochs.batchnorm_epochs)

    def _read(self, read: Any) -> pd.DataFrame:
        try:
            frame: pd.DataFrame = read(self.path)
        except HistoryError as error:
            raise EvidenceError(str(error)) from error
        if frame.empty:
            raise EvidenceError(f"{self.path} has recorded no step")
        return frame

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv: a row an epoch, with losses and accuracies.

        Raises:
            EvidenceError: It is missing or damaged.
        """
        file = self.path / "metrics.csv"
        try:
            return pd.read_csv(file)
        except (OSError, ValueError) as error:
            raise EvidenceError(f"cannot read {file}: {str(error).splitlines()[0]}") from error

    @cached_property
    def inspection(self) -> dict[str, Any]:
        """inspection.json, see `sppbench.evidence.inspection`.

        Raises:
            EvidenceError: It is missing or damaged.
        """
        file = self.path / "inspection.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no keys and values")
        except FileNotFoundError as error:
            raise EvidenceError(f"{self.path} was not inspected (sppbench inspect)") from error
        except (OSError, ValueError) as error:
            raise EvidenceError(f"cannot read {file}: {error}") from error
        return content


@dataclass(frozen=True)
class Evidence:
    """All runs under a directory.

    Attributes:
        directory: Where they are.
        runs: Sorted by model, learning rate, seed and sweep.
        problems: What could not be read, a line each.
    """

    directory: Path
    runs: tuple[Recorded, ...]
    problems: tuple[str, ...]

    def select(
        self, model: str, lr: float | None = None, seeds: Iterable[int] | None = None, signals: bool = False
    ) -> list[Recorded]:
        """The runs of a net that came to their end, one a learning rate and seed, sorted.

        Of several with the same net, learning rate and seed that one is taken which tells most: one with recorded
        signals, then one that was inspected, then the first.

        Args:
            model: Name of the net.
            lr: Learning rate; None is all.
            seeds: None is all.
            signals: Whether only runs with recorded signals are wanted.
        """
        wanted = None if seeds is None else set(seeds)
        chosen: dict[tuple[float, int], Recorded] = {}
        for run in self.runs:
            fits = run.model == model and lr in (None, run.lr) and (wanted is None or run.seed in wanted)
            if fits and run.counts and (run.has_signals or not signals):
                known = chosen.get((run.lr, run.seed))
                if known is None or run._tells > known._tells:
                    chosen[run.lr, run.seed] = run
        return [chosen[key] for key in sorted(chosen)]

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
            settings = run.run.settings
            departing = [f"{key} is {settings.get(key)!r}" for key in wanted if settings.get(key) != wanted[key]]
            if departing:
                problems.append(f"{run.path} does not count, as it departs from the protocol: {', '.join(departing)}")
            else:
                runs.append(run)
        return Evidence(self.directory, tuple(runs), tuple(problems))


def read_evidence(directory: str | Path) -> Evidence:
    """Finds all runs at ``[<sweep>/]<model>/lr=<lr>/seed=<seed>/`` under a directory, at any depth.

    A run that is damaged is among the problems and not among the runs; one that is under way is among the runs.

    Raises:
        EvidenceError: It is not a directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise EvidenceError(f"{directory} is not a directory")
    runs, problems = [], []
    for path in sorted(directory.rglob("seed=*")):
        if not (path / "config.yaml").exists() and not (path / "result.json").exists():
            continue
        sweep = path.parents[2]
        try:
            run = read_run(path, sweep)
        except TableError as error:
            problems.append(str(error))
            continue
        if run.state == "damaged":
            problems.append(str(run.problem))
        else:
            runs.append(Recorded(path, sweep.resolve().name, run))
    runs.sort(key=lambda found: (found.model, found.lr, found.seed, found.sweep))
    return Evidence(directory, tuple(runs), tuple(problems))
