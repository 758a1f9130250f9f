"""What stored runs tell, whichever sweep they are from: the ground of the figures, the claims and the report.

It reads files only, either the full histories of runs or their compact form (see `sppbench.evidence.epochs`), and gives
the same numbers for both. Names are imported when they are first used, so that commands answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.evidence.compact import write_compact
    from sppbench.evidence.runs import Evidence, EvidenceError, Recorded, read_evidence

_HOME = {
    "Evidence": "runs",
    "EvidenceError": "runs",
    "Recorded": "runs",
    "read_evidence": "runs",
    "write_compact": "compact",
}

__all__ = ["Evidence", "EvidenceError", "Recorded", "read_evidence", "write_compact"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
