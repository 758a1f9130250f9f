"""CIFAR-100 as Parquet files in the layout of the Hugging Face Hub."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sppbench.data.datamodule import Images
from sppbench.errors import DataError

SIZE = 32
NUM_CLASSES = 100
_SHARD = re.compile(r"(?:train|test)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
_COLUMNS = ("img", "fine_label")


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of "train" and "test" in a folder, each in order; nothing if there are none at all.

    The Hub and its tools name the files of a part in three ways: ``train-00000-of-00001.parquet`` (a shard),
    ``train.parquet``, and ``train/0000.parquet`` or a shard in ``train/``. Subfolders of other names are not searched.

    Raises:
        DataError: only some of the files are there, there is more than one set of them, or one is not named like them.
    """
    shards = {part: _files_of(part, folder) for part in ("train", "test")}
    if not any(shards.values()):
        return {}
    for part, files in shards.items():
        if not files:
            raise DataError(f"no {part}-*.parquet in {folder}, though there are other Parquet files of CIFAR-100")
    return shards


def is_foreign(folder: Path) -> bool:
    """Whether the Parquet files in a folder are of another data set: the first of them lacks CIFAR-100's columns.

    A damaged file passes, and is reported when it is read.
    """
    for part in ("train", "test"):
        for pattern in _patterns(part):
            for file in sorted(folder.glob(pattern)):
                try:
                    return not set(_COLUMNS) <= set(pq.read_schema(file).names)
                except (pa.ArrowException, OSError):
                    return False
    return False


def _patterns(part: str) -> tuple[str, str, str]:
    return f"{part}-*.parquet", f"{part}.parquet", f"{part}/*.parquet"


def _files_of(part: str, folder: Path) -> list[Path]:
    """Return the files of a part in order, checked to be one complete set; an empty list if there are none."""
    found = {pattern: files for pattern in _patterns(part) if (files := sorted(folder.glob(pattern)))}
    if len(found) > 1:
        raise DataError(
            f"the files of the {part} set in {folder} belong to more than one data set: {' and '.join(found)}"
        )
    for pattern, files in found.items():
        if pattern.startswith(f"{part}/") and all(file.stem.isdigit() for file in files):
            _check_numbers(files)
        elif pattern != f"{part}.parquet":
            _check_shards(part, files)
        return files
    return []


def _check_numbers(files: list[Path]) -> None:
    """Check that ``0000.parquet`` and so on has no gap. Their names do not say how many there should be."""
    for number, file in enumerate(files):
        if int(file.stem) != number:
            raise DataError(f"{number:0{len(file.stem)}d}.parquet is missing from {file.parent}, which has {file.name}")


def _check_shards(part: str, files: list[Path]) -> None:
    numbers, totals = [], set()
    for file in files:
        match = _SHARD.fullmatch(file.name)
        if match is None or not file.name.startswith(f"{part}-"):
            raise DataError(f"{file} is not named like a shard, such as {part}-00000-of-00001.parquet")
        numbers.append(int(match[1]))
        totals.add(int(match[2]))
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise DataError(f"the {part}-*.parquet files in {files[0].parent} belong to more than one data set")
    total = totals.pop()
    missing = sorted(set(range(total)) - set(numbers))
    if missing or len(numbers) > total:
        names = ", ".join(f"{part}-{number:05d}-of-{total:05d}.parquet" for number in missing) or "a shard"
        raise DataError(f"missing from {files[0].parent}: {names}; {len(numbers)} of {total} files are there")


def read_shards(shards: dict[str, list[Path]]) -> Images:
    """Decode all images, in the order of the files.

    One at a time: Pillow holds the interpreter for most of a small image, so threads made it slower, and processes
    would spend on their start what they save.

    Raises:
        DataError: a file cannot be read, or does not hold 32x32 RGB PNGs and labels 0..99.
    """
    tables = {part: [(file, _read_table(file)) for file in files] for part, files in shards.items()}
    labels = {part: torch.cat([_labels(file, table) for file, table in files]) for part, files in tables.items()}
    count = sum(len(part) for part in labels.values())
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=count, desc="Decoding CIFAR-100", unit=" images", disable=None) as bar:
        images = {part: torch.cat([_images(*file, bar.update) for file in files]) for part, files in tables.items()}
    return Images(images["train"], labels["train"], images["test"], labels["test"])


def _read_table(file: Path) -> pa.Table:
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if missing := [name for name in _COLUMNS if name not in names]:
            raise DataError(f"{file} has no column {' and no column '.join(missing)}, only {', '.join(names)}")
        table = parquet.read(columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is not a readable Parquet file, fetch it again: {_first_line(error)}") from error
    kind = table.schema.field("img").type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{file}: column img must be a struct with a field bytes, got {kind}")
    if len(table) == 0:
        raise DataError(f"{file} holds no images")
    return table


def _labels(file: Path, table: pa.Table) -> Tensor:
    column = table["fine_label"]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{file}: column fine_label must hold integers only, got {column.type} with gaps or fractions")
    labels = torch.tensor(column.to_numpy(), dtype=torch.int64)
    wrong = ((labels < 0) | (labels >= NUM_CLASSES)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{file}: fine_label of row {row} must be in 0..{NUM_CLASSES - 1}, got {int(labels[row])}")
    return labels


def _images(file: Path, table: pa.Table, advance: Callable[[], object]) -> Tensor:
    """Decode the images of a file to uint8 ``(N, H, W, C)``, calling ``advance`` after each."""
    images = np.empty((len(table), SIZE, SIZE, 3), dtype=np.uint8)
    for row, img in enumerate(table["img"].to_pylist()):
        images[row] = _pixels(f"{file}: row {row}", img)
        advance()
    return torch.from_numpy(images)


def _pixels(place: str, img: dict[str, Any] | None) -> np.ndarray:
    """Decode a row's image to uint8 ``(H, W, C)``; what its header says is checked before its pixels are decoded."""
    if img is None or img["bytes"] is None:
        where = f", only the path {img['path']!r}" if img and img.get("path") else ""
        raise DataError(f"{place} holds no image{where}: CIFAR-100's images must be in the Parquet file, in img.bytes")
    try:
        image = Image.open(io.BytesIO(img["bytes"]), formats=["PNG"])  # reads the header alone
        if image.mode != "RGB" or image.size != (SIZE, SIZE):
            found = f"{image.mode} {image.width}x{image.height}"
            raise DataError(f"{place} must be an RGB image of {SIZE}x{SIZE} pixels, got {found}")
        image.load()
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds, SyntaxError among them
        raise DataError(f"{place} is not a readable PNG: {_first_line(error)}") from error
    return np.asarray(image)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
