"""Where a layer is in a net of repeated blocks: the number of its block, and its role, which it has in each of them.

Both follow from the layer's name and the names of the blocks (see `sppbench.spp.probe.blocks`): with the blocks
``layers.0`` and ``layers.1`` the layer ``layers.1.attention.query`` is in block 1 and has the role ``attention.query``.
The role of a block itself is ``.``; a layer outside all blocks has the block -1 and its own name as its role.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_ITSELF = "."


def place_of(layer: str, blocks: Mapping[str, int]) -> tuple[int, str]:
    """The block and the role of a layer.

    Args:
        layer: Its name, as in a frame of signals: the second call of ``layers.1.act`` is ``layers.1.act#2``.
        blocks: Name of a block → its number.

    Example:
        >>> place_of("layers.1.act#2", {"layers.0": 0, "layers.1": 1})
        (1, 'act#2')
    """
    module, mark, call = layer.partition("#")
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        number = blocks.get(".".join(parts[:length]))
        if number is not None:
            return number, (".".join(parts[length:]) or _ITSELF) + mark + call
    return -1, layer


def with_places(frame: pd.DataFrame, blocks: Mapping[str, int]) -> pd.DataFrame:
    """The frame with two more columns, ``block`` and ``role``."""
    codes, layers = frame["layer"].factorize()
    places = [place_of(layer, blocks) for layer in layers]
    numbers = np.array([number for number, _ in places], dtype=np.int64)
    roles = np.array([role for _, role in places], dtype=object)
    return frame.assign(block=numbers[codes], role=roles[codes]).astype({"role": frame["layer"].dtype})


def blocks_in(frame: pd.DataFrame) -> dict[str, int]:
    """The names of blocks and their numbers, as far as they follow from a frame with the two columns."""
    rows = frame.loc[~frame["layer"].duplicated(), ["layer", "block", "role"]]
    return {
        (layer if role.partition("#")[0] == _ITSELF else layer[: -len(role) - 1]).partition("#")[0]: int(block)
        for layer, block, role in zip(rows["layer"], rows["block"], rows["role"], strict=True)
        if block >= 0
    }
