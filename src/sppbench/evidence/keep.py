"""Runs in the form in which they are kept for good: everything but the weights and the steps."""

from __future__ import annotations

from pathlib import Path

from sppbench.evidence.epochs import write_epochs
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.files import write_bytes
from sppbench.spp.history.schema import HistoryError

_FILES = ("config.yaml", "metrics.csv", "inspection.json", "result.json")


def write_compact(run: Run, directory: Path) -> Path:
    """Writes a run in compact form to ``directory/<model>/lr=<lr>/seed=<seed>/``; result.json comes last.

    Returns:
        Its new directory.

    Raises:
        EvidenceError: A history is damaged, or the directory cannot be written to.
    """
    target = directory / run.place
    if target.resolve() == run.path.resolve():
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_epochs(run.path, target)
        for name in _FILES:
            if (run.path / name).exists():
                write_bytes(target / name, (run.path / name).read_bytes())
    except HistoryError as error:
        raise EvidenceError(str(error)) from error
    except OSError as error:
        raise EvidenceError(f"cannot write to {target}: {error.strerror or error}") from error
    return target
