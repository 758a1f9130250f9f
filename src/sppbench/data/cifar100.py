"""CIFAR-100 from Parquet files, from torchvision's archive, or downloaded."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from sppbench.data import cache
from sppbench.data.datamodule import ImageDataModule, Images
from sppbench.data.hub import find_shards, is_foreign, read_shards
from sppbench.errors import DataError

log = logging.getLogger(__name__)

MEAN = (0.5070752, 0.4865489, 0.4409178)
STD = (0.2673343, 0.2564385, 0.2761505)


class CIFAR100(ImageDataModule):
    """CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 100 classes, 32x32 RGB.

    Read from what ``root`` or a folder directly below it holds: Parquet files as the Hugging Face Hub names them
    (``train-00000-of-00001.parquet``, ``train.parquet`` or ``train/0000.parquet``), else torchvision's
    ``cifar-100-python.tar.gz`` or the folder unpacked from it. The images are decoded once and kept in a file in
    ``root``, or in the user's cache directory where ``root`` is read-only.

    Args:
        root: the folder with the data; ``~`` is the user's home.
        download: whether to fetch the archive into ``root`` where it holds none of these.
        options: the other arguments of :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> data = CIFAR100("~/data/cifar100", batch_size=512, seed=868)
        >>> data.prepare_data(); data.setup()  # doctest: +SKIP
        >>> images, labels = next(iter(data.train_dataloader()))  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path,
        download: bool = True,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
        image_size: int = 32,
        mean: float | Sequence[float] = MEAN,
        std: float | Sequence[float] = STD,
        val_size: int = 10_000,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            mean=mean,
            std=std,
            val_size=val_size,
            **options,
        )
        self.root = Path(root).expanduser()
        self.download = download

    def load(self) -> Images:
        """Return the images, from their cache if they were decoded before.

        Raises:
            DataError: the data is missing or damaged, or could not be downloaded.
        """
        source = _find(self.root)
        if source is None:
            if not self.download:
                raise _nothing_found(self.root, "data.download is false")
            _fetch(self.root)
            source = _find(self.root)
            assert source is not None
        try:
            return cache.load_or_build(cache.location(self.root, "cifar100"), source.files, source.read)
        except OSError as error:
            raise DataError(f"cannot read CIFAR-100 in {self.root}: {error}") from error


class _Source(NamedTuple):
    files: list[Path]
    read: Callable[[], Images]


def _find(root: Path) -> _Source | None:
    """The first source in ``root``, else in the one folder directly below it that has one.

    ``huggingface-cli download`` and ``git clone`` keep the folders of a Hub repository, such as ``cifar100/``.

    Raises:
        DataError: a source is incomplete, or several folders have one.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"data.root must be a folder, but {root} is a file")
    if not root.exists():
        return None
    if source := _find_in(root):
        return source
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    found = {folder: source for folder in folders if (source := _find_in(folder, below=True))}
    if len(found) > 1:
        raise DataError(
            f"CIFAR-100 is in more than one folder: choose one with data.root: {', '.join(map(str, found))}"
        )
    return next(iter(found.values()), None)


def _find_in(folder: Path, below: bool = False) -> _Source | None:
    """The source in a folder itself; ``below`` the root, Parquet files of other data sets are passed over."""
    if below and is_foreign(folder):
        return None
    if shards := find_shards(folder):
        return _Source([file for files in shards.values() for file in files], lambda: read_shards(shards))
    archive, unpacked = folder / datasets.CIFAR100.filename, folder / datasets.CIFAR100.base_folder
    if archive.is_file():
        return _Source([archive], lambda: _read_archive(archive))
    if unpacked.is_dir():
        return _Source(sorted(unpacked.iterdir()), lambda: _read_folder(unpacked))
    return None


def _read_archive(archive: Path) -> Images:
    if not check_integrity(str(archive), datasets.CIFAR100.tgz_md5):
        raise DataError(f"{archive} is damaged or incomplete (wrong MD5): remove it or fetch it again")
    with tempfile.TemporaryDirectory() as place:
        extract_archive(str(archive), place)
        return _read_folder(Path(place) / datasets.CIFAR100.base_folder)


def _read_folder(folder: Path) -> Images:
    try:
        train, test = (datasets.CIFAR100(folder.parent, train=train, download=False) for train in (True, False))
    except RuntimeError as error:
        raise DataError(f"{folder} is damaged or incomplete (wrong MD5): remove it or unpack it again") from error
    return Images(
        torch.from_numpy(train.data),
        torch.tensor(train.targets),
        torch.from_numpy(test.data),
        torch.tensor(test.targets),
    )


def _fetch(root: Path) -> None:
    """Download the archive into ``root``, whole or not at all; one process does, others wait."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    existing = missing[-1].parent if missing else root
    if not cache.writable(existing):
        raise _nothing_found(root, f"{existing} is read-only, so it cannot be downloaded")
    root.mkdir(parents=True, exist_ok=True)
    lock = cache.lock(cache.location(root, "cifar100"))
    # A fixed name: what a killed process has left is removed by the next one.
    place = root / ".download"
    try:
        with lock:
            if _find(root) is None:
                shutil.rmtree(place, ignore_errors=True)
                log.info("downloading CIFAR-100 to %s", root)
                name = datasets.CIFAR100.filename
                download_url(datasets.CIFAR100.url, str(place), name, datasets.CIFAR100.tgz_md5)
                (place / name).replace(root / name)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(place, ignore_errors=True)
        if missing:
            Path(lock.lock_file).unlink(missing_ok=True)
            _remove_empty(missing)
        raise _nothing_found(root, f"the download failed: {error}") from error
    shutil.rmtree(place, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty: somebody else has put something there
            return


def _nothing_found(root: Path, reason: str) -> DataError:
    return DataError(
        f"no CIFAR-100 in {root}, and {reason}. What you can do:\n"
        "- put its Parquet files in Hub layout (train-*.parquet, test-*.parquet) in data.root;\n"
        f"- put torchvision's {datasets.CIFAR100.filename} in data.root;\n"
        "- or use data=digits, which needs no download."
    )
