"""What a run recorded and is not there any more, or not whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sppbench.evidence.epochs import BATCHNORM_FILE, SPP_FILE, compare_with_result, says_batchnorm
from sppbench.spp.history.parts import list_parts
from sppbench.spp.history.schema import HistoryError

_BATCH_NORMS = frozenset({"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"})


def has_signals(run: Path) -> bool:
    """Whether a run has a history of signals, full or compact, whole or damaged."""
    return any((run / name).exists() for name in ("spp.parquet", SPP_FILE))


def has_gains(run: Path) -> bool:
    """Whether it has one of the backward gains of its batch normalizations."""
    return any((run / name).exists() for name in ("batchnorm.parquet", BATCHNORM_FILE))


def lost_histories(run: Path, recorded: frozenset[str]) -> list[str]:
    """What is lost of the histories of a run that came to its end, one line each with the file.

    Full histories must be whole and of this run. Gains are missed where the signals beside them say that there were
    some; where these say nothing, as in earlier versions, if they show a batch normalization and the run was to record
    its gains.

    Args:
        run: Its directory.
        recorded: What its configuration asked for: "signals", "gains".
    """
    lines = []
    if "signals" in recorded and not has_signals(run):
        lines.append(f"{run / 'spp.parquet'} is missing, although the run recorded signals")
    for name in ("spp.parquet", "batchnorm.parquet"):
        try:
            if (run / name).exists():
                compare_with_result(run / name)
        except HistoryError as error:
            lines.append(str(error))
    if has_signals(run) and not has_gains(run) and _recorded_gains(run, "gains" in recorded):
        name = "batchnorm.parquet" if (run / "spp.parquet").exists() else BATCHNORM_FILE
        lines.append(f"{run / name} is missing, although the run recorded gains of batch normalizations")
    return lines


def _recorded_gains(run: Path, asked_for: bool) -> bool:
    try:
        says = says_batchnorm(run)
    except HistoryError:  # that is said already
        says = None
    return says or (says is None and asked_for and _shows_batch_norm(run))


def _shows_batch_norm(run: Path) -> bool:
    """Whether there is a batch normalization among the layers whose signals a run recorded."""
    full = run / "spp.parquet"
    try:
        file = list_parts(full)[0].path if full.exists() else run / SPP_FILE
        kinds = pq.read_table(file, columns=["kind"])["kind"].unique().to_pylist()
    except (OSError, pa.ArrowException, IndexError):
        return False
    return not _BATCH_NORMS.isdisjoint(kinds)
