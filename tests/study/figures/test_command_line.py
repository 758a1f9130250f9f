"""What a user sees who types `sppbench figures ...`: output, files and exit status."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from sppbench.evidence.selection import read_evidence
from sppbench.study.figures.draw_all import draw_figures
from sppbench.study.figures.figure_output import all_curves
from sppbench.study.figures.published_figures import read_published_figures
from tests.commands import Say, saying
from tests.fabricate.figures import figure1, gradient, write_ffnn
from tests.spp.test_callback import read_wandb

say = saying("figures")
NET = "ffnn_bn_noaffine_h100"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sppbench.study.figures.draw_all.draw_scale", lambda evidence: ([], []))  # they take seconds
    path = tmp_path / "outputs" / "figures"
    write_ffnn(path, NET, 868, gradient(figure1))
    return path


def test_matches_readings_and_what_is_missing_are_printed(sweep: Path, say: Say) -> None:
    status, out, err = say(sweep.parent)
    assert (status, err) == (0, "")
    assert "figure1_h100: Figure 1: FFNN with BN, affine off, h = 100\n" in out
    assert f"our run {NET}, learning rate 0.001, seed 868" in " ".join(out.split())
    assert "RMSE of log10 at the peaks" in out
    assert "h = 100, affine off; all batches; study's convention" in out
    assert "- figure2_h512 cannot be drawn: there is no usable run of ffnn_bn at learning rate 0.001\n" in out
    assert f"sweeps=figures model={NET} seed=67,472,362,970\n" in out
    table = out.partition("\nNotes:\n")[0]
    assert max(map(len, table.splitlines())) <= 120


def test_everything_is_written(sweep: Path, say: Say, tmp_path: Path) -> None:
    out = tmp_path / "new" / "results"
    status, text, _ = say(sweep, "--output", out)
    assert status == 0
    names = ("figure1_h100", "figure1_h100_definition")
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")} | {"curves.parquet"}
    assert {path.name for path in out.iterdir()} == files | {"matches.json", "matches.md", NET}
    assert f"Written to {out}, and 1 runs in compact form:" in text
    assert matplotlib.image.imread(out / "figure1_h100.png").shape[1] == 910
    assert (out / "figure1_h100.pdf").read_bytes().startswith(b"%PDF")
    drawings, notes = draw_figures(read_evidence(sweep))
    pd.testing.assert_frame_equal(pd.read_parquet(out / "curves.parquet"), all_curves(drawings), check_exact=True)
    content = json.loads((out / "matches.json").read_text())
    assert content["notes"] == notes
    assert [row["agrees"] for row in content["matches"]] == [match.agrees for match in drawings[0].matches]
    assert [row["reading"] for row in content["readings"] if row["best"]] == [
        "h = 100, affine off; all batches; study's convention"
    ]
    assert "| RMSE of log10 at the peaks | 0.000" in (out / "matches.md").read_text()
    run = out / NET / "lr=0.001" / "seed=868"
    assert {path.name for path in run.iterdir()} >= {"spp_epochs.parquet", "config.yaml", "result.json"}


def test_redrawing_from_what_was_written_gives_the_same_files(sweep: Path, say: Say, tmp_path: Path) -> None:
    assert say(sweep, "--output", tmp_path / "results")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()}
    assert say(tmp_path / "results", "--output", tmp_path / "results")[0] == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir() if path.is_file()}
    assert after == before


def test_a_committed_figure_is_that_of_the_committed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stands for all, which take a quarter of a minute: ``make keep`` writes them together."""
    published = read_published_figures()
    first = dataclasses.replace(published, figures=published.figures[:1])
    for name, made in {"read_published_figures": first, "try_readings": (), "draw_scale": ([], [])}.items():
        monkeypatch.setattr(f"sppbench.study.figures.draw_all.{name}", lambda *arguments, made=made: made)
    results = Path(__file__).parents[3] / "results" / "figures"
    drawings, _ = draw_figures(read_evidence(results))
    found, committed = all_curves(drawings), pd.read_parquet(results / "curves.parquet")
    assert len(drawings) == 4
    committed = committed[committed["figure"].isin(found["figure"])].reset_index(drop=True)
    # Not exactly: logarithms and quantiles may differ in their last digit between machines.
    pd.testing.assert_frame_equal(found, committed, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a directory"),
        (["empty"], "no runs in empty"),
        ([], "the following arguments are required: DIR"),
        (["figures", "--colour"], "unrecognized arguments: --colour"),
        (["figures", "--output", "file"], "cannot write to file"),
    ],
)
def test_mistakes_are_told_in_a_line(
    sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(sweep.parent)
    Path("empty").mkdir()
    Path("file").touch()
    status, _, err = say(*arguments)
    assert status == 2
    assert message in err
    assert err.startswith("sppbench: ")
    assert err.count("\n") == 1


def test_only_damaged_runs_are_told(tmp_path: Path, say: Say) -> None:
    run = tmp_path / NET / "lr=0.001" / "seed=868"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("][")
    status, out, _ = say(tmp_path)
    assert status == 0
    assert out.startswith("There is nothing to draw.\n")
    assert f"cannot read {run / 'config.yaml'}" in out


def test_names_of_any_characters_are_only_read(tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppbench.study.figures.figure_output.write_images", lambda figures, directory: [])
    outputs = tmp_path / "\x1b[2J\n# [name](http:)|`"
    write_ffnn(outputs / "figures", NET, 868, gradient(figure1))
    run = outputs / "figures" / NET / "lr=0.001" / "seed=67"
    run.mkdir()
    (run / "config.yaml").write_text("][")
    status, out, err = say(outputs, "--output", tmp_path / "new")
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert r"/\x1b[2J\n# [name](http:)|`/figures/" in out.partition("\nNotes:\n")[2]
    text = (tmp_path / "new" / "matches.md").read_text(encoding="utf-8")
    assert r"/\\x1b[2J\\n\# [name\](http:)\|\`/figures/" in text
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 3


def test_wandb_offline(sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    assert say(sweep, "--wandb")[0] == 0
    assert wandb.run is None, "the run is finished"
    [run] = (sweep / "wandb").glob("offline-run-*")
    [file] = run.glob("run-*.wandb")
    deadline = time.monotonic() + 30
    while not (rows := read_wandb(file)) and time.monotonic() < deadline:
        time.sleep(0.05)  # W&B's own process writes the file, sometimes after wandb.finish() has returned
    [row] = rows
    assert (run / "files" / row["figure1_h100.path"]).read_bytes().startswith(b"\x89PNG")
    matches = json.loads((run / "files" / row["matches.path"]).read_text(encoding="utf-8"))
    assert matches["columns"] == ["figure", "quantity", "ours", "published", "criterion", "agrees"]
    assert len(matches["data"]) == 7
    assert "readings.path" in row


def test_wandb_that_fails_gives_status_2(sweep: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "somewhere")
    status, out, err = say(sweep, "--wandb")
    assert status == 2
    assert err == "sppbench: WANDB_MODE must be online, offline or disabled, got 'somewhere'\n"
    assert "figure1_h100" in out
