"""A full history is believed only if it reaches the end of its run, has no gap and is of the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest

from sppbench.evidence.epochs import batchnorm_epochs, spp_epochs, write_epochs
from sppbench.evidence.runs import EvidenceError
from sppbench.evidence.selection import read_evidence
from sppbench.run.results import read_result
from sppbench.spp.history import writer
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter
from tests.fabricate.histories import write_gains, write_signals
from tests.fabricate.runs import write_run

STEPS, PER_PART = 12, 4


def whole_run(directory: Path, every: int = 1, config_hash: str | None = None, status: str = "completed") -> Path:
    """A run of 12 steps, of 4 in each part, whose values differ from step to step."""
    run = write_run(directory, "ffnn_bn", 0.001, 868, 20.0, status, steps=STEPS)
    write_signals(directory / "all", lambda layer, depth, epoch, signal: (1.0 + depth, 2.0), [("a", "Linear")])
    write_gains(directory / "all", lambda layer, depth, epoch: (2.0, 1.0, 1.0), ["a"], [0])
    signals = pd.read_parquet(directory / "all" / "spp.parquet").query("step == 0")
    gains = pd.read_parquet(directory / "all" / "batchnorm.parquet")
    with mock.patch.object(writer, "_FULL", 0):
        for kind, name, frame in ((HistoryWriter, "spp", signals), (BatchNormWriter, "batchnorm", gains)):
            history = kind(run / f"{name}.parquet", every_n_steps=every, config_hash=config_hash)
            for first in range(0, STEPS, PER_PART):
                steps = [step for step in range(first, first + PER_PART) if step % every == 0]
                rows = [frame.assign(step=step, epoch=step // 6, samples=8) for step in steps]
                history.append(pd.concat(rows))
    return run


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {"spp": spp_epochs, "batchnorm": batchnorm_epochs}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("status", ["completed", "diverged"])
@pytest.mark.parametrize(("gone", "steps"), [(0, "0 to 3"), (1, "4 to 7"), (2, "8 to 11")])
def test_a_part_that_is_gone(tmp_path: Path, name: str, status: str, gone: int, steps: str) -> None:
    run = whole_run(tmp_path / "runs", status=status)
    assert set(READERS[name](run)["epoch"]) == {0, 1}
    sorted((run / f"{name}.parquet").iterdir())[gone].unlink()
    with pytest.raises(HistoryError, match=f"{name}.parquet lacks the steps {steps}"):
        READERS[name](run)
    with pytest.raises(HistoryError, match=f"lacks the steps {steps}"):
        write_epochs(run, tmp_path)
    (recorded,) = read_evidence(tmp_path / "runs").select("ffnn_bn")
    with pytest.raises(EvidenceError, match=f"lacks the steps {steps}"):
        _ = recorded.signals() if name == "spp" else recorded.gains


@pytest.mark.parametrize("every", [1, 3, 4])
def test_what_is_not_recorded_is_not_missing(tmp_path: Path, every: int) -> None:
    """Of 12 steps, each third: the last one is step 9, and each fourth: step 8."""
    run = whole_run(tmp_path, every)
    assert spp_epochs(run).query("batches == 'all'").groupby("epoch")["steps"].max().sum() == len(range(0, 12, every))
    result = read_result(run / "result.json")
    write_run(tmp_path, "ffnn_bn", 0.001, 868, 20.0, steps=13)
    with pytest.raises(HistoryError, match=r"lacks the steps 12 to 12, the last ones of its run"):
        spp_epochs(run)
    result.write(run / "result.json")
    assert len(spp_epochs(run))


def test_a_run_that_did_not_come_to_its_end_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    run = whole_run(tmp_path, status="interrupted")
    sorted((run / "spp.parquet").iterdir())[2].unlink()
    assert spp_epochs(run)["step"].max() == 7
    (run / "result.json").unlink()
    assert spp_epochs(run)["step"].max() == 7


def test_the_history_of_another_configuration(tmp_path: Path) -> None:
    run = whole_run(tmp_path, config_hash="0123456789ab")
    write_run(tmp_path, "ffnn_bn", 0.001, 868, 20.0, steps=STEPS, config_hash="0123456789ab")
    assert len(spp_epochs(run))
    write_run(tmp_path, "ffnn_bn", 0.001, 868, 20.0, steps=STEPS, config_hash="ba9876543210")
    for read in READERS.values():
        with pytest.raises(
            HistoryError, match="belongs to configuration 0123456789ab, and the result beside it to ba98"
        ):
            read(run)
