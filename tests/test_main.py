"""The command line: what ``sppbench --help`` says, and what all commands have in common."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sppbench.__main__ import COMMANDS, main
from sppbench.study.table.verdict import MARGIN
from tests.fabricate.runs import write_cell, write_run


def sppbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sppbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_help_is_answered_at_once_and_says_what_each_command_does() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    shown = sppbench("--help", COLUMNS="120")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
    assert shown.returncode == 0
    text = " ".join(shown.stdout.split())
    assert "train train one net, or many (-m), from a configuration" in text
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_describes_itself_and_its_exit_status(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert COMMANDS[name].help.split()[1] in text
    assert "Exit status: 0 for success; " in text
    assert "2 for an error that you can fix" in text


def test_help_names_the_defaults_and_what_is_safe(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {}
    for name in ("table", "inspect"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        texts[name] = " ".join(capsys.readouterr().out.split())
    assert f"(default: {MARGIN:g})" in texts["table"]
    assert "only nets and data sets of sppbench are created" in texts["inspect"]
    assert "--trusted" in texts["inspect"]


def test_train_is_hydras_command() -> None:
    ours, hydras = (
        subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True).stdout
        for words in (["sppbench", "train", "--help"], ["sppbench.train", "--help"])
    )
    assert ours == hydras
    assert "  efficientnet_bn  " in ours


@pytest.mark.parametrize("arguments", [[], ["sing"], ["table"], ["table", ".", "--margin", "0"], ["table", "nowhere"]])
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("sppbench: ")
    assert err.count("\n") == 1


def test_a_tilde_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_cell(tmp_path / "home" / "runs", "ffnn", 0.001, [20.0], overrides=["spp=none"])
    assert main(["claims", "~/runs", "--output", "~/claims.txt", "--format", "json"]) == 0
    assert main(["keep", "~/runs", "--output", "~/kept"]) == 0
    assert main(["inspect", "~/runs", "--data-root", "~/data"]) == 1
    assert f"{tmp_path}/home/runs" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"runs", "claims.txt", "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert main(["table", "~nobody_at_all/runs"]) == 2


def test_any_encoding_of_the_terminal_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, "ffnn", 0.001, 1, 20.0, overrides=["spp=none"], name="naïve ≥ \N{GREEK SMALL LETTER GAMMA}")
    for command in ("claims", "table"):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        assert main([command, str(tmp_path)]) == 0
        out.seek(0)
        err.seek(0)
        assert r"\u2265" in out.read(), command
        assert err.read() == "", command


def test_a_reader_that_has_had_enough(tmp_path: Path) -> None:
    write_cell(tmp_path, "ffnn", 0.001, [20.0])
    with subprocess.Popen(
        [sys.executable, "-m", "sppbench", "claims", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_control_characters_in_a_message_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(tmp_path / "a\x1b[2J\nb")]) == 2
    assert r"a\x1b[2J\nb is not a directory" in capsys.readouterr().err


def test_a_notebooks_way_to_show_figures_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command in a notebook inherits it, and another environment lacks it; matplotlib reads it when imported."""
    monkeypatch.setenv("MPLBACKEND", "module://not_installed_here")
    assert main(["table", str(tmp_path)]) == 2
    assert "no runs in" in capsys.readouterr().err
    assert os.environ["MPLBACKEND"] == "agg"


def test_unreadable_settings_of_matplotlib_are_left_out(tmp_path: Path) -> None:
    """The file is read when matplotlib is imported, from the current directory before any other."""
    (tmp_path / "matplotlibrc").write_bytes(b"axes.titlesize: 30 # gr\xf6\xdfer\n")
    code = (
        "import os; from sppbench.streams import need_only_matplotlib; need_only_matplotlib(); import matplotlib;"
        "print(os.getcwd(), matplotlib.rcParams['axes.titlesize'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout.split() == [str(tmp_path), "large"]
    assert "sppbench: matplotlib's settings are ignored, because they cannot be read: 'utf-8' codec" in ended.stderr
