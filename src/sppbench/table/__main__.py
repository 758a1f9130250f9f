"""The table of a sweep, from what is there so far: ``python -m sppbench.table outputs/table1``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from sppbench.command_line import Parser

_EPILOG = (
    "Exit status: 0; 1 if a result.json is damaged (the table is made without it); 2 for what the user must mend, "
    "which one line tells."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, writes and logs it where asked to, and returns the exit status."""
    arguments = _arguments(argv)
    from sppbench.table.cells import read_table
    from sppbench.table.output import FORMATS, log_table, write_table
    from sppbench.table.runs import TableError

    try:
        table = read_table(arguments.directory, arguments.published, arguments.margin)
        print(FORMATS[arguments.format](table))
        if arguments.output or arguments.wandb:
            from sppbench.table.figures import draw_figures

            figures = draw_figures(table)
            if arguments.output:
                write_table(table, figures, arguments.output)
            if arguments.wandb:
                log_table(table, figures)
    except TableError as error:
        print(f"sppbench: {error}", file=sys.stderr)
        return 2
    damaged = [run for run in table.runs if run.state == "damaged"]
    for run in damaged:
        print(f"sppbench: damaged, and not counted: {run.problem}", file=sys.stderr)
    return 1 if damaged else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sppbench.table", description="The table of a sweep, from what is there so far.", epilog=_EPILOG
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds <model>/lr=<lr>/seed=<seed>/")
    parser.add_argument("--output", type=Path, metavar="OUT", help="write all formats and the figures into OUT")
    parser.add_argument(
        "--published", type=Path, metavar="FILE", help="published values; by default the study's Table 1"
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        default=2.0,
        metavar="POINTS",
        help="differences up to this many points of accuracy count as equal (default: %(default)s)",
    )
    parser.add_argument("--wandb", action="store_true", help="log table and figures; offline unless WANDB_MODE is set")
    formats = ("terminal", "markdown", "csv", "latex", "json")
    parser.add_argument("--format", choices=formats, default="terminal", help="what to print (default: %(default)s)")
    return parser.parse_args(argv)


def _margin(text: str) -> float:
    margin = float(text)
    if not (margin > 0 and math.isfinite(margin)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return margin


if __name__ == "__main__":
    sys.exit(main())
