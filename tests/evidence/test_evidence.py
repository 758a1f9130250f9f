"""Runs are found, chosen and averaged; the full and the compact form tell the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sppbench.__main__ import main
from sppbench.evidence.keep import write_compact
from sppbench.evidence.runs import EvidenceError
from sppbench.evidence.selection import read_evidence
from sppbench.spp.history.writer import BatchNormWriter
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.common.published import read_published
from tests.fabricate.histories import STEPS, ffnn_layers, write_gains, write_signals
from tests.fabricate.runs import write_run


def _values(layer: str, depth: int, epoch: int, signal: str) -> tuple[float, float]:
    return depth + 0.25, epoch + 0.5


def test_means_over_all_batches_and_over_full_ones(tmp_path: Path) -> None:
    path = write_run(tmp_path / "figures", "ffnn_bn", 0.001, 868, 24.0)
    # Twice as large in the partial batch: the mean over all three steps is 4/3 of that over the full ones.
    write_signals(path, _values, batches=(512, 512, 64), scales=(1, 1, 2))
    (run,) = read_evidence(tmp_path).select("ffnn_bn", 0.001)
    every, full = run.signals("all"), run.signals("full")
    assert len(every) == len(full) == 3 * (2 * 29 + 9 + 10)
    assert (every["steps"] == 3).all()
    assert (full["steps"] == 2).all()
    np.testing.assert_allclose(full["acsm"], full["depth"] + 0.25, rtol=1e-6)
    np.testing.assert_allclose(full["acv"], full["epoch"] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(every["second_moment"], 4 / 3 * full["second_moment"], rtol=1e-6)


def test_gains_are_averaged_so_that_the_factors_multiply(tmp_path: Path) -> None:
    path = write_run(tmp_path / "figures", "ffnn_bn", 0.001, 868, 24.0)
    steps = pd.DataFrame(
        {
            "step": [0, 1, 2, 3],
            "epoch": [0, 0, 0, 1],
            "depth": 0,
            "layer": "block0.norm",
            "gain": [2.0, 8.0, np.nan, 0.0],
            "gamma_squared": [4.0, 4.0, 4.0, 1.0],
            "inverse_variance": [1.0, 4.0, 4.0, 1.0],
            "projection": [0.5, 0.51, 0.5, 0.0],
        }
    )
    BatchNormWriter(path / "batchnorm.parquet").append(steps, end=STEPS)
    (run,) = read_evidence(tmp_path).select("ffnn_bn")
    first, second = run.gains.itertuples()
    assert (first.steps, second.steps) == (2, 0)
    assert first.gain == pytest.approx(4.0)
    assert first.inverse_variance == pytest.approx(2.0)
    assert first.closure == pytest.approx(0.02)  # 4 · 4 · 0.51 / 8 − 1
    assert np.isnan(second.gain)


def test_the_compact_form_tells_the_same_bit_for_bit(tmp_path: Path) -> None:
    path = write_run(tmp_path / "figures", "ffnn_bn", 0.001, 868, 24.0, curve=[10.0, 20.0])
    write_signals(path, lambda layer, depth, epoch, signal: (np.pi * depth, np.e / (1 + epoch)), batches=(3, 3, 1))
    write_gains(path, lambda layer, depth, epoch: (1.1, 1 / 3, 0.99))
    (path / "inspection.json").write_text('{"moved": {}}')
    (full,) = read_evidence(tmp_path / "figures").select("ffnn_bn")
    write_compact(full, tmp_path / "results")
    (compact,) = read_evidence(tmp_path / "results").select("ffnn_bn")
    kept = {"config.yaml", "metrics.csv", "inspection.json", "result.json"}
    assert {file.name for file in compact.path.iterdir()} == kept | {"spp_epochs.parquet", "batchnorm_epochs.parquet"}
    for batches in ("all", "full"):
        ours, theirs = full.signals(batches), compact.signals(batches)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    pd.testing.assert_frame_equal(full.gains, compact.gains, check_exact=True)
    assert dataclasses.replace(full, path=compact.path, sweep=compact.sweep) == compact
    # Compacted again, also in place, nothing changes.
    before = {file: file.read_bytes() for file in compact.path.iterdir()}
    write_compact(compact, tmp_path / "results")
    write_compact(compact, tmp_path / "again")
    again = tmp_path / "again" / full.place
    assert {file.name: content for file, content in before.items()} == {f.name: f.read_bytes() for f in again.iterdir()}


def test_a_run_is_chosen_once_and_the_one_with_signals_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "ffnn", 0.001, 868, 20.0)
    write_signals(write_run(tmp_path / "b", "ffnn", 0.001, 868, 21.0), _values, ffnn_layers(batch_norm=False))
    write_run(tmp_path / "b", "ffnn", 0.001, 67, 22.0)
    write_run(tmp_path / "b", "ffnn", 0.01, 67, 23.0)
    write_run(tmp_path / "b", "ffnn", 0.001, 472, status=None)  # under way
    evidence = read_evidence(tmp_path)
    assert len(evidence.runs) == 5
    assert [run.accuracy for run in evidence.select("ffnn")] == [22.0, 21.0, 23.0]
    assert [run.seed for run in evidence.select("ffnn", 0.001)] == [67, 868]
    assert [run.seed for run in evidence.select("ffnn", signals=True)] == [868]
    assert [run.lr for run in evidence.select("ffnn", seeds=[67])] == [0.001, 0.01]
    assert {run.sweep for run in evidence.runs} == {"a", "b"}
    # Of two without signals the one that was inspected.
    inspected = write_run(tmp_path / "c", "ffnn", 0.01, 67, 24.0)
    (inspected / "inspection.json").write_text("{}")
    assert [run.sweep for run in read_evidence(tmp_path).select("ffnn", 0.01)] == ["c"]
    (write_run(tmp_path / "c", "ffnn", 0.001, 868, 25.0) / "inspection.json").write_text("{}")
    assert [run.sweep for run in read_evidence(tmp_path).select("ffnn", 0.001, [868])] == ["b"]
    # A sweep alone is named like itself, however it is reached.
    assert {run.sweep for run in read_evidence(tmp_path / "b" / "ffnn" / "..").runs} == {"b"}


def test_a_run_of_table_1_counts_and_another_ones_signals_are_used(tmp_path: Path) -> None:
    other = write_run(tmp_path / "figures", "ffnn", 0.001, 868, 20.0)
    write_signals(other, _values, ffnn_layers(batch_norm=False))
    (other / "inspection.json").write_text("{}")
    write_run(tmp_path / "table1", "ffnn", 0.001, 868, 21.0)
    write_run(tmp_path / "zoo", "ffnn", 0.001, 868, 22.0)
    write_run(tmp_path / "zoo", "ffnn", 0.001, 67, 23.0)
    write_run(tmp_path / "short", "ffnn", 0.001, 67, 24.0, overrides=["trainer.max_epochs=8"])  # another experiment
    evidence = read_evidence(tmp_path)
    assert [run.accuracy for run in evidence.select("ffnn", 0.001, [868])] == [21.0]
    assert [run.accuracy for run in evidence.select("ffnn", 0.001, [868], signals=True)] == [20.0]
    (line,) = evidence.duplicates
    place = "ffnn/lr=0.001/seed=868"
    assert line == (
        f"ffnn at lr 0.001, seed 868 ran 3 times: {tmp_path}/figures/{place} (20.00 %) is used for its signals alone; "
        f"{tmp_path}/table1/{place} (21.00 %) counts; {tmp_path}/zoo/{place} (22.00 %) is not used"
    )


def test_a_result_of_another_configuration_is_damaged(tmp_path: Path) -> None:
    run = write_run(tmp_path, "ffnn", 0.001, 868, 20.0)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("max_epochs: 20", "max_epochs: 2"))
    evidence = read_evidence(tmp_path)
    assert evidence.runs == ()
    assert "result.json: it belongs to configuration" in evidence.problems[0]


def test_kept_results_are_of_their_configurations() -> None:
    evidence = read_evidence(Path(__file__).parents[2] / "results")
    assert len(evidence.runs) > 30
    assert evidence.problems == ()


def test_runs_that_depart_from_the_protocol_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, "ffnn", 0.001, 868, 20.0)
    write_run(tmp_path, "ffnn", 0.001, 67, 20.0, overrides=["trainer.max_epochs=8"])
    write_run(tmp_path, "ffnn_bn", 0.001, 67, 20.0, overrides=["model.affine=false"])
    write_run(tmp_path, "ffnn_bn_h100", 0.001, 67, 20.0)
    wanted = {"ffnn": {}, "ffnn_bn": {"model.affine": True}}
    evidence = read_evidence(tmp_path).only({"trainer.max_epochs": 20}, wanted)
    assert [(run.model, run.seed) for run in evidence.runs] == [("ffnn", 868)]
    assert len(evidence.problems) == 2
    assert "seed=67 does not count" in evidence.problems[0]
    assert "trainer.max_epochs is 8" in evidence.problems[0]
    assert "model.affine is False" in evidence.problems[1]


SCHEDULE = "{_target_: sppbench.run.callbacks.CosineSchedule}"


@pytest.mark.parametrize(
    ("added", "named"),
    [
        (f"trainer.callbacks={SCHEDULE}", "trainer.callbacks._target_ is 'sppbench.run.callbacks.CosineSchedule'"),
        (f"trainer.callbacks=[{SCHEDULE}]", "trainer.callbacks is [{"),
        ("optimizer.amsgrad=true", "optimizer.amsgrad is True"),
        ("trainer.overfit_batches=1", "trainer.overfit_batches is 1"),
        ("trainer.profiler=simple", None),
    ],
)
def test_what_no_protocol_names_is_not_the_study_s(added: str, named: str | None, tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 40.0, overrides=[f"+{added}"])
    (run,) = read_evidence(tmp_path).runs
    kept = read_evidence(tmp_path).only({}, read_rules().protocol)
    found = read_published().departures("efficientnet_bn", run.settings)
    if named is None:
        assert (len(kept.runs), found) == (1, {})
    else:
        assert (kept.runs, len(found)) == ((), 1)
        assert named in kept.problems[0]


def test_what_is_damaged_is_named_and_stops_nothing(tmp_path: Path) -> None:
    good = write_run(tmp_path, "ffnn", 0.001, 868, 20.0)
    (write_run(tmp_path, "ffnn", 0.001, 67, 20.0) / "result.json").write_text("{")
    (write_run(tmp_path, "ffnn", 0.001, 472, 20.0) / "config.yaml").write_text("[")
    evidence = read_evidence(tmp_path)
    (run,) = evidence.runs
    assert run.path == good
    assert len(evidence.problems) == 2
    assert "seed=472" in evidence.problems[0]
    assert "seed=67" in evidence.problems[1]
    with pytest.raises(EvidenceError, match="has no recorded signals"):
        run.signals()
    (good / "spp_epochs.parquet").write_bytes(b"PAR1 no parquet PAR1")
    (run,) = read_evidence(tmp_path).runs
    with pytest.raises(EvidenceError, match=r"spp_epochs\.parquet is damaged"):
        run.signals()
    pd.DataFrame({"epoch": [0], "depth": [0], "layer": ["a"]}).to_parquet(good / "spp_epochs.parquet")
    (run,) = read_evidence(tmp_path).runs
    with pytest.raises(EvidenceError, match="lacks the columns acsm, acv, batches, signal, steps"):
        run.signals()
    columns = {"epoch": [0], "depth": [0], "layer": ["a"], "acsm": [1.0], "acv": [1.0], "steps": [1]}
    whole = pd.DataFrame({**columns, "batches": ["all"], "signal": ["gradient"]})
    for column, value in (("acsm", "x"), ("epoch", "x"), ("epoch", 0.5), ("layer", 1), ("signal", None)):
        whole.assign(**{column: [value]}).to_parquet(good / "spp_epochs.parquet")
        (run,) = read_evidence(tmp_path).runs
        with pytest.raises(EvidenceError, match=f"its column {column} has values of the wrong type"):
            run.signals()
    for column, value in (("batches", "x"), ("signal", "x")):
        whole.assign(**{column: [value]}).to_parquet(good / "spp_epochs.parquet")
        (run,) = read_evidence(tmp_path).runs
        with pytest.raises(
            EvidenceError, match=rf"spp_epochs\.parquet is damaged: its column {column} has values other than"
        ):
            run.signals()
    whole.to_parquet(good / "spp_epochs.parquet")
    with pytest.raises(EvidenceError, match=r"spp_epochs\.parquet has no epoch means over full batches"):
        read_evidence(tmp_path).runs[0].signals("full")
    assert len(read_evidence(tmp_path).runs[0].signals()) == 1
    (good / "spp_epochs.parquet").unlink()
    write_signals(good, _values)
    for part in (good / "spp.parquet").iterdir():
        part.write_bytes(part.read_bytes()[:-20])
    (run,) = read_evidence(tmp_path).runs
    with pytest.raises(EvidenceError, match="damaged"):
        run.signals()
    with pytest.raises(EvidenceError, match="has not been inspected"):
        _ = run.inspection
    (good / "inspection.json").write_text(json.dumps([1]))
    with pytest.raises(EvidenceError, match="not a mapping of keys to values"):
        _ = run.inspection
    (good / "metrics.csv").unlink()
    with pytest.raises(EvidenceError, match=r"cannot read .*metrics\.csv"):
        _ = run.metrics


@pytest.mark.parametrize(
    "content", [None, b"", b"hello", b"\xff\xfe\x00", b"epoch,step,val/acc", b"epoch,test/accuracy\n0,\n"]
)
def test_metrics_that_are_lost_are_said_by_file(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path / "runs", "ffnn_bn", 0.001, 868, 24.0, overrides=("spp=none",))
    assert read_evidence(tmp_path).lost == ()
    file = path / "metrics.csv"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    (line,) = read_evidence(tmp_path).lost
    assert str(file) in line
    assert main(["keep", str(tmp_path / "runs"), "--output", str(tmp_path / "kept")]) == 1
    assert str(file) in capsys.readouterr().err


def test_signals_that_are_lost_are_said_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "recorded", "ffnn_bn", 0.001, 868, 24.0, overrides=("spp=every_step",))
    write_run(tmp_path / "unrecorded", "ffnn_bn", 0.001, 868, 24.0, overrides=("spp=none",))
    write_run(tmp_path / "unfinished", "ffnn_bn", 0.001, 868, status=None)
    assert read_evidence(tmp_path).lost == (f"{path / 'spp.parquet'} is missing, although the run recorded signals",)
    main(["figures", str(tmp_path)])
    assert str(path / "spp.parquet") in capsys.readouterr().out
    write_signals(path, _values)
    write_gains(path, lambda layer, depth, epoch: (1.0, 1.0, 1.0))
    assert read_evidence(tmp_path).lost == ()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is not a directory"):
        read_evidence(tmp_path / "nowhere")
    assert read_evidence(tmp_path).runs == ()


def test_the_command_keeps_what_came_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "sweep", "ffnn", 0.001, 868, 20.0, overrides=["spp=none"])
    write_run(tmp_path / "sweep", "ffnn", 0.001, 67, status=None)
    arguments = [str(tmp_path / "sweep"), "--output", str(tmp_path / "kept")]
    assert main(["keep", *arguments]) == 0
    assert "seed=67: unfinished, not kept" in capsys.readouterr().out
    assert [run.seed for run in read_evidence(tmp_path / "kept").runs] == [868]
    damaged = write_run(tmp_path / "sweep", "ffnn", 0.001, 472, 20.0, overrides=["spp=none"])
    (damaged / "spp_epochs.parquet").write_bytes(b"nothing")
    assert main(["keep", *arguments]) == 1
    assert "spp_epochs.parquet is damaged" in capsys.readouterr().err
    assert [run.seed for run in read_evidence(tmp_path / "kept").runs] == [868]
    assert main(["keep", str(tmp_path / "nowhere"), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["keep", str(damaged), "--output", str(tmp_path)]) == 1  # a run itself
    assert "spp_epochs.parquet is damaged" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["keep", str(tmp_path / "empty"), "--output", str(tmp_path)]) == 2
    assert f"no runs in {tmp_path / 'empty'}: looked for" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert main(["keep", str(tmp_path / "kept"), "--output", str(file)]) == 1
    assert "cannot write to" in capsys.readouterr().err
