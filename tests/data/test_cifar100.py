"""CIFAR-100 on fabricated files: where it is found, and its download."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision import datasets

from sppbench.data import CIFAR100, DataError, Images, cifar100
from tests.fabricate.cifar100 import CACHE, module, same


def test_parquet_files(hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    data = module(root)
    data.prepare_data()
    data.setup()
    assert same(data.load(), expected)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 16


def test_other_data_sets_below_the_root_are_passed_over(hub_root: tuple[Path, Images]) -> None:
    root, expected = hub_root
    below = root.parent
    (below / "cifar10").mkdir()
    pq.write_table(pa.table({"img": [1], "label": [1]}), below / "cifar10" / "train.parquet")
    assert same(module(below).load(), expected)


def test_two_folders_below_the_root_are_ambiguous(hub_root: tuple[Path, Images]) -> None:
    root = hub_root[0]
    shutil.copytree(root, root.parent / "copy")
    with pytest.raises(DataError, match=r"in more than one folder: choose one with data\.root: .*copy, .*hub"):
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


def test_source_that_may_not_be_read(hub_root: tuple[Path, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> Images:
        raise PermissionError(13, "Permission denied", "train")

    monkeypatch.setattr(cifar100, "read_shards", refuse)
    with pytest.raises(DataError, match=r"cannot read CIFAR-100 in .*hub: .*Permission denied: 'train'"):
        module(hub_root[0]).prepare_data()


def test_validation_larger_than_the_data(hub_root: tuple[Path, Images]) -> None:
    with pytest.raises(DataError, match=r"data\.val_size=20 leaves none of the 20 training images"):
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
