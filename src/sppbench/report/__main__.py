"""One page with all that stored runs tell: ``python -m sppbench.report outputs --output report.html``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sppbench.command_line import Parser

_EPILOG = "Exit status: 0, also where runs are missing or damaged, which the page says; 2 for what the user must mend."


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, logs it where asked to, and returns the exit status."""
    parser = Parser(
        prog="python -m sppbench.report",
        description="One HTML page without network access: verdicts, Table 1, figures, runs, settings and versions.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="all outputs or results: holds figures/, table1/, …"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument("--wandb", action="store_true", help="log the content, too; offline unless WANDB_MODE is set")
    arguments = parser.parse_args(argv)
    from sppbench.claims.rules import RulesError
    from sppbench.evidence import EvidenceError
    from sppbench.output import OutputError
    from sppbench.report.content import gather
    from sppbench.report.output import ReportError, check_writable, log_report, write_report
    from sppbench.table import TableError

    try:
        check_writable(arguments.output)
        content = gather(arguments.directory)
        size = write_report(content, arguments.output)
        verdicts = ", ".join(f"{claim.id} {claim.verdict}" for claim in content.claims)
        print(f"{arguments.output} ({size / 1e6:.1f} MB): {verdicts}")
        for problem in content.problems:
            print(f"- {problem}")
        if arguments.wandb:
            log_report(content)
    except (EvidenceError, OutputError, ReportError, RulesError, TableError) as error:
        print(f"sppbench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
