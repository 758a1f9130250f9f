"""A run on disk: what it was, how it ended, what it recorded, and what of that is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from sppbench.errors import UserError
from sppbench.evidence import epochs
from sppbench.evidence.lost import has_gains, has_signals, lost_histories
from sppbench.evidence.run_places import place_of
from sppbench.run.cell_places import shown
from sppbench.run.results import Result, ResultError, Status, read_result
from sppbench.run.run_directory import RunDirectory, config_hash, identity
from sppbench.spp.history.schema import HistoryError
from sppbench.stored_files import is_number, read_text, read_yaml

# "unfinished": there is a configuration but no result, because the run is under way or was killed.
State = Status | Literal["unfinished", "damaged"]
COUNTED: tuple[State, ...] = ("completed", "diverged")

FIRST_SWEEP = "table1"  # its run counts where another sweep has one of the same net, learning rate and seed

# They name a run, and are not among its settings.
_NAMES = frozenset({"seed", "data.seed", "name", "optimizer.lr"})


class EvidenceError(UserError):
    """Something that the user must fix, or a file of a run that cannot be read; the message says what, in a line."""


@dataclass(frozen=True)
class Run:
    """One run: a net, a learning rate and a seed; how it ended, and what it recorded.

    Attributes:
        path: Its directory.
        sweep: The sweep that it is from: the name of the directory that holds ``<name>/<key>=<value>/...``.
        settings: Flat configuration, without what only says where a run takes place (see `run_directory.identity`) and
            without model, learning rate and seed.
        result: What result.json says; None if there is none, or a damaged one.
        problem: The error of a failed run, or what is damaged.
        recorded: What its configuration says that it left: "metrics" (metrics.csv), "signals" (spp.parquet) and, if it
            has batch normalizations, their "gains" (batchnorm.parquet).

    Example:
        >>> run = read_run(Path("results/figures/ffnn_bn/lr=0.001/seed=868"))
        >>> run.state, run.accuracy
        ('completed', 24.15)
        >>> run.signals().columns
    """

    path: Path
    sweep: str
    model: str
    lr: float
    seed: int
    settings: dict[str, Any]
    state: State
    result: Result | None
    problem: str | None
    recorded: frozenset[str] = frozenset()

    @property
    def place(self) -> Path:
        """Where it is below its sweep: ``<name>/<key>=<value>/...``; see `run_places.place_of`."""
        return place_of(self.path, self.model)[1]

    @property
    def variant(self) -> tuple[str, ...]:
        """What its place says of it besides net, learning rate and seed, as ``("model.depth=4",)``."""
        folders = self.place.parts[1 + self.model.count("/") :]
        return tuple(shown(one) for one in folders if not one.startswith(("lr=", "seed=")))

    @property
    def label(self) -> str:
        """The net and its variant: ``mynet model.depth=4``."""
        return " ".join((self.model, *self.variant))

    @property
    def is_under_way(self) -> bool:
        """Whether a process is at work on it, on this machine or on another that shares the file system."""
        run = RunDirectory(self.path, {})
        return self.state == "unfinished" and run.owner is not None and not run.is_free()

    @property
    def counts(self) -> bool:
        """Whether it came to its end: completed, or diverged."""
        return self.state in COUNTED

    @property
    def accuracy(self) -> float | None:
        """Test accuracy in percent; None if the run does not count."""
        return float(self._test["accuracy"]) if self._test else None

    @property
    def kind(self) -> str | None:
        """How a counted run predicts: "NaN", "constant prediction" or "N classes predicted"; None if not recorded."""
        if self._test.get("logits_finite") is False:
            return "NaN"
        classes = self._test.get("classes_predicted")
        return "constant prediction" if classes == 1 else f"{classes} classes predicted" if classes else None

    @property
    def _test(self) -> dict[str, Any]:
        test = self.result.test if self.result is not None and self.counts else None
        return test or {}

    @property
    def has_signals(self) -> bool:
        """Whether there are recorded signals, whole or damaged."""
        return has_signals(self.path)

    @property
    def has_gains(self) -> bool:
        """Whether there are backward gains of its batch normalizations, whole or damaged."""
        return has_gains(self.path)

    @property
    def is_inspected(self) -> bool:
        return (self.path / "inspection.json").exists()

    @property
    def lost(self) -> list[str]:
        """What a run that counts has recorded and is not there any more, or not whole; a line each, with the file."""
        if not self.counts or self.result is None or self.result.steps == 0:
            return []
        lines = lost_histories(self.path, self.recorded)
        if "metrics" in self.recorded:
            try:
                # The last thing that is written.
                if "test/accuracy" not in self.metrics or self.metrics["test/accuracy"].isna().all():
                    raise EvidenceError(f"{self.path / 'metrics.csv'} is damaged: it has no test/accuracy")
            except EvidenceError as error:
                lines.append(str(error))
        return lines

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Of several runs of the same net, learning rate and seed the one of the highest rank counts."""
        return self.sweep == FIRST_SWEEP, self.has_signals, self.is_inspected

    def signals(self, batches: str = "all") -> pd.DataFrame:
        """Epoch means of the signals, as `sppbench.spp.epoch_mean` gives them, over "all" batches or "full" ones.

        Raises:
            EvidenceError: They were not recorded, or are damaged.
        """
        if batches not in self._signals:
            raise EvidenceError(f"{self.path / epochs.SPP_FILE} has no epoch means over {batches} batches")
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
        """metrics.csv: a row per epoch, with losses and accuracies.

        Raises:
            EvidenceError: It is missing or damaged.
        """
        file = self.path / "metrics.csv"
        try:
            return pd.read_csv(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise EvidenceError(f"cannot read {file}: {reason}") from error

    @cached_property
    def inspection(self) -> dict[str, Any]:
        """inspection.json, see `sppbench.evidence.inspection`.

        Raises:
            EvidenceError: It is missing or damaged.
        """
        file = self.path / "inspection.json"
        try:
            content = json.loads(read_text(file))
            if not isinstance(content, dict):
                raise ValueError("it is not a mapping of keys to values")
        except FileNotFoundError as error:
            raise EvidenceError(f"{self.path} has not been inspected (run sppbench inspect)") from error
        except (OSError, ValueError, RecursionError) as error:
            raise EvidenceError(f"cannot read {file}: {error}") from error
        return content


def read_run(path: Path) -> Run:
    """Reads the run in a directory; a damaged result.json makes it "damaged".

    Names and numbers are those of the configuration, not of the path.

    Raises:
        EvidenceError: Its configuration is missing or damaged.
    """
    config_file, result_file = path / "config.yaml", path / "result.json"
    if not config_file.exists():
        raise EvidenceError(f"{path} has a result.json but no config.yaml: its configuration is unknown")
    try:
        config = {str(key): value for key, value in read_yaml(config_file).items()}
        model, lr, seed = str(config["name"]), float(config["optimizer"]["lr"]), int(config["seed"])
        if int(config["data"]["num_classes"]) < 1:
            raise ValueError("data.num_classes")
        hash_of_config = config_hash(config)
    except UserError as error:
        raise EvidenceError(str(error)) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EvidenceError(f"{config_file} is not the configuration of a run ({error!r})") from error
    result: Result | None = None
    problem: str | None = None
    try:
        result = read_result(result_file)
        _check(result, (model, lr, seed), hash_of_config, result_file)
        state, problem = cast(State, result.status), result.error
    except ResultError as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        state, result, problem = ("unfinished", None, None) if gone else ("damaged", None, str(error))
    settings = {key: value for key, value in identity(config).items() if key not in _NAMES}
    sweep, _ = place_of(path, model)
    return Run(path, sweep, model, lr, seed, settings, state, result, problem, _recorded(config))


def _recorded(config: dict[str, Any]) -> frozenset[str]:
    """What a run with a configuration leaves beside its result, see `Run.recorded`."""
    spp, logger = config.get("spp"), config.get("logger")
    found = set()
    if isinstance(spp, dict) and str(spp.get("_target_")).endswith("SPPCallback"):
        found |= {"signals", "gains"} if spp.get("batchnorm") is True else {"signals"}
    csv = logger.get("csv") if isinstance(logger, dict) else None
    if isinstance(csv, dict) and str(csv.get("path")).endswith("/metrics.csv"):
        found.add("metrics")
    return frozenset(found)


def _check(result: Result, run: tuple[str, float, int], hash_of_config: str, file: Path) -> None:
    """Refuses a result that is whole JSON with the right fields, but cannot be true."""
    if (result.model, result.lr, result.seed) != run:
        raise ResultError(f"cannot read {file}: it belongs to another run than the config.yaml beside it")
    if result.config_hash != hash_of_config:
        raise ResultError(
            f"cannot read {file}: it belongs to configuration {result.config_hash}, and config.yaml beside it is "
            f"{hash_of_config}"
        )
    if result.status in ("failed", "interrupted", "stopped_early"):
        return
    accuracy = (result.test or {}).get("accuracy")
    if result.status not in COUNTED or not is_number(accuracy) or not 0 <= accuracy <= 100:
        raise ResultError(f"cannot read {file}: status {result.status!r} with test accuracy {accuracy!r}")
