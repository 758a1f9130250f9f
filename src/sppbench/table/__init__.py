"""The table of a sweep: accuracies over seeds, beside the published ones, with a verdict for each cell.

It reads what runs left on disk, and nothing else: `python -m sppbench.table outputs/table1`, or `read_table`. Names are
imported when they are first used, so that the command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.table.cells import Cell, Table, read_table
    from sppbench.table.runs import TableError

_HOME = {"Cell": "cells", "Table": "cells", "TableError": "runs", "read_table": "cells"}

__all__ = ["Cell", "Table", "TableError", "read_table"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
