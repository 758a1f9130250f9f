"""The directory of one run: what is already there, whose turn it is, and what may be taken over."""

from __future__ import annotations

import hashlib
import json
import logging
import os
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

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from sppbench.errors import UserError
from sppbench.files import write_text
from sppbench.run.results import Result, read_result

log = logging.getLogger(__name__)

# Where a run takes place and what it tells about itself: not what it computes, but for rounding.
NEUTRAL_KEYS = frozenset(
    {"output_dir", "overwrite", "sweeps", "logger", "spp", "data.root", "data.download", "optimizer.fused"}
    | {"trainer.accelerator", "trainer.devices", "trainer.num_nodes"}
)
# Makes the saved configuration one that Hydra can run again as it is.
_REPEATABLE = {
    "defaults": ["_self_", {"override hydra/job_logging": "stdout"}],
    "hydra": {"run": {"dir": "."}, "output_subdir": None},
}


# A configuration with these keys is a run's.
_RUN_KEYS = frozenset({"seed", "model", "data", "optimizer", "trainer"})
_OUR_FILES = (
    *("config.yaml", "result.json", "inspection.json", "metrics.csv", "last.ckpt", "train.log", "traceback.txt"),
    *("*.parquet", "*.png", "wandb", "tensorboard", ".run_id", ".lock", ".owner", ".*.tmp"),
)


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
        """Whether it surely no longer lives; of other hosts' processes nothing is known here."""
        return self.host == socket.gethostname() and not _is_alive(self.pid)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values that are no dictionaries, as on Hydra's command line."""
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
            RunDirectoryError: The place is taken: by a run with another configuration (the message names the keys), or
                by files that are not a run's.
            ResultError: result.json is damaged.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise RunDirectoryError(f"output_dir={self.path} is a file")
        if self.config["overwrite"]:
            self._refuse_foreign_files()
            return None
        if not self.config_file.exists():
            self._refuse_foreign_files()
            return None
        self._refuse_other_configuration()
        result = read_result(self.result_file) if self.result_file.exists() else None
        return result if result is not None and result.status in ("completed", "diverged") else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for this process alone; what was made for that and stayed empty is removed again.

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
        except (OSError, ValueError, TypeError):
            return None
        return None if owner.is_gone else owner

    def is_free(self) -> bool:
        """Whether the lock can be had now: its owner is done, or dead."""
        if not self._lock_file.exists():
            return True
        try:
            with FileLock(self._lock_file, timeout=0):
                return True
        except Timeout:
            return False
        except OSError:  # it cannot be written to: whoever tries is told
            return True

    def begin(self) -> bool:
        """Makes this run the one that the directory holds; returns whether there is a checkpoint to resume from.

        Whoever calls it holds the lock, and has looked at :meth:`completed` since.
        """
        if self.config["overwrite"]:
            self._clear()
        write_text(self.config_file, OmegaConf.to_yaml(OmegaConf.create(_REPEATABLE | self.config)))
        run_id = self.run_id
        write_text(self._id_file, run_id)
        # From here on the run is under way; an old "interrupted" or "failed" no longer holds.
        self.result_file.unlink(missing_ok=True)
        self.traceback_file.unlink(missing_ok=True)
        return self.resumable

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint that this run would go on from."""
        return self.checkpoint.exists() and not self.config["overwrite"]

    @property
    def run_id(self) -> str:
        """Names this run to loggers that keep their own record; it stays the same when the run is resumed."""
        if not hasattr(self, "_run_id"):
            taken_over = self._id_file.exists() and not self.config["overwrite"]
            self._run_id = (self._id_file.read_text() if taken_over else "") or uuid.uuid4().hex[:8]
        return self._run_id

    def _clear(self) -> None:
        """Deletes what runs leave, and nothing else; the configuration, which tells that it is a run's, at last."""
        held = (self._lock_file, self._owner_file)
        ours = [item for item in self.path.iterdir() if _is_ours(item) and item not in held]
        for item in sorted(ours, key=lambda item: item == self.config_file):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()

    def _refuse_foreign_files(self) -> None:
        if self.config_file.exists() and self._saved_config().keys() >= _RUN_KEYS:
            return
        foreign = sorted(item.name for item in self.path.iterdir() if not _is_ours(item) or item == self.config_file)
        if foreign:
            raise RunDirectoryError(f"{self.path} holds {foreign[0]!r}, but no run: choose another output_dir")

    def _refuse_other_configuration(self) -> None:
        saved = self._saved_config()
        if not saved.keys() >= _RUN_KEYS:
            self._refuse_foreign_files()
        ours, theirs = identity(self.config), identity(saved)
        if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            listed = ", ".join(f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} now)" for key in differing)
            raise RunDirectoryError(
                f"{self.path} holds a run with another configuration: {listed}. "
                "Choose another name= or output_dir=, or replace it with overwrite=true"
            )

    def _saved_config(self) -> dict[str, Any]:
        try:
            saved = OmegaConf.to_container(OmegaConf.load(self.config_file))
        except FileNotFoundError:  # another process has begun anew
            raise
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise RunDirectoryError(f"{self.config_file} is damaged ({reason}): remove it, or {self.path}") from None
        return {str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_ours(item: Path) -> bool:
    return any(item.match(pattern) for pattern in _OUR_FILES)
