"""What runs left under a directory: finds them, reads them, and refuses to mix configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

from sppbench.errors import UserError
from sppbench.run.results import Result, ResultError, Status, read_result

# "unfinished": there is a configuration but no result, because the run is under way or was killed.
State = Status | Literal["unfinished", "damaged"]
COUNTED: tuple[State, ...] = ("completed", "diverged")

# In these keys, and in those of the model, the runs of one table may differ.
_FREE_KEYS = frozenset({"seed", "data.seed", "name", "optimizer.lr"})


class TableError(UserError):
    """Something that the user must mend; the message says what, in a line."""


@dataclass(frozen=True)
class Run:
    """One run: a net, a learning rate and a seed.

    Attributes:
        path: Its directory, relative to the table's.
        settings: Flat configuration, without what only says where a run takes place (see `run_directory.identity`).
        result: What result.json says; None if there is none, or a damaged one.
        problem: The error of a failed run, or what is damaged.
    """

    path: Path
    model: str
    lr: float
    seed: int
    settings: dict[str, Any]
    state: State
    result: Result | None
    problem: str | None

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
        test = self.result.test if self.result is not None and self.state in COUNTED else None
        return test or {}


def read_runs(directory: Path) -> list[Run]:
    """Reads the runs at ``directory/<model>/lr=<lr>/seed=<seed>/``, sorted by model, learning rate and seed.

    A damaged result.json makes a run "damaged". Names and numbers are those of the configuration, not of the path.

    Raises:
        TableError: There are none; a configuration is missing or damaged; two runs are the same; or configurations
            differ in more than model, learning rate and seed.
    """
    if not directory.is_dir():
        raise TableError(f"{directory} is not a directory")
    found = sorted(directory.glob("*/lr=*/seed=*"))
    runs = [read_run(path, directory) for path in found if any(map(Path.exists, _files(path)))]
    if not runs:
        raise TableError(f"no runs in {directory}: looked for <model>/lr=<lr>/seed=<seed>/result.json")
    runs.sort(key=lambda run: (run.model, run.lr, run.seed))
    for one, other in pairwise(runs):
        if (one.model, one.lr, one.seed) == (other.model, other.lr, other.seed):
            raise TableError(f"{directory / one.path} and {directory / other.path} are runs of the same net and seed")
    _refuse_mixture(runs, directory)
    return runs


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _files(path: Path) -> tuple[Path, Path]:
    return path / "config.yaml", path / "result.json"


def read_run(path: Path, directory: Path) -> Run:
    """Reads the run at ``path``, somewhere under ``directory``.

    Raises:
        TableError: Its configuration is missing or damaged.
    """
    from sppbench.run.run_directory import identity

    config_file, result_file = _files(path)
    config = _read_config(config_file)
    try:
        model, lr, seed = str(config["name"]), float(config["optimizer"]["lr"]), int(config["seed"])
        if int(config["data"]["num_classes"]) < 1:
            raise ValueError("data.num_classes")
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(f"{config_file} is not the configuration of a run ({error!r})") from error
    settings = {key: value for key, value in identity(config).items() if key not in _FREE_KEYS}
    try:
        result = read_result(result_file)
        _check(result, (model, lr, seed), result_file)
        state, problem = cast(State, result.status), result.error
        return Run(path.relative_to(directory), model, lr, seed, settings, state, result, problem)
    except ResultError as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        state, problem = ("unfinished", None) if gone else ("damaged", str(error))
        return Run(path.relative_to(directory), model, lr, seed, settings, state, None, problem)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise TableError(f"{file.parent} has a result.json but no config.yaml: its configuration cannot be known")
    return {str(key): value for key, value in read_yaml(file).items()}


def read_yaml(file: Path) -> dict[Any, Any]:
    """Reads a YAML file that holds keys and values; interpolations are left as they are.

    Raises:
        TableError: It cannot be read, or holds something else.
    """
    import yaml  # its parser in C reads a configuration in a tenth of OmegaConf's time

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TableError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise TableError(f"cannot read {file}: it holds no keys and values")
    return content


def _check(result: Result, run: tuple[str, float, int], file: Path) -> None:
    """Refuses a result that is whole JSON with the right fields, but cannot be true."""
    if (result.model, result.lr, result.seed) != run:
        raise ResultError(f"cannot read {file}: it is of another run than config.yaml beside it")
    if not isinstance(result.device, str) or not isinstance(result.versions, dict):
        raise ResultError(f"cannot read {file}: device {result.device!r}, versions {result.versions!r}")
    if result.status in ("failed", "interrupted", "stopped_early"):
        return
    accuracy = result.test.get("accuracy") if isinstance(result.test, dict) else None
    if result.status not in COUNTED or not is_number(accuracy) or not 0 <= accuracy <= 100:
        raise ResultError(f"cannot read {file}: status {result.status!r} with test accuracy {accuracy!r}")


def _refuse_mixture(runs: list[Run], directory: Path) -> None:
    first_of_model: dict[str, Run] = {}
    for run in runs:
        # Across models the settings of the nets differ, as they should.
        for other, nets_too in ((runs[0], False), (first_of_model.setdefault(run.model, run), True)):
            keys = sorted(run.settings.keys() | other.settings.keys())
            keys = [key for key in keys if nets_too or key.split(".")[0] != "model"]
            values = {key: (other.settings.get(key), run.settings.get(key)) for key in keys}
            if differing := [f"{key} ({a!r} and {b!r})" for key, (a, b) in values.items() if a != b]:
                raise TableError(
                    f"{directory / other.path} and {directory / run.path} have different configurations, which a table "
                    f"never mixes: {', '.join(differing)}"
                )
