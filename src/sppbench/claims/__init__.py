"""The study's claims, each with a verdict from what runs left on disk: `python -m sppbench.claims DIR`, or
`sppbench.claims.judge.judge`.

Names are imported when they are first used, so that the command answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.claims.claim import Claim, Part

# `judge` is in the module of its name, which would hide it here.
_HOME = {"Claim": "claim", "Part": "claim"}

__all__ = ["Claim", "Part"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
