"""What a run recorded and is not there any more is said by its file, in a line of every command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sppbench.__main__ import main
from sppbench.evidence.keep import write_compact
from sppbench.evidence.selection import read_evidence
from tests.fabricate.claims import inspection
from tests.fabricate.histories import ffnn_layers, lose_steps, write_gains, write_signals
from tests.fabricate.runs import write_run


def recorded(directory: Path, says: bool | None, batch_norm: bool = True, spp: str = "every_step") -> Path:
    """A run with signals and gains; its history says whether there are gains, or says nothing, as in old versions."""
    run = write_run(directory / "table1", "ffnn_bn", 0.001, 868, 24.0, overrides=[f"spp={spp}"], curve=[24.0])
    write_signals(run, lambda layer, *_: (1.0, 1.0), ffnn_layers(batch_norm), [0], batchnorm=says)
    write_gains(run, lambda *_: (1.0, 1.0, 1.0), epochs=[0])
    return run


# Of a history that says nothing it is known if it shows a batch normalization and gains were asked for.
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("says", "batch_norm", "spp", "missed"),
    [
        (True, True, "every_step", True),
        (True, False, "none", True),
        (False, True, "every_step", False),
        (None, True, "every_step", True),
        (None, True, "none", False),
        (None, False, "every_step", False),
    ],
)
def test_gains_that_are_gone(
    tmp_path: Path, says: bool | None, batch_norm: bool, spp: str, missed: bool, compact: bool
) -> None:
    run, name = recorded(tmp_path, says, batch_norm, spp), "batchnorm.parquet"
    if compact:  # twice: what the first says, the second says
        for copy in ("one", "two"):
            (found,) = read_evidence(run).runs or read_evidence(tmp_path).runs
            run, name = write_compact(found, tmp_path / copy / "table1"), "batchnorm_epochs.parquet"
            shutil.rmtree(found.path)
    (whole,) = read_evidence(tmp_path).runs
    assert whole.lost == []
    (run / name).unlink() if compact else shutil.rmtree(run / name)
    (lacking,) = read_evidence(tmp_path).runs
    line = f"{run / name} is missing, although the run recorded gains of batch normalizations"
    assert lacking.lost == ([line] if missed else [])


def test_a_gap_in_the_signals_hides_no_loss_of_gains(tmp_path: Path) -> None:
    run = recorded(tmp_path, None)
    write_signals(run, lambda layer, *_: (1.0, 1.0), epochs=range(9))
    lose_steps(run)
    shutil.rmtree(run / "batchnorm.parquet")
    (lacking,) = read_evidence(tmp_path).runs
    assert [line.split(maxsplit=1)[0] for line in lacking.lost] == [
        f"{run}/{kind}.parquet" for kind in ("spp", "batchnorm")
    ]


def test_the_commands_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded(tmp_path, True)
    shutil.rmtree(run / "batchnorm.parquet")
    inspection(run)
    for command, status in (
        (["table", str(tmp_path / "table1"), "--format", "markdown"], 0),
        (["claims", str(tmp_path)], 0),
        (["keep", str(tmp_path / "table1"), "--output", str(tmp_path / "kept")], 1),
    ):
        assert main(command) == status
        said = "".join(capsys.readouterr()).replace("\\", "")  # Markdown escapes
        assert said.count(f"{run / 'batchnorm.parquet'} is missing") == 1, command


def test_keep_says_what_was_not_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded(tmp_path, True)
    arguments = ["keep", str(tmp_path / "table1"), "--output", str(tmp_path / "kept")]
    assert main(arguments) == 0
    assert f"{run} has no inspection.json" in capsys.readouterr().err
    inspection(run)
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
