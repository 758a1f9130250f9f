"""The directory of one run: what is already there, whose turn it is, and what may be taken over."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from sppbench.errors import UserError
from sppbench.files import sync_directory, write_text
from sppbench.run.results import FINAL, Result, read_result
from sppbench.stored_files import read_yaml

# Where a run takes place and what it reports: neither changes what it computes, except for rounding.
NEUTRAL_KEYS = frozenset(
    {"output_dir", "overwrite", "sweeps", "logger", "spp", "data.root", "data.download", "optimizer.fused"}
    | {"flush_denormal", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"}
)
# Makes the saved configuration one that Hydra can run again as it is.
_REPEATABLE = {
    "defaults": ["_self_", {"override hydra/job_logging": "stdout"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}

# A configuration with these keys is a run's.
_RUN_KEYS = frozenset(
    {"name", "seed", "output_dir", "overwrite", "model", "data", "optimizer", "trainer", "spp"},
)
# What runs leave, and what is made of them, in the order in which it is deleted: a run that lacks its result is not
# complete, and one without a checkpoint is not resumed. So what is left never passes for more than it is.
_PRODUCTS = (
    *("result.json", "last.ckpt", "inspection.json", "metrics.csv", "traceback.txt"),
    *("spp.parquet", "batchnorm.parquet", "spp_epochs.parquet", "batchnorm_epochs.parquet"),
    *("spp_heatmap_activation.png", "spp_heatmap_gradient.png"),
)
_FIGURE = re.compile(r"spp(_gradient)?_epoch=\d+\.png")
# What describes all attempts at a run.
_RECORDS = ("train.log", "wandb", "tensorboard", ".run_id")
# There may be these where no run has begun yet: what a crash left just before that, and the lock.
_HARMLESS = frozenset({".lock", ".owner", ".run_id", ".config.yaml.tmp", "..owner.tmp", "..run_id.tmp"})


class RunDirectoryError(UserError):
    """A directory that this run must not, or cannot, write to. The message is for the user."""


class RunDirectoryBusy(RunDirectoryError):
    """Another process is at work in the directory."""


@dataclass(frozen=True)
class Owner:
    """Who holds a directory: host, process, and the time (seconds since 1970) since when."""

    host: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {datetime.fromtimestamp(self.started):%Y-%m-%d %H:%M:%S}"

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; nothing is known about those of other hosts."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values, none of them a dictionary, as on Hydra's command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The flat configuration without ``NEUTRAL_KEYS``: runs with equal identities compute the same, up to rounding."""
    flat = flatten({key: value for key, value in config.items() if key not in NEUTRAL_KEYS | _REPEATABLE.keys()})
    return {key: value for key, value in flat.items() if key not in NEUTRAL_KEYS}


def config_hash(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the configuration's identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


class RunDirectory:
    """``config.yaml``, ``metrics.csv``, ``result.json``, ``last.ckpt``, ``train.log`` and what probe and loggers add.

    Args:
        path: The directory; it need not exist.
        config: The resolved configuration of the run that wants to use it.
    """

    def __init__(self, path: str | Path, config: dict[str, Any]) -> None:
        self.path = Path(path)
        self.config = config
        self.config_file = self.path / "config.yaml"
        self.result_file = self.path / "result.json"
        self.checkpoint = self.path / "last.ckpt"
        self.log_file = self.path / "train.log"
        self.traceback_file = self.path / "traceback.txt"
        self._id_file = self.path / ".run_id"
        self._lock_file = self.path / ".lock"
        self._owner_file = self.path / ".owner"

    def completed(self) -> Result | None:
        """The result of a run with this configuration that came to its end, if one is here.

        Raises:
            RunDirectoryError: The place cannot be used, or is taken: by a run with another configuration (the message
                names the keys), by a result of another one, or by files without the configuration of a run.
            ResultError: result.json is damaged.
        """
        try:
            if not self.path.exists():
                return None
            if not self.path.is_dir():
                raise RunDirectoryError(f"output_dir={self.path} is a file")
            if not self.config_file.exists():
                self._refuse_what_is_there()
                return None
        except OSError as error:
            raise RunDirectoryError(f"cannot use output_dir={self.path}: {error.strerror or error}") from error
        saved = self._saved_config()
        if not saved.keys() >= _RUN_KEYS:
            raise self._no_run(self.config_file.name)
        if self.config["overwrite"]:
            return None
        self._refuse_other_configuration(saved)
        result = read_result(self.result_file) if self.result_file.exists() else None
        if result is not None and result.config_hash != config_hash(saved):
            raise RunDirectoryError(
                f"{self.result_file} belongs to another configuration than the config.yaml beside it: "
                "restore the run's own, or start over with overwrite=true"
            )
        return result if result is not None and result.status in FINAL else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for this process alone; folders that were made for that and stayed empty are removed.

        Raises:
            RunDirectoryError: It cannot be written to, or another process is at work in it.
        """
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        lock = FileLock(self._lock_file)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise RunDirectoryBusy(f"another process is at work in {self.path}: {self.owner or 'unknown'}") from None
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            self._say_who()
            yield
        finally:
            self._owner_file.unlink(missing_ok=True)
            if self.path in missing and not self.config_file.exists():
                self._lock_file.unlink(missing_ok=True)
                with suppress(OSError):  # somebody has put something there
                    for path in missing:
                        path.rmdir()
            lock.release()

    def _say_who(self) -> None:
        try:
            owner = Owner(socket.gethostname(), os.getpid(), time.time())
            write_text(self._owner_file, json.dumps(asdict(owner)))
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(f"cannot write to output_dir={self.path}: {error.strerror or error}")

    @property
    def owner(self) -> Owner | None:
        """Who is at work here, as far as one can see without taking the lock; only the lock itself is safe."""
        try:
            owner = Owner(**json.loads(self._owner_file.read_text(encoding="utf-8")))
            _check_owner(owner)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return None if owner.is_gone else owner

    def is_free(self) -> bool:
        """Whether the lock could be taken now: its owner is done, or dead."""
        if not self._lock_file.exists():
            return True
        try:
            with FileLock(self._lock_file, timeout=0):
                return True
        except Timeout:
            return False
        except OSError:  # it cannot be written to, which whoever tries will see
            return True

    def begin(self) -> bool:
        """Makes this run the one that the directory holds; returns whether there is a checkpoint to resume from.

        The caller holds the lock, and has called :meth:`completed` since it took it.

        Raises:
            RunDirectoryError: It cannot be written to, as where the disk is full.
        """
        try:
            self._begin()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self.resumable

    def _begin(self) -> None:
        if self.config["overwrite"]:
            self._clear((*_PRODUCTS, *_RECORDS, self.config_file.name))
        elif not self.resumable:  # what an earlier attempt left would pass for this one's
            self._clear(_PRODUCTS)
        if self.log_file.is_symlink():  # it is appended to
            self.log_file.unlink()
        write_text(self.config_file, OmegaConf.to_yaml(OmegaConf.create(_REPEATABLE | self.config)))
        run_id = self.run_id
        write_text(self._id_file, run_id)
        # From here on the run is under way; an old "interrupted" or "failed" no longer holds.
        self.result_file.unlink(missing_ok=True)
        self.traceback_file.unlink(missing_ok=True)

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint that this run would resume from."""
        there = self.checkpoint.exists() and self.config_file.exists()
        return there and not self.config["overwrite"]

    @property
    def has_id(self) -> bool:
        """Whether the run that is here has stored its id."""
        return bool(self._saved_id())

    @property
    def run_id(self) -> str:
        """Identifies this run in its checkpoint and in loggers that keep records of their own.

        It stays the same when the run is resumed.
        """
        if not hasattr(self, "_run_id"):
            self._run_id = ("" if self.config["overwrite"] else self._saved_id()) or uuid.uuid4().hex[:8]
        return self._run_id

    def _saved_id(self) -> str:
        return self._id_file.read_text(encoding="utf-8") if self._id_file.exists() else ""

    def _clear(self, names: tuple[str, ...]) -> None:
        """Deletes what has these names, and their temporary files, in this order; the figures before the last name."""
        there = {item.name for item in self.path.iterdir()}
        figures = sorted(name for name in there if _FIGURE.fullmatch(name))
        *products, last = names
        for name in (*products, *figures, last):
            for item in (self.path / name, self.path / f".{name}.tmp"):
                if item.name in there:
                    _delete(item)
                    sync_directory(self.path)

    def _refuse_what_is_there(self) -> None:
        """Nothing shows whose the files in a folder without a configuration are."""
        if found := sorted(item.name for item in self.path.iterdir() if item.name not in _HARMLESS):
            raise self._no_run(found[0])

    def _no_run(self, found: str) -> RunDirectoryError:
        is_config = found == self.config_file.name
        why = "which is not that of a run" if is_config else "but not a run, which would have a config.yaml"
        return RunDirectoryError(f"{self.path} holds {found!r}, {why}: choose another output_dir")

    def _refuse_other_configuration(self, saved: dict[str, Any]) -> None:
        ours, theirs = identity(self.config), identity(saved)
        if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            listed = ", ".join(f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} now)" for key in differing)
            raise RunDirectoryError(
                f"{self.config_file} belongs to a run with another configuration: {listed}. "
                "Choose another name= or output_dir=, or replace the run with overwrite=true"
            )

    def _saved_config(self) -> dict[str, Any]:
        try:
            return {str(key): value for key, value in read_yaml(self.config_file).items()}
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # another process has begun anew
                raise error.__cause__ from None
            if error.__cause__ is None:  # YAML, but no keys and values
                return {}
            reason = str(error).removeprefix(f"cannot read {self.config_file}: ")
            raise RunDirectoryError(
                f"{self.config_file} is damaged ({reason}): replace it with an intact one, or remove {self.path}"
            ) from None


def _delete(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink()


def _check_owner(owner: Owner) -> None:
    """Raises ValueError unless it can be the owner of a directory."""
    if not isinstance(owner.host, str) or type(owner.pid) is not int or not 0 < owner.pid < 2**31:
        raise ValueError(f"no process: {owner.pid!r} on {owner.host!r}")
    if type(owner.started) not in (int, float) or not math.isfinite(owner.started):
        raise ValueError(f"no time: {owner.started!r}")
    datetime.fromtimestamp(owner.started)
