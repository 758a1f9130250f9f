"""CIFAR-100 as Parquet files in the layout of the Hugging Face Hub."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import decode_png
from tqdm import tqdm

from sppbench.data.datamodule import Images
from sppbench.data.errors import DataError

SHAPE = (3, 32, 32)
NUM_CLASSES = 100
CHUNK = 500
_NAME = re.compile(r"(?:train|test)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of "train" and "test", each in order; nothing if there are none at all.

    Raises:
        DataError: only some of the files are there, or one is not named like them.
    """
    shards = {part: sorted(root.glob(f"{part}-*.parquet")) for part in ("train", "test")}
    if not any(shards.values()):
        return {}
    for part, files in shards.items():
        if not files:
            raise DataError(f"no {part}-*.parquet in {root}, though there are other Parquet files of CIFAR-100")
        _check_complete(part, files)
    return shards


def _check_complete(part: str, files: list[Path]) -> None:
    numbers, totals = [], set()
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise DataError(f"{file} is not named like a shard, {part}-00000-of-00001.parquet")
        numbers.append(int(match[1]))
        totals.add(int(match[2]))
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise DataError(f"the {part}-*.parquet files in {files[0].parent} are of more than one set")
    total = totals.pop()
    missing = sorted(set(range(total)) - set(numbers))
    if missing or len(numbers) > total:
        names = ", ".join(f"{part}-{number:05d}-of-{total:05d}.parquet" for number in missing) or "a shard"
        raise DataError(f"{names} missing in {files[0].parent}: {len(numbers)} of {total} files are there")


def read_shards(shards: dict[str, list[Path]]) -> Images:
    """Decode all images; PNG decoding runs in threads, which libpng lets run side by side.

    Raises:
        DataError: a file cannot be read, or does not hold 32x32 RGB PNGs and labels 0..99.
    """
    tables = {part: [(file, _read_table(file)) for file in files] for part, files in shards.items()}
    count = sum(len(table) for part in tables.values() for _, table in part)
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=count, desc="Decoding CIFAR-100", unit="image", disable=None) as bar, ThreadPoolExecutor() as pool:
        images = {}
        for part, files in tables.items():
            chunks = []
            for chunk in pool.map(_decode, *zip(*_chunks(files), strict=True)):
                chunks.append(chunk)
                bar.update(len(chunk))
            images[part] = torch.cat(chunks)
    labels = {part: torch.cat([_labels(file, table) for file, table in files]) for part, files in tables.items()}
    return Images(images["train"], labels["train"], images["test"], labels["test"])


def _read_table(file: Path) -> pa.Table:
    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        if missing := [name for name in ("img", "fine_label") if name not in names]:
            raise DataError(f"{file} has no column {' and no column '.join(missing)}, only {', '.join(names)}")
        table = parquet.read(columns=["img", "fine_label"])
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


def _chunks(files: list[tuple[Path, pa.Table]]) -> Iterator[tuple[Path, int, pa.Table]]:
    for file, table in files:
        for start in range(0, len(table), CHUNK):
            yield file, start, table.slice(start, CHUNK)


def _decode(file: Path, start: int, table: pa.Table) -> Tensor:
    """Decode a chunk, whose first image is row ``start`` of the file, to uint8 ``(n, H, W, C)``."""
    images = torch.empty(len(table), *SHAPE, dtype=torch.uint8)
    for row, img in enumerate(table["img"].to_pylist()):
        try:
            image = decode_png(torch.frombuffer(bytearray(img["bytes"]), dtype=torch.uint8))
        except (RuntimeError, ValueError, TypeError) as error:
            raise DataError(f"{file}: row {start + row} is not a readable PNG: {_first_line(error)}") from error
        if image.shape != SHAPE or image.dtype != torch.uint8:
            found = f"{image.dtype} {tuple(image.shape)}"
            raise DataError(f"{file}: row {start + row} must be an 8-bit image of shape {SHAPE}, got {found}")
        images[row] = image
    return images.permute(0, 2, 3, 1).contiguous()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
