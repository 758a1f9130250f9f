"""Decoded images kept in a file, so that they are decoded once."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path

from sppbench.data.datamodule import Images
from sppbench.files import replacing

log = logging.getLogger(__name__)

VERSION = 1


class _Unusable(Exception):
    """Why a cache that exists is not used."""


def writable(folder: Path) -> bool:
    """Return whether to write into a folder. One without any write bit is read-only, also for the superuser."""
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def location(root: Path, name: str) -> Path:
    """Return the cache file for the data set ``name`` in ``root``: beside it, or where that is read-only, the user's.

    There is one file for a root, and a new cache replaces the old one, so stale ones do not pile up.
    """
    if writable(root):
        return root / f"{name}-cache.npz"
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return user_cache_path("sppbench") / f"{name}-{place}.npz"


def lock(path: Path) -> FileLock:
    """Return the lock that goes with a cache file."""
    return FileLock(f"{path}.lock")


def load_or_build(path: Path, sources: Sequence[Path], build: Callable[[], Images]) -> Images:
    """Return the images from the cache, or build them from their sources and keep them.

    A damaged cache, or one of other sources, is never used: a warning says so, and it is replaced. Of several
    processes one builds and the others wait. Where no cache can be written, the images are built nevertheless.

    Args:
        path: the cache file, from :func:`location`.
        sources: the files that the images come from; the cache belongs to their names, sizes and times.
        build: reads the images from the sources.
    """
    key = _key(sources)
    with suppress(FileNotFoundError, _Unusable):
        return _read(path, key)
    images = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path):
            images = _read_or_warn(path, key)
            if images is None:
                images = build()
                _write(path, key, images)
    except OSError as error:
        log.warning("cannot keep the decoded images in %s: %s", path, error)
    return build() if images is None else images


def _key(sources: Sequence[Path]) -> str:
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sources]
    return json.dumps({"version": VERSION, "files": files})


def _read(path: Path, key: str) -> Images:
    """Read a cache. The zip format keeps a CRC-32 of each array, and reading an array to its end checks it."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                raise _Unusable("it belongs to other files")
            return Images(*(torch.from_numpy(arrays[name]) for name in Images._fields))
    except (FileNotFoundError, _Unusable):
        raise
    except Exception as error:  # damage can surface as nearly anything, and whatever it is, the sources are still there
        raise _Unusable(f"it is damaged: {error}") from error


def _read_or_warn(path: Path, key: str) -> Images | None:
    try:
        return _read(path, key)
    except FileNotFoundError:
        return None
    except _Unusable as reason:
        log.warning("decoding the images again, not using the cache %s: %s", path, reason)
        return None


def _write(path: Path, key: str, images: Images) -> None:
    """Write a cache, whole or not at all; call with the lock held."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # opened, as NumPy would add .npz to its name
        np.savez(file, key=np.array(key), **{name: value.numpy() for name, value in images._asdict().items()})
