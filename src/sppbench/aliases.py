"""Old names of modules, which configurations of stored runs and `conf/` refer to as ``_target_``.

They are kept importable, and nothing else uses them: ``sppbench.loggers.CSVLogger`` is
``sppbench.run.csv_logger.CSVLogger``. Each is looked up when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

MOVED = {
    "sppbench.loggers": "sppbench.run.csv_logger",
    "sppbench.sync_batchnorm": "sppbench.run.sync_batchnorm",
}


class _Moved(ModuleType):
    """Stands for a module that has moved."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(MOVED[self.__name__]), name)


def install() -> None:
    """Makes the old names importable."""
    for name in MOVED:
        sys.modules.setdefault(name, _Moved(name))
