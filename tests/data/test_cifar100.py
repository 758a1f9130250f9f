"""CIFAR-100 on fabricated files: sources, cache, download, and what goes wrong with each."""

import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import datasets

from sppbench.data import CIFAR100, DataError, Images, cache, cifar100, hub

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


def module(root: Path, **options: Any) -> CIFAR100:
    return CIFAR100(root, val_size=4, batch_size=8, **options)


def same(a: Images, b: Images) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Images:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cifar100, "read_shards", refuse)


# --- sources


def test_parquet_files(hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    data = module(root)
    data.prepare_data()
    data.setup()
    assert same(data.load(), expected)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 16


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


def test_other_data_sets_below_the_root_are_passed_over(hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    below = root.parent
    (below / "cifar10").mkdir()
    pq.write_table(pa.table({"img": [1], "label": [1]}), below / "cifar10" / "train.parquet")
    assert same(module(below).load(), expected)


def test_two_folders_below_the_root_are_ambiguous(hub_root: tuple[Path, Images]) -> None:
    root = hub_root[0]
    shutil.copytree(root, root.parent / "copy")
    with pytest.raises(DataError, match=r"in more than one folder: say by data\.root which of .*copy, .*hub"):
        module(root.parent).prepare_data()


def test_data_two_levels_down_is_not_searched_for(hub_root: tuple[Path, Images]) -> None:
    root = hub_root[0]
    (root.parent / "deep").mkdir()
    root.rename(root.parent / "deep" / "hub")
    with pytest.raises(DataError, match="no CIFAR-100 in"):
        module(root.parent, download=False).prepare_data()


def test_home_in_the_root_is_expanded(hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(hub_root[0].parent))
    data = CIFAR100("~/hub", val_size=4)
    assert data.root == hub_root[0]
    assert same(data.load(), hub_root[1])


def test_archive(archive: tuple[Path, Images], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive[0].rename(root / archive[0].name)
    assert same(module(root, download=False).load(), archive[1])
    assert sorted(file.name for file in root.iterdir()) == [archive[0].name, CACHE, f"{CACHE}.lock"]


def test_extracted_folder(archive: tuple[Path, Images]) -> None:
    path, expected = archive
    path.unlink()
    assert same(module(path.parent, download=False).load(), expected)


def test_parquet_files_come_first(hub_root: tuple[Path, Images], archive: tuple[Path, Images]) -> None:
    archive[0].rename(hub_root[0] / archive[0].name)
    assert same(module(hub_root[0]).load(), hub_root[1])


# --- what is wrong with the sources


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
        (lambda root: (root / TRAIN_2).unlink(), rf"{TRAIN_2} missing in .*hub: 1 of 2 files are there"),
        (lambda root: (root / "test-00000-of-00001.parquet").unlink(), r"no test-\*\.parquet in .*hub"),
        (lambda root: [file.unlink() for file in root.glob("train*")], r"no train-\*\.parquet in .*hub"),
        (lambda root: (root / TRAIN_2).rename(root / "train-2.parquet"), r"train-2.parquet is not named like a shard"),
        (lambda root: (root / TRAIN_2).rename(root / "train-00001-of-00003.parquet"), "more than one set"),
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
        (into_folder, r"0000\.parquet missing in .*train, which has 0001\.parquet"),
        (two_sets, r"of more than one set: train-\*\.parquet and train\.parquet"),
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


def test_source_that_may_not_be_read(hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Images:
        raise PermissionError(13, "Permission denied", "train")

    monkeypatch.setattr(cifar100, "read_shards", refuse)
    with pytest.raises(DataError, match=r"cannot read CIFAR-100 in .*hub: .*Permission denied: 'train'"):
        module(hub_root[0]).prepare_data()


def test_validation_larger_than_the_data(hub_root: tuple[Path, Images]) -> None:
    with pytest.raises(DataError, match=r"data\.val_size=20 leaves none of 20 training images"):
        CIFAR100(hub_root[0], val_size=20).setup()


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(DataError, match=r"data\.root must be a folder, but .*root is a file"):
        module(tmp_path / "root").prepare_data()


def test_archive_with_a_wrong_checksum_is_left_alone(archive: tuple[Path, Images], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    damaged = root / archive[0].name
    damaged.write_bytes(archive[0].read_bytes()[:-10])
    before = damaged.read_bytes()
    with pytest.raises(DataError, match=r"cifar-100-python.tar.gz is damaged or incomplete \(wrong MD5\)"):
        module(root).prepare_data()
    assert damaged.read_bytes() == before


@pytest.mark.parametrize("name", ["train", "test"])
def test_damaged_folder(name: str, archive: tuple[Path, Images]) -> None:
    archive[0].unlink()
    (archive[0].parent / "cifar-100-python" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cifar-100-python is damaged or incomplete \(wrong MD5\)"):
        module(archive[0].parent).prepare_data()


# --- cache


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
    script = (
        "import os, pathlib\n"
        "from sppbench.data import CIFAR100\n"
        "pathlib.Path.replace = lambda *_: os._exit(9)\n"
        f"CIFAR100({str(root)!r}, val_size=4).prepare_data()"
    )
    path = os.pathsep.join(sys.path)
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, check=False)
    assert killed.returncode == 9
    assert (root / f".{CACHE}.tmp").exists()
    assert not (root / CACHE).exists()
    assert same(module(root).load(), expected)
    assert not (root / f".{CACHE}.tmp").exists()


# --- download


def test_download(archive: tuple[Path, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, expected = archive
    calls = []

    def download(url: str, place: str, name: str, md5: str) -> None:
        calls.append((url, md5))
        Path(place).mkdir()
        (Path(place) / name).write_bytes(path.read_bytes())

    monkeypatch.setattr(cifar100, "download_url", download)
    root = tmp_path / "new" / "root"
    with ThreadPoolExecutor(3) as pool:
        assert all(same(images, expected) for images in pool.map(lambda _: module(root).load(), range(3)))
    assert calls == [(datasets.CIFAR100.url, datasets.CIFAR100.tgz_md5)]
    assert sorted(file.name for file in root.iterdir()) == [path.name, CACHE, f"{CACHE}.lock"]


def three_ways_out(message: str) -> bool:
    lines = message.splitlines()
    return len(lines) == 4 and all(
        re.search(word, line) for word, line in zip(["Parquet", "tar.gz", "data=digits"], lines[1:], strict=True)
    )


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("error", [URLError("offline"), RuntimeError("File not found or corrupted.")])
def test_failed_download_leaves_nothing(
    error: Exception, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, place: str, name: str, md5: str) -> None:
        Path(place).mkdir()
        (Path(place) / name).write_bytes(b"half")
        raise error

    monkeypatch.setattr(cifar100, "download_url", fail)
    root = tmp_path / "new" / "root"
    if exists:
        root.mkdir(parents=True)
        (root / "mine").write_text("kept")
    with pytest.raises(DataError) as caught:
        module(root).prepare_data()
    assert three_ways_out(str(caught.value))
    assert str(root) in str(caught.value)
    if exists:
        assert [file.name for file in root.iterdir() if file.suffix != ".lock"] == ["mine"]
    else:
        assert not (tmp_path / "new").exists()


def test_no_data_and_no_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.download is false") as caught:
        module(tmp_path / "root", download=False).prepare_data()
    assert three_ways_out(str(caught.value))
    assert not (tmp_path / "root").exists()


def test_read_only_place_is_not_downloaded_to(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o555)
    with pytest.raises(DataError, match="shared is read-only") as caught:
        module(tmp_path / "shared" / "root").prepare_data()
    assert three_ways_out(str(caught.value))
    assert not list((tmp_path / "shared").iterdir())
