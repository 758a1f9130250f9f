"""Where figures go: files in a directory, with the data and the runs behind them, and Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sppbench.evidence.keep import write_compact
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.files import replacing, write_text
from sppbench.study.common.output import OutputError, log_run
from sppbench.study.common.output import write_figures as write_images
from sppbench.study.figures.drawing import Drawing
from sppbench.study.figures.text import markdown, match_rows, reading_rows

CURVES_FILE = "curves.parquet"


def all_curves(drawings: Sequence[Drawing]) -> pd.DataFrame:
    """The data of all figures, with the column ``figure`` first."""
    return pd.concat([drawing.curves.assign(figure=drawing.name) for drawing in drawings], ignore_index=True)[
        ["figure", *drawings[0].curves.columns]
    ]


def write_figures(
    drawings: Sequence[Drawing], notes: Sequence[str], runs: Sequence[Run], directory: Path
) -> tuple[list[Path], list[str]]:
    """Writes each figure as PNG and PDF, curves.parquet, matches.json and matches.md, and the runs in compact form.

    Each file is whole, or is what it was before. Without figures only the texts are written.

    Args:
        drawings: The figures.
        notes: What must be said of the runs.
        runs: Those that the figures are made of.
        directory: Is made if it is not there.

    Returns:
        The files, without those of the runs; and which runs could not be written, a line each.

    Raises:
        OutputError: The directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = write_images({drawing.name: drawing.figure for drawing in drawings}, directory)
        if drawings:
            paths.append(directory / CURVES_FILE)
            with replacing(paths[-1]) as file:
                all_curves(drawings).to_parquet(file, index=False, compression="zstd")
        content = {"matches": match_rows(drawings), "readings": reading_rows(drawings), "notes": list(notes)}
        texts = {
            "matches.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
            "matches.md": markdown(drawings, notes),
        }
        for name, text in texts.items():
            paths.append(directory / name)
            write_text(paths[-1], text)
    except OSError as error:
        raise OutputError(f"cannot write to {directory}: {error.strerror or error}") from error
    return paths, _write_runs(runs, directory)


def _write_runs(runs: Sequence[Run], directory: Path) -> list[str]:
    problems = []
    for run in runs:
        try:
            write_compact(run, directory)
        except EvidenceError as error:
            problems.append(f"{run.path} is not kept in compact form: {error}")
    return problems


def log_figures(drawings: Sequence[Drawing], directory: Path) -> None:
    """Logs one W&B run with an image for each figure, and the tables ``matches`` and ``readings``.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    readings = [
        {**row, "value": None if row["value"] is None else float(row["value"]), "spread": str(row["spread"] or "")}
        for row in reading_rows(drawings)
    ]
    matches = [{**row, "agrees": str(row["agrees"])} for row in match_rows(drawings)]
    images = {drawing.name: drawing.figure for drawing in drawings}
    log_run(directory, "figures", directory.resolve().name, {"matches": matches, "readings": readings}, images)
