"""How the runs were made: their settings, machines and versions, and where these differ."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from sppbench.evidence.runs import EvidenceError, Run


@dataclass(frozen=True)
class Row:
    """A run, in the list of all runs.

    Attributes:
        link: From the page to the run's directory, as a URL.
        name: Its path below the directory of all runs.
        train_loss: Of the last epoch.
        note: How it predicts if it is dead, or what went wrong.
    """

    link: str
    name: str
    model: str
    lr: float
    seed: int
    status: str
    accuracy: float | None
    test_loss: float | None
    train_loss: float | None
    epochs: int | None
    steps: int | None
    device: str
    commit: str
    note: str


def rows(runs: Iterable[Run], directory: Path, page: Path) -> list[Row]:
    """All runs, also those that do not count.

    Args:
        runs: As in `Evidence.runs`.
        directory: Where they are.
        page: The file that links to them.
    """
    return [_row(run, directory, page) for run in runs]


def _row(run: Run, directory: Path, page: Path) -> Row:
    result = run.result
    test = (result.test if result is not None else None) or {}
    dead = run.kind if run.kind in ("NaN", "constant prediction") else None
    git = (result.git if result is not None else None) or {}
    return Row(
        link=quote(os.fsencode(Path(os.path.relpath(run.path.resolve(), page.resolve().parent)).as_posix())) + "/",
        name=run.path.relative_to(directory).as_posix(),
        model=run.model,
        lr=run.lr,
        seed=run.seed,
        status=run.state,
        accuracy=run.accuracy,
        test_loss=test.get("loss"),
        train_loss=last_train_loss(run),
        epochs=result.epochs if result is not None else None,
        steps=result.steps if result is not None else None,
        device=result.device if result is not None else "",
        commit=f"{git.get('commit', '')[:7]}{'*' if git.get('dirty') else ''}",
        note="; ".join(filter(None, [dead, run.problem])),
    )


def last_train_loss(run: Run) -> float | None:
    """Training loss of the last epoch in metrics.csv; None if there is none."""
    try:
        losses = run.metrics["train/loss"].dropna()
    except (EvidenceError, KeyError):
        return None
    return float(losses.iloc[-1]) if len(losses) and pd.api.types.is_number(losses.iloc[-1]) else None


@dataclass(frozen=True)
class Setting:
    """A key and its values, the most frequent first, each with the number of runs that have it and whose these are."""

    key: str
    values: tuple[tuple[str, int, str], ...]

    @property
    def differs(self) -> bool:
        return len(self.values) > 1


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Data, optimizer and trainer of all runs; not what belongs to a net."""
    return _settled(
        (run, {key: value for key, value in run.settings.items() if key.split(".")[0] != "model"}) for run in runs
    )


def nets(runs: Sequence[Run]) -> dict[str, list[Setting]]:
    """By model: the arguments of the net."""
    arguments: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        of_net = {key[6:]: value for key, value in run.settings.items() if key.startswith("model.")}
        arguments.setdefault(run.model, []).append((run, of_net))
    return {model: _settled(found) for model, found in arguments.items()}


def departures(runs: Sequence[Run], protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Runs that do not follow the protocol of their net: by what departs in words, their paths.

    Args:
        runs: Those of nets without a protocol are left out.
        protocols: By net: dotted keys of the configuration and the values that a run must have.
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        wanted, has = protocols.get(run.model, {}), run.settings
        if words := [f"{key} is {_text(has.get(key))}" for key in wanted if has.get(key) != wanted[key]]:
            found.setdefault(", ".join(words), []).append(str(run.path))
    return found


def machines(runs: Sequence[Run]) -> list[Setting]:
    """Devices, threads, commits and versions of packages of all runs with a result."""
    return _settled((run, dict(_machine(run))) for run in runs)


def _machine(run: Run) -> Iterator[tuple[str, Any]]:
    if (result := run.result) is None:
        return
    yield "device", result.device
    yield "threads", result.threads
    git = result.git or {}
    yield "commit", f"{str(git['commit'])[:12]}{' with changes' * bool(git.get('dirty'))}" if git.get("commit") else "-"
    yield from result.versions.items()


def _settled(found: Iterable[tuple[Run, dict[str, Any]]]) -> list[Setting]:
    values: dict[str, dict[str, list[Run]]] = {}
    for run, of_run in found:
        for key, value in of_run.items():
            values.setdefault(key, {}).setdefault(_text(value), []).append(run)
    return [
        Setting(
            key,
            tuple(
                (text, len(of_value), _whose(of_value))
                for text, of_value in sorted(of_key.items(), key=lambda item: -len(item[1]))
            ),
        )
        for key, of_key in values.items()
    ]


def _whose(runs: Sequence[Run]) -> str:
    return ", ".join(f"{place} ({n})" for place, n in Counter(f"{run.sweep}/{run.model}" for run in runs).items())


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
