"""``sppbench compare`` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.writer import HistoryWriter
from tests.commands import Say, saying
from tests.spp.comparison.built import LAYERS, built

say = saying("compare")


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = iter([1.0, 1.1, 0.9, 1.05])
    histories = {
        "old": built(),
        "same": built(),
        "broken": built(lambda step, depth, signal: 4.0 if step >= 2 and depth == 2 and signal != "parameter" else 1.0),
        "port": built(layers=[(f"model.{name}", kind) for name, kind in LAYERS]),
        **{f"seed{number}": built(lambda *_, size=size: size) for number, size in enumerate(generator)},
    }
    for name, frame in histories.items():
        HistoryWriter(f"runs/{name}/spp.parquet").append(frame)


def test_the_same_is_status_0(say: Say) -> None:
    status, out, err = say("runs/old", "runs/same")
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        "a: runs/old",
        "b: runs/same",
        "",
        "a and b are identical: every number that both recorded is the same, bit for bit.",
    ]
    assert say("runs/old/spp.parquet", "runs/same/spp.parquet")[0] == 0


def test_a_departure_is_status_1_with_the_figure_and_the_text_in_files(say: Say) -> None:
    status, out, err = say("runs/old", "runs/broken", "--output", "out/deep")
    assert (status, err) == (1, "")
    assert (
        "a and b first differ in step 2 (epoch 0) at blocks.1 (ReLU, activation): second moment 1 in a, 4 in b" in out
    )
    assert "Written: out/deep/compare.png" in out
    assert Path("out/deep/compare.png").read_bytes().startswith(b"\x89PNG")
    assert out.startswith(Path("out/deep/compare.txt").read_text())


def test_a_port_with_other_names(say: Say) -> None:
    status, out, _ = say("runs/old", "runs/port")
    assert status == 0
    assert "matched by order of execution and kind: 4 layers, stem = model.stem" in out
    status, out, _ = say("runs/old", "runs/port", "--map", "=model")
    assert status == 0
    assert "matched by order" not in out


def test_other_seeds(say: Say) -> None:
    seeds = ("--seeds", "runs/seed0", "runs/seed1", "runs/seed2")
    assert say("runs/old", "runs/seed3")[0] == 1
    status, out, _ = say("runs/old", "runs/seed3", *seeds)
    assert status == 0
    assert "times the spread between 4 seeds" in out
    assert say("runs/old", "runs/broken", *seeds)[0] == 1
    assert say("runs/old", "runs/broken", *seeds, "--k", "100")[0] == 0


def test_what_was_kept_of_a_run_is_compared_with_its_means(say: Say, tmp_path: Path) -> None:
    Path("kept").mkdir()
    epoch_mean(built()).to_parquet("kept/spp_epochs.parquet")
    status, out, _ = say("runs/old", "kept")
    assert status == 0
    assert "step 5" in out


def test_another_history_beside_it_is_named(say: Say) -> None:
    HistoryWriter("runs/old/spp-2.parquet").append(built())
    assert "runs/old also holds spp-2.parquet of another run: not compared" in say("runs/old", "runs/same")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/old", "nowhere"], "there is no run at nowhere"),
        (["runs/old", "runs"], "runs holds no history (spp.parquet); there are, for example, runs/broken, runs/old"),
        (["runs/old", "file.txt"], "file.txt"),
        (["runs/old", "runs/same", "--map", "x"], "must be OLD=NEW"),
        (["runs/old", "runs/same", "--map", "x=y"], "no layer name of a begins with 'x'"),
        (["runs/old", "runs/same", "--tolerance", "no"], "no is not a positive number"),
        (["runs/old", "runs/same", "--k", "3"], "k is for a comparison with seeds"),
        (["runs/old", "runs/other"], "no layer has the same name in both"),
        (["runs/old", "runs/same", "--output", "file.txt"], "cannot write to file.txt"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(arguments: list[str], words: str, say: Say) -> None:
    Path("file.txt").write_text("no history")
    other = built(layers=[("x", "Linear"), ("y", "ReLU")])
    HistoryWriter("runs/other/spp.parquet").append(pd.DataFrame(other))
    status, _, err = say(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
