"""Parquet files as the Hugging Face Hub names them, fabricated: layouts, and what is wrong with files."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ImageFile

from sppbench.data import DataError, Images
from tests.fabricate.cifar100 import CACHE, TRAIN_2, module, png, same, shard, write

NAMES = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
LAYOUTS = {
    "below": [f"cifar100/{name}.parquet" for name in NAMES],
    "below, in folders": ["cifar100/train/0000.parquet", "cifar100/train/0001.parquet", "cifar100/test/0000.parquet"],
    "folders": ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
    "shards in folders": [f"{name.split('-')[0]}/{name}.parquet" for name in NAMES],
    "another folder": [f"data/{name}-0123456789abcdef.parquet" for name in NAMES],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_of_the_hub(layout: str, hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    for name, place in zip(NAMES, LAYOUTS[layout], strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.parquet").rename(root / place)
    (root / ".cache" / "huggingface").mkdir(parents=True)
    data = module(root)  # may download, and the tests let nothing be downloaded
    data.prepare_data()
    assert same(data.load(), expected)
    assert (root / CACHE).exists()


@pytest.mark.parametrize("below", ["", "cifar100/"])
def test_one_file_for_each_part(below: str, hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    tables = [pq.read_table(root / f"{name}.parquet") for name in NAMES]
    for name in NAMES:
        (root / f"{name}.parquet").unlink()
    (root / below).mkdir(exist_ok=True)
    pq.write_table(pa.concat_tables(tables[:2]), root / below / "train.parquet")
    pq.write_table(tables[2], root / below / "test.parquet")
    assert same(module(root).load(), expected)


def bad_png(data: bytes) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        _, labels, img = shard(8, np.random.default_rng(0))
        img[3]["bytes"] = data
        write(root / TRAIN_2, img, labels)

    return harm


def no_bytes(path: str | None) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        _, labels, img = shard(8, np.random.default_rng(0))
        img[3] = {"bytes": None, "path": path}
        write(root / TRAIN_2, img, labels)

    return harm


def no_image(root: Path) -> None:
    _, labels, img = shard(8, np.random.default_rng(0))
    write(root / TRAIN_2, [*img[:3], None, *img[4:]], labels)


def into_folder(root: Path) -> None:
    """The second of two numbered files in ``train/``, without the first."""
    (root / "train").mkdir()
    (root / TRAIN_2).rename(root / "train" / "0001.parquet")
    (root / "train-00000-of-00002.parquet").unlink()


def two_sets(root: Path) -> None:
    shutil.copy(root / TRAIN_2, root / "train.parquet")


def with_header(width: int, height: int) -> bytes:
    """A PNG whose header claims another size, with the checksum that goes with it."""
    chunk = b"IHDR" + struct.pack(">II", width, height) + WHOLE[24:29]
    return WHOLE[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + WHOLE[33:]


def bad_labels(labels: list[Any]) -> Callable[[Path], None]:
    return lambda root: write(root / TRAIN_2, shard(len(labels), np.random.default_rng(0))[2], labels)


def truncate(root: Path) -> None:
    data = (root / TRAIN_2).read_bytes()
    (root / TRAIN_2).write_bytes(data[: len(data) // 2])


def garble(root: Path) -> None:
    data = bytearray((root / TRAIN_2).read_bytes())
    data[4:200] = bytes(196)  # the header of the first page
    (root / TRAIN_2).write_bytes(data)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
WHOLE = png(PIXELS[:32])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / TRAIN_2).unlink(), rf"missing from .*hub: {TRAIN_2}; 1 of 2 files are there"),
        (lambda root: (root / "test-00000-of-00001.parquet").unlink(), r"no test-\*\.parquet in .*hub"),
        (lambda root: [file.unlink() for file in root.glob("train*")], r"no train-\*\.parquet in .*hub"),
        (lambda root: (root / TRAIN_2).rename(root / "train-2.parquet"), r"train-2.parquet is not named like a shard"),
        (lambda root: (root / TRAIN_2).rename(root / "train-00001-of-00003.parquet"), "more than one data set"),
        (truncate, rf"{TRAIN_2} is not a readable Parquet file"),
        (garble, rf"{TRAIN_2} is not a readable Parquet file"),
        (lambda root: (root / TRAIN_2).write_bytes(b""), rf"{TRAIN_2} is not a readable Parquet file"),
        (
            lambda root: pq.write_table(pa.table({"img": [1], "label": [1]}), root / TRAIN_2),
            rf"{TRAIN_2} has no column fine_label, only img, label",
        ),
        (lambda root: write(root / TRAIN_2, [b"x"], [1]), rf"{TRAIN_2}: column img must be a struct .*, got binary"),
        (lambda root: write(root / TRAIN_2, pa.array([], pa.struct({"bytes": pa.binary()})), []), "holds no images"),
        (bad_png(b"not a PNG"), rf"{TRAIN_2}: row 3 is not a readable PNG"),
        (bad_png(b""), rf"{TRAIN_2}: row 3 is not a readable PNG"),
        (bad_png(WHOLE[:1500]), rf"{TRAIN_2}: row 3 is not a readable PNG"),
        (bad_png(png(PIXELS)), rf"{TRAIN_2}: row 3 must be an RGB image of 32x32 pixels, got RGB 32x40"),
        (bad_png(png(PIXELS[:32, :, 0])), rf"{TRAIN_2}: row 3 must be an RGB image of 32x32 pixels, got L 32x32"),
        (bad_png(with_header(9000, 9000)), rf"{TRAIN_2}: row 3 must be an RGB image of 32x32 .*, got RGB 9000x9000"),
        (bad_png(with_header(60000, 60000)), rf"{TRAIN_2}: row 3 is not a readable PNG: Image size \(3600000000"),
        (no_bytes(None), rf"{TRAIN_2}: row 3 holds no image: .* must be in the Parquet file, in img.bytes"),
        (no_bytes("a/3.png"), rf"{TRAIN_2}: row 3 holds no image, only the path 'a/3.png': "),
        (no_image, rf"{TRAIN_2}: row 3 holds no image: "),
        (into_folder, r"0000\.parquet is missing from .*train, which has 0001\.parquet"),
        (two_sets, r"to more than one data set: train-\*\.parquet and train\.parquet"),
        (bad_labels([0, 99, 100]), rf"{TRAIN_2}: fine_label of row 2 must be in 0..99, got 100"),
        (bad_labels([0, -1, 0]), rf"{TRAIN_2}: fine_label of row 1 must be in 0..99, got -1"),
        (bad_labels([0, None, 0]), rf"{TRAIN_2}: column fine_label must hold integers only"),
        (bad_labels([0.5, 1.0]), rf"{TRAIN_2}: column fine_label must hold integers only"),
    ],
)
def test_damaged_parquet_files(
    harm: Callable[[Path], None], message: str, hub_root: tuple[Path, Images], tmp_path: Path
) -> None:
    root = hub_root[0]
    harm(root)
    with pytest.raises(DataError, match=message) as caught:
        module(root).prepare_data()
    assert "\n" not in str(caught.value)
    assert not list(root.glob(".*.npz*.tmp"))
    assert not (root / CACHE).exists()


@pytest.mark.parametrize("size", [1000, 9000, 60_000])
def test_the_declared_size_is_checked_before_the_image_is_decoded(
    size: int, hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, load = [], ImageFile.ImageFile.load

    def recorded(image: ImageFile.ImageFile) -> Any:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", recorded)
    bad_png(with_header(size, size))(hub_root[0])
    with pytest.raises(DataError, match=f"{TRAIN_2}: row 3"):
        module(hub_root[0]).prepare_data()
    assert set(decoded) == {(32, 32)}
