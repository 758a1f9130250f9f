"""The file of decoded images: when it is used, when it is made anew, and what damages it."""

import io
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sppbench.data import Images, cache, cifar100, hub
from tests.fabricate.cifar100 import CACHE, TRAIN_2, module, refuse_to_decode, same, shard, write


def test_second_start_reads_the_cache(hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    root, expected = hub_root
    module(root).prepare_data()
    refuse_to_decode(monkeypatch)
    assert same(module(root).load(), expected)


def test_cache_holds_no_pickles(hub_root: tuple[Path, Images]) -> None:
    module(hub_root[0]).prepare_data()
    with np.load(hub_root[0] / CACHE, allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.kind for name in arrays} == {
            "key": "U",
            "train_images": "u",
            "train_labels": "i",
            "test_images": "u",
            "test_labels": "i",
        }


def test_every_damage_to_the_cache_is_noticed(hub_root: tuple[Path, Images]) -> None:
    """Bytes changed all over the file: what is read is either right or not used."""
    root, expected = hub_root
    module(root).prepare_data()
    path = root / CACHE
    whole = path.read_bytes()
    with np.load(path) as arrays:
        key = str(arrays["key"])
    refused = 0
    for place in range(0, len(whole), len(whole) // 400):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert same(cache._read(path, key), expected)
        except cache._Unusable:
            refused += 1
    assert refused > 390  # the others fell into bytes without a meaning, such as a time stamp


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "garbage", "numpy"])
def test_damaged_cache_is_rebuilt(harm: str, hub_root: tuple[Path, Images], caplog: pytest.LogCaptureFixture) -> None:
    root, expected = hub_root
    module(root).prepare_data()
    path = root / CACHE
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    wrong = {
        "flip": flipped,
        "truncate": whole[:middle],
        "empty": b"",
        "garbage": b"?" * 99,
        "numpy": buffer.getvalue(),
    }
    path.write_bytes(wrong[harm])
    with caplog.at_level(logging.WARNING):
        assert same(module(root).load(), expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"not using the cache {path}: it is damaged" in caplog.text
    assert path.stat().st_size == len(whole)


@pytest.mark.parametrize("change", ["content", "time", "version"])
def test_stale_cache_is_rebuilt(
    change: str, hub_root: tuple[Path, Images], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = hub_root
    module(root).prepare_data()
    if change == "content":
        pixels, labels, img = shard(7, np.random.default_rng(9))
        write(root / "test-00000-of-00001.parquet", img, labels)
        expected = expected._replace(test_images=torch.from_numpy(pixels), test_labels=torch.from_numpy(labels))
    elif change == "time":
        os.utime(root / TRAIN_2, (1, 1))
    else:
        monkeypatch.setattr(cache, "VERSION", 2)
    assert same(module(root).load(), expected)
    assert "it belongs to other files" in caplog.text
    assert len(list(root.glob("*.npz"))) == 1
    refuse_to_decode(monkeypatch)
    assert same(module(root).load(), expected)


@pytest.mark.parametrize("how", ["mode", "access"])
def test_read_only_root_is_cached_for_the_user(
    how: str, hub_root: tuple[Path, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expected = hub_root
    if how == "mode":
        root.chmod(0o555)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    before = sorted(root.iterdir())
    assert same(module(root).load(), expected)
    assert sorted(root.iterdir()) == before
    root.chmod(0o755)
    (made,) = tmp_path.rglob("cifar100-*.npz")
    assert made.parent == tmp_path / "user-cache" / "sppbench"
    root.chmod(0o555)
    refuse_to_decode(monkeypatch)
    assert same(module(root).load(), expected)
    root.chmod(0o755)


def test_roots_have_caches_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir(mode=0o555)
    assert cache.location(tmp_path / "a", "x") != cache.location(tmp_path / "b", "x")


def test_cache_that_cannot_be_written(
    hub_root: tuple[Path, Images], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert same(module(hub_root[0]).load(), hub_root[1])
    assert "No space left on device" in caplog.text
    assert not list(hub_root[0].glob(".*.tmp"))


def test_several_at_once_decode_once(hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    root, expected = hub_root
    decodes, together, read = [], threading.Barrier(4), hub.read_shards

    def counted(shards: dict[str, list[Path]]) -> Images:
        decodes.append(1)
        return read(shards)

    def start(_: int) -> Images:
        together.wait()
        return module(root).load()

    monkeypatch.setattr(cifar100, "read_shards", counted)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(images, expected) for images in pool.map(start, range(4)))
    assert len(decodes) == 1


def test_killed_before_the_rename_leaves_no_cache(hub_root: tuple[Path, Images]) -> None:
    """Another process dies with everything written; its lock falls, and this one starts over."""
    root, expected = hub_root
    if (pid := os.fork()) == 0:
        try:
            Path.replace = lambda *_: os._exit(9)  # type: ignore[method-assign, assignment, return-value]
            module(root).prepare_data()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert (root / f".{CACHE}.tmp").exists()
    assert not (root / CACHE).exists()
    assert same(module(root).load(), expected)
    assert not (root / f".{CACHE}.tmp").exists()
