"""All that stored runs tell, on one HTML page that needs no network: `python -m sppbench.report DIR`.

Names are imported when they are first used, so that the command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.report.content import Content, gather
    from sppbench.report.page import render

_HOME = {"Content": "content", "gather": "content", "render": "page"}

__all__ = ["Content", "gather", "render"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
