"""The study's figures and the ones that it lacks, from what runs recorded: `python -m sppbench.figures DIR`.

Names are imported when they are first used, so that the command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.figures.all import draw_figures
    from sppbench.figures.drawing import Drawing, Match, Panel

_HOME = {"Drawing": "drawing", "Match": "drawing", "Panel": "drawing", "draw_figures": "all"}

__all__ = ["Drawing", "Match", "Panel", "draw_figures"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
