"""Damages a file of a run as crashes, full disks, editors and other programs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

KINDS = ("truncated", "emptied", "junk", "BOM", "wrong types", "deleted")


def damage(file: Path, kind: str, random: Random) -> None:
    """Damages a file in one of ``KINDS``."""
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: random.randrange(len(content)) if content else 0])
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "junk":
        file.write_bytes(random.randbytes(max(len(content), 16)))
    elif kind == "BOM":
        file.write_bytes(b"\xef\xbb\xbf" + content)
    elif kind == "deleted":
        file.unlink()
    else:
        _WRONG.get(file.suffix, _wrong_text)(file, random)


def _wrong_value(value: Any, random: Random) -> Any:
    """A value of another type."""
    others: list[Any] = ["x", 3, None, [], {"a": 1}, 2**70, True]
    return random.choice([other for other in others if type(other) is not type(value) or other == 2**70])


def _wrong_tree(tree: Any, random: Random) -> Any:
    """The same tree with one value somewhere in it, or the tree itself, of another type."""
    if isinstance(tree, dict) and tree and random.random() < 0.9:
        key = random.choice(list(tree))
        return tree | {key: _wrong_tree(tree[key], random)}
    return _wrong_value(tree, random)


def _wrong_json(file: Path, random: Random) -> None:
    file.write_text(json.dumps(_wrong_tree(json.loads(file.read_text()), random)))


def _wrong_yaml(file: Path, random: Random) -> None:
    import yaml

    file.write_text(yaml.safe_dump(_wrong_tree(yaml.safe_load(file.read_text()), random)))


def _wrong_csv(file: Path, random: Random) -> None:
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    row = random.choice(rows)
    row[random.choice([place for place, cell in enumerate(row) if cell])] = "x"
    file.write_text("".join(f"{','.join(line)}\n" for line in (header, *rows)))


def _wrong_parquet(file: Path, random: Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    column = random.randrange(table.num_columns)
    text = pa.array(["x"] * table.num_rows)
    pq.write_table(table.set_column(column, table.column_names[column], text), file)


def _wrong_checkpoint(file: Path, random: Random) -> None:
    import torch

    content = torch.load(file, weights_only=True)
    torch.save(random.choice([["x"], content | {"global_step": "x"}, content | {"state_dict": []}, {}]), file)


def _wrong_text(file: Path, random: Random) -> None:
    """As a file without a suffix is read: as JSON if it is JSON, else as a line of text."""
    try:
        _wrong_json(file, random)
    except ValueError:
        file.write_text(random.choice(["", "2\n3\n", "../x", "\0"]))


_WRONG: dict[str, Callable[[Path, Random], None]] = {
    ".json": _wrong_json,
    ".yaml": _wrong_yaml,
    ".csv": _wrong_csv,
    ".parquet": _wrong_parquet,
    ".ckpt": _wrong_checkpoint,
}
