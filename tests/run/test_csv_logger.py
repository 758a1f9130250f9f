from __future__ import annotations

from pathlib import Path

import pytest

from sppbench.run.csv_logger import CSVLogger


def test_one_row_an_epoch_and_values_of_single_steps_are_left_out(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"epoch": 0, "train/loss_step": 3.0}, step=0)
    logger.log_metrics({"epoch": 0, "train/loss": 2.5}, step=1)
    logger.log_metrics({"epoch": 0, "val/loss": 2.0}, step=1)
    logger.log_metrics({"epoch": 1, "train/loss": 1.5}, step=3)
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,train/loss,val/loss\n0,1,2.5,2.0\n1,3,1.5,\n"


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    CSVLogger("~/metrics.csv").log_metrics({"epoch": 0, "train/loss": 2.5}, step=1)
    assert (tmp_path / "metrics.csv").exists()


def test_a_resumed_logger_continues_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,1,2.5\n1,3,1.5\n2,5,1.25\n")  # stopped before the checkpoint of epoch 2
    logger = CSVLogger(path)
    logger.resume(4, epochs=2)
    logger.log_metrics({"epoch": 2, "train/loss": 1.0}, step=5)
    assert path.read_text() == "epoch,step,train/loss\n0,1,2.5\n1,3,1.5\n2,5,1.0\n"


def test_a_new_logger_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,1,2.5\n")
    CSVLogger(path).log_metrics({"epoch": 0, "train/loss": 1.0}, step=1)
    assert path.read_text() == "epoch,step,train/loss\n0,1,1.0\n"


@pytest.mark.parametrize("content", ["", "garbage", "epoch,step\n0,one\n"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content + "\nx,y")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        CSVLogger(path).resume(4, epochs=2)


def test_a_missing_file_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CSVLogger(tmp_path / "metrics.csv").resume(4, epochs=2)
    assert "is gone" in caplog.text
