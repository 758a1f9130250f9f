"""The arguments of ``sppbench compare``, and what it does."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from sppbench.errors import UserError

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
_LONGEST_LABEL = 50


def add_arguments(parser: argparse.ArgumentParser, path: Callable[[str], Path]) -> None:
    """Adds the arguments; ``path`` makes a path of a text."""
    run = "a run directory, which holds spp.parquet, or the path of a history"
    parser.add_argument("a", type=path, metavar="RUN_A", help=run)
    parser.add_argument("b", type=path, metavar="RUN_B", help="likewise")
    parser.add_argument(
        "--seeds",
        type=path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="more runs of A, with other seeds: B then differs where it falls outside their spread",
    )
    parser.add_argument(
        "--map",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="names that begin with OLD in A begin with NEW in B, as in layers=model.blocks; may be repeated",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="to what the coarser run rounds (default: as its history says, which cannot show TF32)",
    )
    parser.add_argument(
        "--tolerance",
        type=_positive,
        metavar="X",
        help="largest relative difference that still counts as equal, instead of what rounding explains; not with "
        "--seeds",
    )
    parser.add_argument(
        "--k",
        type=_positive,
        metavar="K",
        help="how many standard deviations between seeds still count as equal (default: a quantile at level 1 %%); "
        "with --seeds",
    )
    parser.add_argument("--output", type=path, metavar="DIR", help="write compare.png and compare.txt to DIR")


def run(arguments: argparse.Namespace) -> int:
    """Compares, prints what was found, and returns 0 if the runs are the same and 1 if they depart."""
    from sppbench.comparison.recorded_run import read_run
    from sppbench.spp.comparison.departures import compare
    from sppbench.spp.history.schema import HistoryError
    from sppbench.study.common.plain_text import visible

    histories, notes = [], []
    for path in (arguments.a, arguments.b, *arguments.seeds):
        frame, more = read_run(path)
        histories.append(frame)
        notes += more
    try:
        found = compare(
            histories[0],
            histories[1],
            seeds=histories[2:],
            rename=dict(arguments.map),
            precision=arguments.precision,
            tolerance=arguments.tolerance,
            k=arguments.k,
        )
    except (HistoryError, ValueError) as error:
        raise UserError(str(error)) from error
    text = "\n".join([f"a: {arguments.a}", f"b: {arguments.b}", "", str(found), *(f"- {note}" for note in notes)])
    text = "\n".join(map(visible, text.splitlines()))
    written = ""
    if arguments.output is not None:
        from sppbench.files import write_bytes, write_text
        from sppbench.spp.plots.side_by_side import plot_comparison
        from sppbench.study.common.output import rendered

        figure = plot_comparison(found, (_label(arguments.a), _label(arguments.b)))
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
            write_text(arguments.output / "compare.txt", text + "\n")
            write_bytes(arguments.output / "compare.png", rendered(figure, "png"))
        except OSError as error:
            raise UserError(f"cannot write to {arguments.output}: {error.strerror or error}") from error
        written = f"\n\nWritten: {arguments.output / 'compare.png'}, compare.txt"
    print(text + written)
    return 0 if found else 1


def _renaming(text: str) -> tuple[str, str]:
    old, is_pair, new = text.partition("=")
    if not is_pair or old == new:
        raise argparse.ArgumentTypeError(f"must be OLD=NEW, got {text!r}")
    return old.rstrip("."), new.rstrip(".")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _label(path: Path) -> str:
    text = str(path)
    return text if len(text) <= _LONGEST_LABEL else f"…{text[1 - _LONGEST_LABEL :]}"
