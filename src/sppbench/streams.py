"""What a command finds around it: streams that cannot show every character, and settings of matplotlib."""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def survive_any_text() -> None:
    r"""Makes standard output and error write what their encoding lacks as an escape sequence, such as ``\u2265``.

    Without it a sign such as ≥, or a file's name that is no UTF-8, ends a command with a traceback where the encoding
    is that of an old terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


def need_only_matplotlib() -> None:
    """Lets matplotlib be imported, whatever its user has set up for other programs.

    ``MPLBACKEND`` is not heeded: figures go to files, and a backend that is not there, as a notebook's, ends a command.
    A ``matplotlibrc`` that cannot be read, as one in an old encoding, would end it in the import, which torchmetrics
    does for every run: matplotlib's own is taken instead, and a line says so.

    Call it before matplotlib is imported.
    """
    os.environ["MPLBACKEND"] = "agg"
    if "matplotlib" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds nothing but matplotlib, as usual, and has it loaded by `_MatplotlibLoader`."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "matplotlib":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MatplotlibLoader(spec.loader)
        return spec


class _MatplotlibLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        except (OSError, UnicodeError) as error:
            print(f"sppbench: matplotlib's settings are ignored, because they cannot be read: {error}", file=sys.stderr)
            here = Path.cwd()
            # The first file that matplotlib looks for is that of the current directory. This one holds its defaults.
            os.chdir(Path(str(module.__file__)).with_name("mpl-data"))
            try:
                self._loader.exec_module(module)
            finally:
                os.chdir(here)
