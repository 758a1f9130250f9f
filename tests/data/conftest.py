"""Fabricated data sets, and no network."""

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from sppbench.data import Images, cifar100
from tests.fabricate.cifar100 import COUNTS, shard, write


@pytest.fixture(autouse=True)
def _user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(cifar100, "download_url", refuse)


@pytest.fixture
def hub_root(tmp_path: Path) -> tuple[Path, Images]:
    """A folder with two training shards and a test shard, and what they hold."""
    root, chance = tmp_path / "hub", np.random.default_rng(0)
    root.mkdir()
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for name, count in COUNTS.items():
        pixels, label, img = shard(count, chance)
        write(root / f"{name}.parquet", img, label)
        images[name.split("-")[0]].append(pixels)
        labels[name.split("-")[0]].append(label)
    parts = [torch.from_numpy(np.concatenate(kind[part])) for part in ("train", "test") for kind in (images, labels)]
    return root, Images(*parts)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Images]:
    """torchvision's archive of a tiny data set, with torchvision told to expect its checksums."""
    chance, folder = np.random.default_rng(1), tmp_path / "made" / "cifar-100-python"
    folder.mkdir(parents=True)
    parts = []
    for name, count in (("train", 9), ("test", 5)):
        pixels, labels = chance.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), chance.integers(0, 100, count)
        entry = {"data": pixels.reshape(count, -1), "fine_labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
        parts += [torch.from_numpy(pixels).permute(0, 2, 3, 1), torch.from_numpy(labels)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))
    path = folder.parent / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)

    def md5(file: Path) -> str:
        return hashlib.md5(file.read_bytes()).hexdigest()

    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5(folder / "meta")})
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", md5(path))
    return path, Images(*parts)
