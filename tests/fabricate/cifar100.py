"""Small shards of CIFAR-100, and what tests of them share."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sppbench.data import CIFAR100, Images, cifar100

COUNTS = {"train-00000-of-00002": 12, "train-00001-of-00002": 8, "test-00000-of-00001": 7}
CACHE = "cifar100-cache.npz"
TRAIN_2 = "train-00001-of-00002.parquet"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard(count: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    images = chance.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, chance.integers(0, 100, count), [{"bytes": png(image), "path": None} for image in images]


def write(path: Path, img: Any, labels: Any) -> None:
    pq.write_table(pa.table({"img": img, "fine_label": labels, "coarse_label": [0] * len(img)}), path)


def module(root: Path, **options: Any) -> CIFAR100:
    return CIFAR100(root, val_size=4, batch_size=8, **options)


def same(a: Images, b: Images) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Images:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifar100, "read_shards", refuse)
