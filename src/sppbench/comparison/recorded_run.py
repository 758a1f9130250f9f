"""The history of a run that is named by its directory, by the history's path, or by what was kept of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sppbench.errors import UserError
from sppbench.spp.history.reader import read_history
from sppbench.spp.history.schema import HistoryError

_EPOCHS = "spp_epochs.parquet"


def read_run(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The history, or the means over epochs of a run that was kept in compact form; and what to know of it.

    Args:
        path: A run directory, which holds ``spp.parquet``; a history; or a Parquet file of its columns.

    Raises:
        UserError: There is no history, or it cannot be read.
    """
    found = _find(path)
    try:
        frame = pd.read_parquet(found) if found.name == _EPOCHS else read_history(found)
    except (HistoryError, OSError, ValueError) as error:
        raise UserError(str(error)) from error
    others = sorted(other.name for other in found.parent.glob("spp-*.parquet")) if found.parent == path else []
    return frame, [f"{path} also holds {', '.join(others)} of another run: not compared"] if others else []


def _find(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"there is no run at {path}")
    if path.is_file() or any(path.glob("steps-*.parquet")):
        return path
    for name in ("spp.parquet", _EPOCHS):
        if (path / name).exists():
            return path / name
    runs = sorted(found.parent for found in path.rglob("spp.parquet"))[:3]
    hint = f"; there are, for example, {', '.join(map(str, runs))}" if runs else ""
    raise UserError(f"{path} holds no history (spp.parquet){hint}")
