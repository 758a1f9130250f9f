"""The verdicts on the study's claims, from what is there so far: ``python -m sppbench.claims outputs``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sppbench.command_line import Parser

_EPILOG = "Exit status: 0, whatever the verdicts; 2 for what the user must mend, which one line tells."


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the verdicts, writes them where asked to, and returns the exit status."""
    arguments = _arguments(argv)
    from sppbench.claims.judge import judge
    from sppbench.claims.rules import RulesError
    from sppbench.claims.text import FORMATS
    from sppbench.evidence import EvidenceError, read_evidence
    from sppbench.files import write_atomically

    try:
        evidence = read_evidence(arguments.directory)
        text = FORMATS[arguments.format](judge(evidence, arguments.rules))
    except (EvidenceError, RulesError) as error:
        print(f"sppbench: {error}", file=sys.stderr)
        return 2
    print(text)
    for problem in evidence.problems:
        print(f"sppbench: not counted: {problem}", file=sys.stderr)
    if arguments.output is not None:
        try:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(arguments.output) as file:
                file.write(text + "\n")
        except OSError as error:
            print(f"sppbench: cannot write {arguments.output}: {error.strerror or error}", file=sys.stderr)
            return 2
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sppbench.claims",
        description="The verdicts on the study's claims, from what is there so far.",
        epilog=_EPILOG,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds runs, at any depth, of any sweeps")
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="tests and thresholds; by default the project's conf/claims.yaml"
    )
    formats = ("terminal", "markdown", "json")
    parser.add_argument("--format", choices=formats, default="terminal", help="what to print (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the same into FILE, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
