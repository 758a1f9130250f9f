"""The table for programs: tidy rows, CSV and JSON. Numbers are not rounded."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from sppbench.evidence.runs import Run
from sppbench.study.table.cells import Cell, Table
from sppbench.study.table.notes import describe_test, devices_used, notes, versions_used
from sppbench.study.table.verdict import CONFIDENCE, PREDICTION


def tidy(table: Table) -> list[dict[str, Any]]:
    """A row a cell, with the same keys in each; None where there is nothing to tell."""
    return [_tidy_cell(cell) for cell in table.cells]


def _tidy_cell(cell: Cell) -> dict[str, Any]:
    ours, published, comparison = cell.ours, cell.published, cell.comparison
    low, high = comparison.interval if comparison is not None and comparison.interval is not None else (None, None)
    return {
        "model": cell.model,
        "title": cell.title,
        "lr": cell.lr,
        "n": cell.n,
        "expected": cell.expected,
        "mean": ours.mean if ours is not None else None,
        "std": ours.std if ours is not None else None,
        "diverged": cell.count("diverged"),
        "failed": cell.count("failed"),
        "unfinished": cell.count("interrupted", "stopped_early", "unfinished"),
        "damaged": cell.count("damaged"),
        "missing": cell.missing,
        "published_mean": published.mean if published is not None else None,
        "published_std": published.std if published is not None else None,
        "published_n": published.n if published is not None else None,
        "difference": comparison.difference if comparison is not None else None,
        "difference_low": low,
        "difference_high": high,
        "difference_df": comparison.df if comparison is not None else None,
        "prediction_low": comparison.prediction[0] if comparison is not None else None,
        "prediction_high": comparison.prediction[1] if comparison is not None else None,
        "verdict": cell.verdict,
    }


def to_csv(table: Table) -> str:
    """One row a cell; what is None is empty."""
    rows = tidy(table)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def to_json(table: Table) -> str:
    """Everything, down to the runs."""
    published = table.published
    content = {
        "name": table.name,
        "metric": "test accuracy in percent, mean and sample standard deviation over seeds",
        "seeds": table.seeds,
        "margin": table.margin,
        "confidence": CONFIDENCE,
        "prediction": PREDICTION,
        "test": describe_test(table),
        "published": {"source": published.source, "n": published.n, "note": published.note} if published else None,
        "departures": table.departures,
        "devices": devices_used(table),
        "versions": versions_used(table),
        "cells": [
            _tidy_cell(cell)
            | {"missing_seeds": cell.missing_seeds, "kinds": cell.kinds, "runs": [_run(run) for run in cell.runs]}
            for cell in table.cells
        ],
        "notes": notes(table),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _run(run: Run) -> dict[str, Any]:
    result = run.result
    return {
        "path": run.place.as_posix(),
        "seed": run.seed,
        "status": run.state,
        "accuracy": run.accuracy,
        "kind": run.kind,
        "config_hash": result.config_hash if result is not None else None,
        "device": result.device if result is not None else None,
        "problem": run.problem,
    }
