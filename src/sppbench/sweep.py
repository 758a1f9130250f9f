"""The cells of a sweep: what is on disk, what is left to do, and how long it will take."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sppbench.results import Result, ResultError, read_result
from sppbench.run_directory import RunDirectory, RunDirectoryError, flatten

State = Literal["completed", "diverged", "failed", "interrupted", "running", "missing", "refused"]
FINAL: tuple[State, ...] = ("completed", "diverged")


class SweepError(Exception):
    """A sweep that cannot be run as it is asked for; the message says why, in a line."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep.

    Attributes:
        overrides: What makes its configuration, as on the command line.
        config: Its resolved configuration.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.config["output_dir"], {**self.config, "overwrite": False})

    @property
    def model(self) -> str:
        return str(self.config["name"])

    def __str__(self) -> str:
        return f"{self.model} lr={self.config['optimizer']['lr']} seed={self.config['seed']}"


@dataclass(frozen=True)
class Look:
    """A cell as it was found on disk; ``reason`` says why one is refused, or what made it fail."""

    cell: Cell
    state: State
    result: Result | None = None
    reason: str | None = None


def look_at(cell: Cell) -> Look:
    """Reads a cell's state from its directory, without holding or changing it."""
    run = cell.run
    try:
        done = run.completed()
        if done is not None:
            return Look(cell, "completed" if done.status == "completed" else "diverged", done)
        if run.owner is not None:
            return Look(cell, "running")
        if not run.config_file.exists():
            return Look(cell, "missing")
        if not run.result_file.exists():  # killed: a run that has begun and has not said how it ended
            return Look(cell, "interrupted")
        result = read_result(run.result_file)
        return Look(cell, "failed" if result.status == "failed" else "interrupted", result, result.error)
    except (RunDirectoryError, ResultError) as error:
        return Look(cell, "refused", reason=str(error))


def distinct(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that are asked for twice.

    Raises:
        SweepError: Two different cells have the same directory, or one wants several devices.
    """
    places: dict[str, Cell] = {}
    for cell in cells:
        devices = cell.config["trainer"].get("devices", 1)
        if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
            raise SweepError(f"a multirun cannot use trainer.devices={devices}: run one configuration at a time")
        ours, theirs = flatten(cell.config), flatten(places.setdefault(str(cell.run.path), cell).config)
        if keys := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            raise SweepError(f"cells that differ in {', '.join(keys)} share {cell.run.path}: give each its own name=")
    return list(places.values())


def seconds_left(looks: Sequence[Look]) -> tuple[float, int]:
    """Estimated seconds of computing for all cells that are not final, one after the other.

    A cell takes as long as the finished ones of its model did on average, or of all models where none is.

    Returns:
        The seconds, and how many of the cells the estimate had to leave out as nothing has finished yet.
    """
    known: dict[str, list[float]] = defaultdict(list)
    for look in looks:
        if look.state == "completed" and look.result is not None:
            known[look.cell.model].append(look.result.wall_seconds)
    everything = [seconds for values in known.values() for seconds in values]
    total, unknown = 0.0, 0
    for look in looks:
        if look.state in FINAL or look.state == "refused":
            continue
        values = known.get(look.cell.model) or everything
        if not values:
            unknown += 1
            continue
        owner = look.cell.run.owner if look.state == "running" else None
        elapsed = time.time() - owner.started if owner is not None else 0.0
        total += max(statistics.fmean(values) - elapsed, 0.0)
    return total, unknown


def progress_line(name: str, looks: Sequence[Look]) -> str:
    """``table1: 12/60 cells done | running: ffnn lr=0.001 seed=67 | 47 left | 1:02:03 left``"""
    counts = Counter(look.state for look in looks)
    done, running = sum(counts[state] for state in FINAL), [str(look.cell) for look in looks if look.state == "running"]
    parts = [f"{name}: {done}/{len(looks)} cells done"]
    unwell: tuple[State, ...] = ("failed", "refused")
    parts += [f"{counts[state]} {state}" for state in unwell if counts[state]]
    if running:
        parts.append(f"running: {running[0]}" + (f" and {len(running) - 1} more" if len(running) > 1 else ""))
    parts.append(f"{counts['missing'] + counts['interrupted']} left")
    seconds, unknown = seconds_left(looks)
    if done < len(looks) and not unknown:
        parts.append(f"{as_time(seconds / max(len(running), 1))} left")
    return " | ".join(parts)


def as_time(seconds: float) -> str:
    """``1:02:03``"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def dry_run(name: str, looks: Sequence[Look]) -> str:
    """What the sweep would do now: a line a cell, the numbers of each state, and the time it would take."""
    counts = Counter(look.state for look in looks)
    width = max(len(str(look.cell)) for look in looks)
    lines = [f"{look.state:<12} {look.cell!s:<{width}}  {look.reason or look.cell.run.path}" for look in looks]
    states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    final = sum(counts[state] for state in FINAL)
    lines.append(f"{name}: {len(looks)} cells: {states}; {len(looks) - final - counts['refused']} to run")
    seconds, unknown = seconds_left(looks)
    if unknown:
        lines.append("estimated time: unknown, as no cell has finished yet")
    else:
        lines.append(f"estimated time: {as_time(seconds)}, one cell after the other, by the cells that have finished")
    return "\n".join(lines)


def summary(name: str, looks: Sequence[Look], failures: Mapping[Cell, str]) -> tuple[str, bool]:
    """What became of a sweep, with a line for each cell that is not final, and whether there is none."""
    counts = Counter(look.state for look in looks)
    lines = []
    for look in looks:
        if look.state not in FINAL:
            traceback = look.cell.run.traceback_file
            reason = failures.get(look.cell) or look.reason or look.state
            lines.append(f"{look.cell} failed: {reason}" + (f"; see {traceback}" if traceback.exists() else ""))
    states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    return "\n".join([*lines, f"{name}: {len(looks)} cells: {states}"]), not lines


@contextmanager
def showing_progress(name: str, cells: Sequence[Cell], every_seconds: float = 1.0) -> Iterator[None]:
    """Keeps one line about the whole sweep on a terminal; elsewhere writes it whenever a cell's state has changed.

    It is read from disk, and therefore also tells of cells that other processes and machines are at work on.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(name, cells, ended, every_seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(name: str, cells: Sequence[Cell], ended: threading.Event, every_seconds: float) -> None:
    terminal, shown = sys.stderr.isatty(), ""
    final: dict[int, Look] = {}
    while True:
        last = ended.is_set()
        looks = [final.get(i) or look_at(cell) for i, cell in enumerate(cells)]
        final |= {i: look for i, look in enumerate(looks) if look.state in FINAL}
        line, states = progress_line(name, looks), " ".join(look.state for look in looks)
        if terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
        elif last or (states != shown and "running" in states):  # and not what lies between two cells
            sys.stderr.write(f"{line}\n")
            shown = states
        sys.stderr.flush()
        if last:
            return
        ended.wait(every_seconds)
