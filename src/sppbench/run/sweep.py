"""The cells of a sweep: what is on disk, what is left to do, and how long it will take."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sppbench.errors import UserError
from sppbench.run.cell_places import shown
from sppbench.run.results import FINAL, Result, ResultError, Status, read_result
from sppbench.run.run_directory import RunDirectory, RunDirectoryError, config_hash, flatten

State = Status | Literal["running", "missing", "refused"]


class SweepError(UserError):
    """A sweep that cannot be run as asked; the message says why, in a line."""


@dataclass(frozen=True, eq=False)
class SweepCell:
    """One run of a sweep.

    Attributes:
        overrides: What makes its configuration, as on the command line.
        config: Its resolved configuration.
        begun: When the sweep began, see `begin`: with ``overwrite`` what is older does not count.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]
    begun: float = math.inf

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.config["output_dir"], {**self.config, "overwrite": False})

    @property
    def kept(self) -> list[RunDirectory]:
        """Where the same run may have been kept for good, below ``sweeps.kept`` as its own directory below outputs.

        First its own place, then those of the same net, learning rate and seed whose results have its configuration: a
        place names what its sweep varied when the run was made.
        """
        sweeps = self.config.get("sweeps", {})
        if (folder := sweeps.get("kept")) is None:
            return []
        depth = 4 + self.model.count("/") + str(sweeps.get("cell", "")).count("/")
        parts = self.run.path.parts[-depth:]
        own, ours = Path(folder, *parts), config_hash(self.config)
        others = Path(folder, parts[0], self.model).glob(f"**/{parts[-2]}/{parts[-1]}/result.json")
        alike = [file.parent for file in sorted(others) if file.parent != own and ours in file.read_text("utf-8")]
        return [RunDirectory(path, {**self.config, "overwrite": False}) for path in (own, *alike)]

    @property
    def kind(self) -> str:
        """What takes the same time: the model, and what is swept besides learning rate and seed."""
        return f"{self.model}{self.config.get('sweeps', {}).get('cell', '')}"

    @property
    def model(self) -> str:
        return str(self.config["name"])

    def __str__(self) -> str:
        folders = [shown(part) for part in str(self.config.get("sweeps", {}).get("cell", "")).split("/")[1:]]
        return " ".join([self.model, *folders, f"lr={self.config['optimizer']['lr']}", f"seed={self.config['seed']}"])


@dataclass(frozen=True)
class Look:
    """A cell as it was found on disk.

    Attributes:
        reason: Why it is refused, or what made it fail.
        kept: It was kept for good, and may have been run on a faster or slower machine.
    """

    cell: SweepCell
    state: State
    result: Result | None = None
    reason: str | None = None
    kept: bool = False


def look_at(cell: SweepCell) -> Look:
    """Reads a cell's state from its directory, which others may be changing, without changing it."""
    for _ in range(3):
        try:
            return _look_at(cell)
        except FileNotFoundError:  # it was there a moment ago
            continue
        except (RunDirectoryError, ResultError) as error:
            if isinstance(error, RunDirectoryError) or cell.run.result_file.exists():
                return Look(cell, "refused", reason=str(error))
        except OSError as error:
            return Look(cell, "refused", reason=f"cannot read {cell.run.path}: {error.strerror or error}")
    return Look(cell, "missing")


def _look_at(cell: SweepCell) -> Look:
    if (kept := _kept_result(cell)) is not None:
        return Look(cell, kept.status, kept, kept=True)
    run = cell.run
    # An owner may have died on another host, or have left its number to another process: only the lock is safe.
    running = run.owner is not None and not run.is_free()
    begun = run.config_file.exists() and run.config_file.stat().st_mtime >= cell.begun
    if cell.config["overwrite"] and not begun:
        return Look(cell, "running" if running else "missing")
    done = run.completed()
    if done is not None:
        return Look(cell, done.status, done)
    if running:
        return Look(cell, "running")
    if not run.config_file.exists():
        return Look(cell, "missing")
    if not run.result_file.exists():  # killed: a run that has begun and has not said how it ended
        return Look(cell, "interrupted")
    result = read_result(run.result_file)
    return Look(cell, "failed" if result.status == "failed" else "interrupted", result, result.error)


def _kept_result(cell: SweepCell) -> Result | None:
    """The result that is kept for good, unless it is damaged or of another configuration."""
    for run in cell.kept:
        with suppress(RunDirectoryError, ResultError):
            if (result := run.completed()) is not None:
                return result
    return None


def begin(cells: Sequence[SweepCell]) -> list[SweepCell]:
    """The cells of a sweep that begins now, by the clock of the disk that they are on.

    The clock of this machine may be ahead of the file server's, and the cells' own files would then seem too old.

    Returns:
        The cells with ``begun``, in seconds since 1970, if they are to be overwritten.
    """
    if not any(cell.config["overwrite"] for cell in cells):
        return list(cells)
    try:
        begun = _clock_of(Path(os.path.commonpath([cell.run.path.absolute().parent for cell in cells])))
    except (OSError, ValueError):  # it cannot be written to, which each cell finds, too; or there are several disks
        begun = time.time()
    return [replace(cell, begun=begun) for cell in cells]


def _clock_of(folder: Path) -> float:
    """The time that a file written now to a folder gets, or to its nearest parent that exists."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(b"now")
        file.flush()
        return os.fstat(file.fileno()).st_mtime


def distinct(cells: Sequence[SweepCell]) -> list[SweepCell]:
    """The cells, each once, even if it is asked for twice.

    Raises:
        SweepError: There are no cells, two different ones have the same directory, or one wants several devices.
    """
    if not cells:
        raise SweepError("there is nothing to run: a list of values is empty")
    places: dict[str, SweepCell] = {}
    for cell in cells:
        trainer = cell.config["trainer"]
        devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
        if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
            raise SweepError(f"a multirun cannot use trainer.devices={devices}: run one configuration at a time")
        if nodes != 1:
            raise SweepError(f"a multirun cannot use trainer.num_nodes={nodes}: run one configuration at a time")
        ours, theirs = flatten(cell.config), flatten(places.setdefault(str(cell.run.path), cell).config)
        if keys := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            raise SweepError(
                f"cells that differ in {', '.join(keys)} share {cell.run.path}: output_dir must tell them apart"
            )
    return list(places.values())


def seconds_left(looks: Sequence[Look], measured: Mapping[str, float] = MappingProxyType({})) -> tuple[float, int]:
    """Estimated seconds of computing for all cells that are not final, one after the other.

    A cell takes as long as the finished ones of its kind did on average, or where none is, as long as was measured for
    its kind, or as those of its kind that are kept did, or as all that have finished did.

    Args:
        looks: At all cells.
        measured: Kind → seconds of a cell.

    Returns:
        The seconds, and how many of the cells the estimate had to leave out as nothing has finished yet.
    """
    here, kept = _seconds_by_kind(looks, kept=False), _seconds_by_kind(looks, kept=True)
    everything = list(chain(*here.values())) or list(chain(*kept.values()))
    total, unknown = 0.0, 0
    for look in looks:
        if look.state in FINAL or look.state == "refused":
            continue
        kind = look.cell.kind
        values = here.get(kind) or ([measured[kind]] if kind in measured else kept.get(kind, everything))
        if not values:
            unknown += 1
            continue
        owner = look.cell.run.owner if look.state == "running" else None
        elapsed = max(time.time() - owner.started, 0.0) if owner is not None else 0.0
        if look.state == "interrupted" and look.result is not None:
            elapsed = look.result.wall_seconds
        total += max(statistics.fmean(values) - elapsed, 0.0)
    return total, unknown


def _seconds_by_kind(looks: Sequence[Look], *, kept: bool) -> dict[str, list[float]]:
    """Kind → seconds that its finished cells took: of those that are kept, or of the others."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for look in looks:
        if look.state == "completed" and look.result is not None and look.kept == kept:
            seconds[look.cell.kind].append(look.result.wall_seconds)
    return seconds


def progress_line(name: str, looks: Sequence[Look], jobs: int = 1) -> str:
    """``table1: 12/60 cells done | running: ffnn lr=0.001 seed=67 | 47 left | 1:02:03 left``

    Args:
        name: Of the sweep.
        looks: At all of its cells; those that have failed are not tried again before the next start.
        jobs: How many cells are run at once.
    """
    counts = Counter(look.state for look in looks)
    done, running = sum(counts[state] for state in FINAL), [str(look.cell) for look in looks if look.state == "running"]
    parts = [f"{name}: {done}/{len(looks)} cells done"]
    unwell: tuple[State, ...] = ("failed", "refused")
    parts += [f"{counts[state]} {state}" for state in unwell if counts[state]]
    if running:
        parts.append(f"running: {running[0]}" + (f" and {len(running) - 1} more" if len(running) > 1 else ""))
    parts.append(f"{counts['missing'] + counts['interrupted']} left")
    seconds, unknown = seconds_left([look for look in looks if look.state != "failed"])
    if seconds and not unknown:
        parts.append(f"{as_time(seconds / max(jobs, 1))} left")
    return " | ".join(parts)


def as_time(seconds: float) -> str:
    """``1:02:03``"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def unfinished_kinds(looks: Sequence[Look]) -> dict[str, SweepCell]:
    """Kinds of cells of which one is to be run and none has finished here, with the first such cell of each."""
    finished = {look.cell.kind for look in looks if look.state == "completed" and not look.kept}
    found: dict[str, SweepCell] = {}
    for look in looks:
        if look.cell.kind not in finished and look.state not in (*FINAL, "refused"):
            found.setdefault(look.cell.kind, look.cell)
    return found


def dry_run(name: str, looks: Sequence[Look], measured: Mapping[str, float] = MappingProxyType({})) -> str:
    """What the sweep would do now: a line per cell, the numbers of each state, and the time it would take.

    Args:
        name: Of the sweep.
        looks: At all of its cells.
        measured: Kind → seconds of a cell, by a few steps, for kinds of which none has finished.
    """
    counts = Counter(look.state for look in looks)
    width = max(len(str(look.cell)) for look in looks)
    lines = [f"{look.state:<12} {look.cell!s:<{width}}  {look.reason or look.cell.run.path}" for look in looks]
    states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    final = sum(counts[state] for state in FINAL)
    lines.append(f"{name}: {len(looks)} cells: {states}; {len(looks) - final - counts['refused']} to run")
    seconds, unknown = seconds_left(looks, measured)
    if unknown:
        lines.append("estimated time: unknown, as no cell has finished yet")
    else:
        how = [f"from a few steps of {', '.join(measured)} measured just now"] if measured else []
        if not measured or _seconds_by_kind(looks, kept=False):
            how.append("from the cells that have finished")
        lines.append(f"estimated time: {as_time(seconds)}, one cell after another, {' and '.join(how)}")
    return "\n".join(lines)


def summary(name: str, looks: Sequence[Look], failures: Mapping[SweepCell, str]) -> tuple[str, bool]:
    """How a sweep ended, with a line for each cell that is not final; and whether all cells are."""
    counts = Counter(look.state for look in looks)
    lines = []
    for look in looks:
        if look.state not in FINAL or look.cell in failures:
            traceback = look.cell.run.traceback_file
            reason = failures.get(look.cell) or look.reason or look.state
            lines.append(f"{look.cell} failed: {reason}" + (f"; see {traceback}" if traceback.exists() else ""))
    states = ", ".join(f"{number} {state}" for state, number in counts.most_common())
    return "\n".join([*lines, f"{name}: {len(looks)} cells: {states}"]), not lines


@contextmanager
def showing_progress(name: str, cells: Sequence[SweepCell], every_seconds: float = 1.0) -> Iterator[None]:
    """Keeps one line about the whole sweep on a terminal; elsewhere writes it whenever a cell's state has changed.

    It is read from disk, and therefore includes cells that other processes and machines are running.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(name, cells, ended, every_seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(name: str, cells: Sequence[SweepCell], ended: threading.Event, every_seconds: float) -> None:
    terminal, shown, jobs = sys.stderr.isatty(), "", 1
    final: dict[int, Look] = {}
    while True:
        last = ended.is_set()
        looks = [final.get(i) or look_at(cell) for i, cell in enumerate(cells)]
        final |= {i: look for i, look in enumerate(looks) if look.state in FINAL}
        jobs = max(jobs, sum(look.state == "running" for look in looks))
        line, states = progress_line(name, looks, jobs), " ".join(look.state for look in looks)
        if terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
            sys.stderr.write(f"\r\x1b[K{line[:width]}" + ("\n" if last else ""))
        elif last or (states != shown and "running" in states):  # and not what lies between two cells
            sys.stderr.write(f"{line}\n")
            shown = states
        sys.stderr.flush()
        if last:
            return
        ended.wait(every_seconds)
