"""The figures, from what is there so far: ``python -m sppbench.figures outputs/figures``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppbench.command_line import Parser

_EPILOG = "Exit status: 0; 2 for what the user must mend, which one line tells."


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the figures, prints how they match, writes and logs them where asked to, and returns the exit status."""
    arguments = _arguments(argv)
    from sppbench.evidence import EvidenceError, read_evidence
    from sppbench.figures.all import draw_figures, used_runs
    from sppbench.figures.output import log_figures, write_figures
    from sppbench.figures.text import terminal
    from sppbench.output import OutputError
    from sppbench.table.runs import TableError

    try:
        evidence = read_evidence(arguments.directory)
        if not evidence.runs and not evidence.problems:
            raise EvidenceError(f"no runs in {arguments.directory}: looked for <model>/lr=<lr>/seed=<seed>/result.json")
        drawings, notes = draw_figures(evidence)
        print("\n\n".join(terminal(drawing) for drawing in drawings) or "There is nothing to draw.")
        if arguments.output:
            runs = used_runs(evidence)
            paths, problems = write_figures(drawings, notes, runs, arguments.output)
            notes = [*notes, *problems]
            print(f"\nWritten to {arguments.output}, and {len(runs)} runs in compact form:")
            print("\n".join(f"  {path.name}" for path in paths))
        if notes:
            print("\nNotes:\n" + "\n".join(f"- {note}" for note in notes))
        if arguments.wandb and drawings:
            log_figures(drawings, arguments.directory)
    except (EvidenceError, OutputError, TableError) as error:
        print(f"sppbench: {error}", file=sys.stderr)
        return 2
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sppbench.figures",
        description="The study's figures and the ones that it lacks, from what is there so far.",
        epilog=_EPILOG,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="an outputs directory, or one sweep of it")
    parser.add_argument(
        "--output", type=Path, metavar="OUT", help="write figures, their data and their runs in compact form into OUT"
    )
    parser.add_argument("--wandb", action="store_true", help="log the figures; offline unless WANDB_MODE is set")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
