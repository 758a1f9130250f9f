"""Kills runs, damages their files and fills their disk, and checks that nothing is lost and no number silently changes.

    python benchmarks/faults.py [--kills 50] [--damages 150] [--disks 20] [--seed 0] [--output benchmarks/faults.md]

Prints what it found and writes it to ``--output``; the exit status is 1 if something was found. Takes about 20 minutes
on two cores. Disks are small file systems of their own where this user may mount them, else limits on a file's size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from damage import KINDS, damage
from forked import Outcome, command, in_parallel, preload

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).resolve().parent
RUN = (
    *("model.hidden_features=8", "model.depth=1", "data=digits", "trainer=cpu", "data.batch_size=400", "logger=csv"),
    *("spp.epochs=[]", "spp.flush_every_n_steps=2"),
)
MODELS = ("ffnn_h100", "ffnn_bn_h100")
EPOCHS = 4  # of the runs that are killed or run out of disk: 12 steps in 8 parts of the history, and 4 checkpoints
SILENT = "a number changed silently"


@dataclass(frozen=True)
class Fault:
    """What was found: what was done, the command that came after it, what is wrong, and a line of its output."""

    what: str
    command: str
    problem: str
    line: str = ""


@dataclass(frozen=True)
class Try:
    """One of the things that are tried, by its number, and its share of randomness."""

    number: int
    seed: int

    @property
    def random(self) -> Random:
        return Random(f"{self.seed}/{self.number}")


@dataclass(frozen=True)
class Numbers:
    """What a run has computed."""

    result: dict[str, object]
    metrics: str
    history: pd.DataFrame
    batchnorm: pd.DataFrame | None

    def difference(self, other: Numbers) -> str | None:
        """The first part in which the two differ."""
        for name in ("result", "metrics"):
            if getattr(self, name) != getattr(other, name):
                return name
        if not self.history.equals(other.history):
            return "spp.parquet"
        if (self.batchnorm is None) != (other.batchnorm is None):
            return "batchnorm.parquet"
        same = self.batchnorm is None or self.batchnorm.equals(other.batchnorm)
        return None if same else "batchnorm.parquet"


def numbers(run: Path) -> Numbers:
    """Reads a run that came to its end."""
    from sppbench.spp import read_batchnorm, read_history

    batchnorm = run / "batchnorm.parquet"
    return Numbers(
        result_of(run),
        (run / "metrics.csv").read_text(encoding="utf-8"),
        read_history(run / "spp.parquet"),
        read_batchnorm(batchnorm) if batchnorm.exists() else None,
    )


def result_of(run: Path) -> dict[str, object]:
    """What result.json says about what was computed, not about where and when."""
    from sppbench.run.results import read_result

    result = read_result(run / "result.json")
    return {name: getattr(result, name) for name in ("status", "epochs", "steps", "test", "val", "diverged_at")}


def train(run: Path, model: str, *, epochs: int = 1, seed: int = 868) -> tuple[str, ...]:
    """The command that makes a run; it is the same each time."""
    return ("train", f"model={model}", *RUN, f"trainer.max_epochs={epochs}", f"seed={seed}", f"output_dir='{run}'")


def wrong(outcome: Outcome, names: Sequence[str] = ()) -> tuple[str, str] | None:
    """What is wrong with how a command ended, and a line of its output; ``names`` are those of what it must name."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if outcome.status < 0:
        hung = outcome.status == -signal.SIGKILL
        return ("hung" if hung else f"ended by signal {-outcome.status}"), last
    if "Traceback (most recent call last)" in outcome.out + outcome.err:
        return "traceback", last
    if outcome.status not in (0, 1, 2):
        return f"exit status {outcome.status}", last
    if outcome.status and not any(name in line for name in names for line in lines):
        return f"exit status {outcome.status}, and no line names {names[0]}" if names else "failed", last
    return None


# -- kills -------------------------------------------------------------------------------------------------------------


def kill(attempt: Try, place: Path, references: dict[str, tuple[Numbers, float]]) -> tuple[int, list[Fault]]:
    """Kills a run once, or every fourth twice, and resumes it to its end. Returns how many kills hit it alive."""
    model = MODELS[attempt.number % len(MODELS)]
    reference, seconds = references[model]
    directory = place / f"kill-{attempt.number}"
    directory.mkdir()
    again = train(directory / "run", model, epochs=EPOCHS)
    hits = 0
    moments = [attempt.random.uniform(0, seconds) for _ in range(2 if attempt.number % 4 == 3 else 1)]
    for moment in moments:
        hits += command(*again, directory=directory, kill_after=moment).status == -signal.SIGKILL
    what = f"killed after {' and '.join(f'{moment:.2f} s' for moment in moments)} of {seconds:.2f} s"
    faults = [Fault(what, "train", *found) for found in [came_to_its_end(directory, again, reference)] if found]
    shutil.rmtree(directory)
    return hits, faults


def came_to_its_end(directory: Path, again: Sequence[str], reference: Numbers) -> tuple[str, str] | None:
    """Runs the same command again; what is wrong with what it leaves, beside a run that nothing disturbed."""
    outcome = command(*again, directory=directory)
    if found := wrong(outcome):
        return found
    try:
        if (part := reference.difference(numbers(directory / "run"))) is not None:
            return SILENT, f"{part} is not that of a run that nothing disturbed"
    except Exception as error:
        return "lost", f"{type(error).__name__}: {error}"
    left = [file.name for pattern in ("*.tmp", ".owner") for file in (directory / "run").rglob(pattern)]
    return ("left behind", ", ".join(left)) if left else None


# -- damaged files -----------------------------------------------------------------------------------------------------


def commands(sweep: str, run: Path | None) -> dict[str, tuple[str, ...]]:
    """The commands that read results, in a directory with a sweep in ``tree/``; the last one is that of the run."""
    found: dict[str, tuple[str, ...]] = {
        "table": ("table", f"tree/{sweep}"),
        "claims": ("claims", "tree"),
        "figures": ("figures", "tree"),
        "report": ("report", "tree", "--output", "page.html"),
    }
    if run is not None:
        found["keep"] = ("keep", f"tree/{sweep}", "--output", "copy")
        found["inspect"] = ("inspect", "tree")
        found["train"] = train(run, run.parts[2], seed=int(run.name.removeprefix("seed=")))
    return found


def product(name: str, outcome: Outcome, directory: Path, run: Path | None) -> str:
    """All that a command leaves and that must not change silently, as text."""
    if name == "train":
        assert run is not None
        try:
            return str(result_of(directory / run))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    text = outcome.out.replace(str(directory), "")
    if name == "report" and (page := directory / "page.html").exists():
        text += re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|" + re.escape(str(directory)), "", page.read_text())
    if name == "keep":
        kept = sorted(file for file in (directory / "copy").rglob("*") if file.is_file())
        text += "".join(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in kept)
    return re.sub(r" \(\d+\.\d MB\)", "", text)


# What a run and a kept run store, each with the pattern of its files. Only a run at work has an .owner.
STORED = {
    "figures": {
        **{name: name for name in ("config.yaml", "result.json", "metrics.csv", "inspection.json", "last.ckpt")},
        **{name: f"{name}/*.parquet" for name in ("spp.parquet", "batchnorm.parquet")},
        **{name: name for name in (".run_id", ".owner", "train.log")},
        "figures": "*.png",
    },
    "kept": {
        **{name: name for name in ("config.yaml", "result.json", "metrics.csv", "inspection.json")},
        **{name: name for name in ("spp_epochs.parquet", "batchnorm_epochs.parquet")},
    },
}
CASES = [(sweep, stored, kind) for sweep, names in STORED.items() for stored in names for kind in KINDS]


def harm(attempt: Try, place: Path, sources: dict[str, dict[str, str]]) -> tuple[tuple[str, str], list[Fault]]:
    """Damages one file of a finished run, or of a kept one, and runs all commands. Returns which file, and how."""
    random = attempt.random
    cases = Random(attempt.seed).sample(CASES, len(CASES))  # all in turn, in an order of this seed's own
    sweep, stored, kind = cases[attempt.number % len(cases)]
    directory = place / f"damage-{attempt.number}"
    shutil.copytree(place / sweep, directory / "tree" / sweep)
    files = sorted((directory / "tree" / sweep).glob(f"*/*/*/{STORED[sweep][stored]}"))
    if stored == ".owner":
        files = [_owner(directory / "tree" / sweep / MODELS[0] / "lr=0.001" / "seed=868")]
    file = random.choice(files)
    damage(file, "junk" if kind == "wrong types" and file.suffix in (".png", ".log") else kind, random)
    run = Path("tree", *file.relative_to(directory / "tree").parts[:4])
    of_run = run if sweep == "figures" else None
    names = [file.name, stored, *([str(run.relative_to(f"tree/{sweep}"))] if kind == "deleted" else [])]
    faults = []
    for name, arguments in commands(sweep, of_run).items():
        outcome = command(*arguments, directory=directory)
        found = wrong(outcome, names)
        text, expected = product(name, outcome, directory, of_run), sources[sweep][name]
        if name == "train":
            expected = str(result_of(place / run.relative_to("tree")))
        # Without result.json a run has not come to its end: the others count.
        changed = text != expected and not (kind == "deleted" and stored == "result.json" and name != "train")
        if found is None and changed and not _says(outcome.err + text, expected, names):
            found = SILENT, _first_difference(text, expected)
        if found is not None:
            faults.append(Fault(f"{sweep}: {stored} {kind}", name, *found))
    shutil.rmtree(directory)
    return (stored, kind), faults


def _owner(run: Path) -> Path:
    """The file of a run whose process is gone."""
    owner = run / ".owner"
    owner.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1.7e9}))
    return owner


def _says(text: str, expected: str, names: Sequence[str]) -> bool:
    """Whether a line that was not there before names the file."""
    before = set(expected.splitlines())
    return any(name in line for line in text.splitlines() if line not in before for name in names)


def _first_difference(text: str, expected: str) -> str:
    before = set(expected.splitlines())
    return next((line for line in text.splitlines() if line not in before), "lines are missing")[:200]


def make_sources(place: Path) -> dict[str, dict[str, str]]:
    """Makes finished runs in ``figures/`` and kept ones in ``kept/``; what each command leaves of them, undamaged.

    Raises:
        RuntimeError: A command fails on undamaged files, or does not give the same twice.
    """
    for model in MODELS:
        for seed in (868, 67):
            run = place / "figures" / model / "lr=0.001" / f"seed={seed}"
            _expect(command(*train(run, model, seed=seed), directory=place))
    _expect(command("inspect", "figures", directory=place))
    _expect(command("keep", "figures", "--output", "kept", directory=place))
    sources: dict[str, dict[str, str]] = {}
    for sweep in ("figures", "kept"):
        twice = []
        for time_ in range(2):
            directory = place / f"whole-{time_}"
            shutil.copytree(place / sweep, directory / "tree" / sweep)
            run_ = Path("tree", sweep, MODELS[0], "lr=0.001", "seed=868") if sweep == "figures" else None
            texts = {}
            for name, arguments in commands(sweep, run_).items():
                outcome = command(*arguments, directory=directory)
                _expect(outcome)
                texts[name] = product(name, outcome, directory, run_)
            twice.append(texts)
            shutil.rmtree(directory)
        if differing := [name for name in twice[0] if twice[0][name] != twice[1][name]]:
            raise RuntimeError(f"{differing[0]} does not give the same twice: {twice[0][differing[0]][:300]}")
        sources[sweep] = twice[0]
    return sources


def _expect(outcome: Outcome) -> None:
    if outcome.status != 0 or wrong(outcome):
        raise RuntimeError(f"a command fails on undamaged files, with {outcome.status}: {outcome.err}{outcome.out}")


# -- full disks --------------------------------------------------------------------------------------------------------

DISK_COMMANDS = ("train", "train", "train", "report", "keep", "figures", "table")


def fill(attempt: Try, place: Path, references: dict[str, tuple[Numbers, float]], mounts: bool) -> list[Fault]:
    """Runs a command whose disk becomes full, and where it is a run, the same again when there is space."""
    random, name = attempt.random, DISK_COMMANDS[attempt.number % len(DISK_COMMANDS)]
    model = MODELS[attempt.number % len(MODELS)]
    directory = place / f"disk-{attempt.number}"
    disk = directory / "disk"
    disk.mkdir(parents=True)
    size = random.randrange(8, 700 if name == "train" else 200) * 1024
    if mounts:
        _mount(disk, f"size={size}")
    again = train(disk / "run", model, epochs=EPOCHS)
    arguments = {
        "train": again,
        "report": ("report", str(place / "figures"), "--output", str(disk / "page.html")),
        "keep": ("keep", str(place / "figures"), "--output", str(disk / "kept")),
        "figures": ("figures", str(place / "figures"), "--output", str(disk / "figures")),
        "table": ("table", str(place / "figures"), "--output", str(disk / "table")),
    }[name]
    limit = (lambda: None) if mounts else partial(_limit, size)
    faults = []
    try:
        outcome = command(*arguments, directory=directory, before=limit)
        what = f"full after {size // 1024} KiB"
        left = [file.name for file in disk.rglob("*.tmp")]
        if found := wrong(outcome, [str(disk)]):
            faults.append(Fault(what, name, *found))
        elif left:
            faults.append(Fault(what, name, "left behind", ", ".join(left)))
        if mounts:
            _mount(disk, "remount,size=64m")
        if name == "train":
            if found := came_to_its_end(disk, again, references[model][0]):
                faults.append(Fault(f"{what}, then with space", name, *found))
        elif found := wrong(command(*arguments, directory=directory)):
            faults.append(Fault(f"{what}, then with space", name, *found))
    finally:
        if mounts:
            subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(directory)
    return faults


def _mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)


def _limit(size: int) -> None:
    """No file can grow further; writing fails as on a full disk, with another number of the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def can_mount(place: Path) -> bool:
    """Whether this user may mount a file system."""
    disk = place / "disk"
    disk.mkdir()
    try:
        _mount(disk, "size=64k")
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


# -- the page ----------------------------------------------------------------------------------------------------------


def page(options: argparse.Namespace, rows: Iterable[Sequence[object]], faults: Sequence[Fault], notes: str) -> str:
    """What was tried, how often, and what was found, in Markdown."""
    from sppbench.run.results import git_state, package_versions

    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    git = git_state() or {}
    lines = [
        "# Kills, damaged files and full disks",
        "",
        f"`python benchmarks/faults.py --kills {options.kills} --damages {options.damages} --disks {options.disks} "
        f"--seed {options.seed}`, {datetime.now(timezone.utc):%Y-%m-%d}. {versions}; "
        f"commit {str(git.get('commit'))[:12]}{', with changes' if git.get('dirty') else ''}.",
        "",
        notes,
        "",
        "| what | tries | with a fault |",
        "|---|---:|---:|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]
    if faults:
        counts = Counter(faults)
        lines += ["| what was done | command | what is wrong | times | |", "|---|---|---|---:|---|"]
        for fault in sorted(counts, key=lambda fault: (fault.problem, fault.what)):
            cells = (fault.what, fault.command, fault.problem, counts[fault], f"`{_cell(fault.line)}`")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    else:
        lines.append("No fault was found.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"[|`]", "'", text)[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damages", type=int, default=150)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn at random")
    parser.add_argument("--processes", type=int, default=2, help="tries at once (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "faults.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that disks are unmounted
    preload()
    start = time.monotonic()
    rows: list[Sequence[object]] = []
    faults: list[Fault] = []

    def tried(what: str, found: Sequence[Sequence[Fault]]) -> None:
        rows.append((what, len(found), sum(map(bool, found))))
        faults.extend(fault for one in found for fault in one)
        print(
            f"{what}: {len(found)}, of which {rows[-1][2]} with a fault; {time.monotonic() - start:.0f} s", flush=True
        )

    with tempfile.TemporaryDirectory(prefix="sppbench-faults-") as name:
        place = Path(name)
        mounts = can_mount(place)
        references = {}
        for model in MODELS:
            directory = place / f"reference-{model}"
            directory.mkdir()
            outcome = command(*train(directory / "run", model, epochs=EPOCHS), directory=directory)
            _expect(outcome)
            references[model] = numbers(directory / "run"), outcome.seconds
        # Every fourth run is killed twice.
        tries = [Try(number, options.seed) for number in range(round(options.kills * 4 / 5))]
        killed = in_parallel(partial(kill, place=place, references=references), tries, options.processes)
        tried("runs that were killed, and resumed to their end", [found for _, found in killed])
        hits = sum(count for count, _ in killed)
        if options.damages or options.disks:
            sources = make_sources(place)
            print(f"undamaged runs are made; {time.monotonic() - start:.0f} s", flush=True)
        tries = [Try(number, options.seed) for number in range(options.damages)]
        harmed = in_parallel(partial(harm, place=place, sources=sources), tries, options.processes) if tries else []
        for kind in KINDS:
            tried(f"files {kind}, and all commands", [found for (_, how), found in harmed if how == kind])
        tries = [Try(number, options.seed) for number in range(options.disks)]
        fill_one = partial(fill, place=place, references=references, mounts=mounts)
        tried("full disks, and the same command with space", in_parallel(fill_one, tries, options.processes))
    files = ", ".join(f"{name} {count}" for name, count in sorted(Counter(file for (file, _), _ in harmed).items()))
    notes = (
        f"{hits} kills (SIGKILL at random moments) hit a run alive. Files: {files or 'none'}. Disks: "
        f"{'file systems in memory (tmpfs)' if mounts else 'limits on the size of files (RLIMIT_FSIZE)'}. "
        f"{(time.monotonic() - start) / 60:.0f} minutes, {options.processes} tries at once."
    )
    text = page(options, rows, faults, notes)
    print(text)
    options.output.write_text(text, encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
