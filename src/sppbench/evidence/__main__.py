"""Keeps the runs of a sweep in compact form: ``python -m sppbench.evidence outputs/table1 --output results/table1``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppbench.command_line import Parser

_EPILOG = "Exit status: 0; 1 if a run is damaged, and was not kept; 2 for what the user must mend."


def main(argv: Sequence[str] | None = None) -> int:
    """Writes every run that came to its end, tells what was not kept, and returns the exit status."""
    arguments = _arguments(argv)
    from sppbench.evidence import EvidenceError, read_evidence, write_compact

    try:
        evidence = read_evidence(arguments.directory)
    except EvidenceError as error:
        print(f"sppbench: {error}", file=sys.stderr)
        return 2
    problems = list(evidence.problems)
    for run in evidence.runs:
        if not run.counts:
            print(f"{run.path}: {run.run.state}, not kept")
            continue
        try:
            print(write_compact(run, arguments.output))
        except EvidenceError as error:
            problems.append(str(error))
    for problem in problems:
        print(f"sppbench: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sppbench.evidence",
        description="Keeps the runs of a sweep without weights and steps: results, metrics, means of each epoch.",
        epilog=_EPILOG,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds <model>/lr=<lr>/seed=<seed>/")
    parser.add_argument("--output", type=Path, metavar="OUT", required=True, help="where they are kept")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
