"""The command line: ``sppbench <command>``, or ``python -m sppbench <command>``.

Each command has a function for its arguments and one that runs it and returns the exit status. Whatever needs torch,
pandas or matplotlib is imported inside the latter, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from sppbench.interruption import catch_early_interrupt

    catch_early_interrupt()

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sppbench.comparison import compare_command
from sppbench.errors import UserError
from sppbench.extras import need
from sppbench.interruption import exit_interrupted
from sppbench.look import command as look
from sppbench.streams import need_only_matplotlib, survive_any_text

STATUS = "Exit status: 0 for success; {}2 for an error that you can fix, described in one line."
TEXT_FORMATS = ("terminal", "markdown", "json")


class Parser(argparse.ArgumentParser):
    """Answers a mistake on the command line with one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sppbench: {message} (see {self.prog} --help)\n")


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        help: What it does, in a line.
        status: Which exit statuses are its own.
        add_arguments: Adds its arguments to a parser.
        run: Runs it and returns the exit status.
        more: What its own ``--help`` says in addition.
        extra: What must be installed for it beside the base, see `sppbench.extras`.
    """

    help: str
    status: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    more: str = ""
    extra: str | None = "benchmark"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Example:
        >>> main(["table", "results/table1", "--format", "markdown"])
        0
    """
    survive_any_text()
    need_only_matplotlib()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["train"]:
            return _train(arguments[1:])
        chosen = _parser().parse_args(arguments)
        if chosen.extra is not None:
            need(arguments[0], chosen.extra)
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        exit_interrupted()
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes once more
        return 1
    return status


def say(problem: str) -> None:
    """Writes a line about a problem to standard error."""
    from sppbench.study.common.plain_text import visible

    print(f"sppbench: {visible(problem)}", file=sys.stderr)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - unlike Path's it leaves ~nobody as it is


def _parser() -> Parser:
    parser = Parser(
        prog="sppbench",
        description="See how signals travel through a neural net while it trains.",
        epilog="For help on a command: sppbench <command> --help",
    )
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True, parser_class=Parser)
    commands.add_parser("train", help="train one net, or many (-m), from a configuration; the options are Hydra's")
    for name, command in COMMANDS.items():
        text = f"{command.help[0].upper()}{command.help[1:]}. {command.more}"
        one = commands.add_parser(
            name, help=command.help, description=text, epilog=STATUS.format(command.status and f"{command.status}; ")
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run, extra=command.extra)
    return parser


def _train(arguments: list[str]) -> int:
    need("train", "benchmark")
    from sppbench.train import main as train

    sys.argv = ["sppbench train", *arguments]  # Hydra reads it, and names it in its help
    train()
    return 0


# -- table -------------------------------------------------------------------------------------------------------------


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=_path, metavar="DIR", help="a directory that holds <model>/lr=<lr>/seed=<seed>/"
    )
    parser.add_argument(
        "--output", type=_path, metavar="OUT", help="write the figures and the table in all formats to OUT"
    )
    parser.add_argument(
        "--published", type=_path, metavar="FILE", help="published values (default: the study's Table 1)"
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        metavar="POINTS",
        help="differences up to this many points of accuracy count as equal (default: 2)",
    )
    _add_wandb(parser, "the table and the figures")
    _add_format(parser, ("terminal", "markdown", "csv", "latex", "json"))


def _margin(text: str) -> float:
    margin = float(text)
    if not (margin > 0 and math.isfinite(margin)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return margin


def _table(arguments: argparse.Namespace) -> int:
    from sppbench.study.table.cells import read_table
    from sppbench.study.table.formats import FORMATS, log_table, write_table
    from sppbench.study.table.verdict import MARGIN

    table = read_table(arguments.directory, arguments.published, arguments.margin or MARGIN)
    print(FORMATS[arguments.format](table))
    if arguments.output or arguments.wandb:
        from sppbench.study.table.table_figures import draw_figures

        figures = draw_figures(table)
        if arguments.output:
            write_table(table, figures, arguments.output)
        if arguments.wandb:
            log_table(table, figures)
    damaged = [run for run in table.runs if run.state == "damaged"]
    for run in damaged:
        say(f"damaged, so not counted: {run.problem}")
    return 1 if damaged else 0


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_path, metavar="DIR", help="an outputs directory, or one sweep of it")
    parser.add_argument(
        "--output",
        type=_path,
        metavar="OUT",
        help="write the figures, their data and their runs in compact form to OUT",
    )
    _add_wandb(parser, "the figures")


def _figures(arguments: argparse.Namespace) -> int:
    from sppbench.evidence.selection import read_evidence, require_runs
    from sppbench.study.common.plain_text import visible
    from sppbench.study.figures.draw_all import draw_figures, used_runs
    from sppbench.study.figures.figure_output import log_figures, terminal, write_figures

    evidence = require_runs(read_evidence(arguments.directory))
    drawings, notes = draw_figures(evidence)
    print("\n\n".join(terminal(drawing) for drawing in drawings) or "There is nothing to draw.")
    if arguments.output:
        runs = used_runs(evidence)
        paths, problems = write_figures(drawings, notes, runs, arguments.output)
        notes = [*notes, *problems]
        print(f"\nWritten to {arguments.output}, and {len(runs)} runs in compact form:")
        print("\n".join(f"  {path.name}" for path in paths))
    if notes:
        print("\nNotes:\n" + "\n".join(f"- {visible(note)}" for note in notes))
    if arguments.wandb and drawings:
        for problem in log_figures(drawings, arguments.directory):
            say(problem)
    return 0


# -- claims ------------------------------------------------------------------------------------------------------------


def _claims_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=_path, metavar="DIR", help="a directory that holds runs, at any depth, from any sweeps"
    )
    parser.add_argument(
        "--rules", type=_path, metavar="FILE", help="tests and thresholds (default: the project's conf/claims.yaml)"
    )
    _add_format(parser, TEXT_FORMATS)
    parser.add_argument("--output", type=_path, metavar="FILE", help="also write it to FILE")


def _claims(arguments: argparse.Namespace) -> int:
    from sppbench.evidence.selection import read_evidence
    from sppbench.study.claims.formats import FORMATS, write_claims
    from sppbench.study.claims.judge import judge

    evidence = read_evidence(arguments.directory)
    text = FORMATS[arguments.format](judge(evidence, arguments.rules))
    print(text)
    for problem in evidence.problems:
        say(f"not counted: {problem}")
    for line in (*evidence.lost, *evidence.duplicates):
        say(line)
    if arguments.output is not None:
        write_claims(text, arguments.output)
    return 0


# -- report ------------------------------------------------------------------------------------------------------------


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=_path, metavar="DIR", help="a run, or a directory that holds runs, at any depth"
    )
    parser.add_argument(
        "--output", type=_path, default=Path("report.html"), metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        metavar="SECONDS",
        help="rewrite the page every so many seconds until all runs have ended; an open browser reloads it",
    )
    _add_wandb(parser, "the content")


def _seconds(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return int(text)


def _report(arguments: argparse.Namespace) -> int:
    from sppbench.study.common.plain_text import visible
    from sppbench.study.report.page import check_writable, log_report, write_until_ended

    check_writable(arguments.output)
    for content, size in write_until_ended(arguments.directory, arguments.output, arguments.every):
        number = len(content.evidence.runs)
        words = [f"{claim.id} {claim.verdict}" for claim in content.claims] or [f"{number} run{'s' * (number != 1)}"]
        words += [f"{len(content.under_way)} still training"] if content.under_way else []
        print(f"{arguments.output} ({size / 1e6:.1f} MB): {', '.join(words)}", flush=True)
    for problem in content.problems:
        print(f"- {visible(problem)}")
    if arguments.wandb:
        for problem in log_report(content):
            say(problem)
    return 0


# -- keep --------------------------------------------------------------------------------------------------------------


def _keep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=_path, metavar="DIR", help="a directory that holds <model>/lr=<lr>/seed=<seed>/"
    )
    parser.add_argument("--output", type=_path, metavar="OUT", required=True, help="where to keep them")


def _keep(arguments: argparse.Namespace) -> int:
    from sppbench.evidence.keep import write_compact
    from sppbench.evidence.runs import EvidenceError
    from sppbench.evidence.selection import read_evidence, require_runs

    evidence = require_runs(read_evidence(arguments.directory))
    problems = [*evidence.problems, *evidence.lost]
    for run in evidence.runs:
        if not run.counts:
            print(f"{run.path}: {run.state}, not kept")
            continue
        if not run.is_inspected:
            say(f"{run.path} has no inspection.json: inspect it while it has its weights (sppbench inspect)")
        try:
            print(write_compact(run, arguments.output))
        except EvidenceError as error:
            problems.append(str(error))
    for problem in problems:
        say(problem)
    return 1 if problems else 0


# -- inspect -----------------------------------------------------------------------------------------------------------


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_path, metavar="DIR", help="a directory that holds runs, at any depth")
    parser.add_argument(
        "--data-root",
        type=_path,
        metavar="PATH",
        help="where the data is, needed for runs with batch normalization (default: data.root of each run)",
    )
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="you trust whoever made these runs: also create nets and data sets that are not part of sppbench, "
        "which runs whatever code their configurations name",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from sppbench.evidence.inspection import InspectionError, find_runs, inspect_run

    status = 0
    for run in find_runs(arguments.directory):
        try:
            print(f"{run}: {inspect_run(run, arguments.data_root, arguments.trusted)}", flush=True)
        except InspectionError as error:  # and there are other runs
            say(f"{run} cannot be inspected: {error}")
            status = 1
    return status


# -- dashboard ---------------------------------------------------------------------------------------------------------


def _dashboard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", default="sppbench", help="W&B project (default: %(default)s)")
    parser.add_argument("--entity", help="W&B user or team (default: WANDB_ENTITY, or the account's own)")
    parser.add_argument("--name", default="sppbench", help="name of the view (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the specification as JSON; no network, no login")


def _dashboard(arguments: argparse.Namespace) -> int:
    from sppbench.dashboard import dashboard

    print(dashboard(arguments.entity or "", arguments.project, arguments.name, arguments.dry_run))
    return 0


# -- common ------------------------------------------------------------------------------------------------------------


def _add_wandb(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--wandb", action="store_true", help=f"log {what}; offline unless WANDB_MODE is set")


def _add_format(parser: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    parser.add_argument("--format", choices=formats, default="terminal", help="what to print (default: %(default)s)")


COMMANDS = {
    "compare": Command(
        "compare two runs layer by layer and step by step: where they first differ by more than rounding or seeds "
        "explain",
        "1 if they differ",
        lambda parser: compare_command.add_arguments(parser, _path),
        compare_command.run,
        extra=None,
    ),
    "look": Command(
        "look at a newly built net: one forward and one backward pass, and what they show",
        "1 if something is wrong with its signals",
        lambda parser: look.add_arguments(parser, _path),
        look.run,
        "No data set is needed, and nothing is trained.",
        extra=None,
    ),
    "table": Command(
        "compare a sweep's table, from the runs finished so far, with the published one",
        "1 if a result.json is damaged (the table is made without it)",
        _table_arguments,
        _table,
    ),
    "figures": Command(
        "draw the study's figures, and those that it lacks, and compare them with the published ones",
        "",
        _figures_arguments,
        _figures,
    ),
    "claims": Command("judge the claims of the study and ours from the runs", "", _claims_arguments, _claims),
    "report": Command(
        "write one HTML page of your runs and of the study: figures, scores, findings, verdicts",
        "",
        _report_arguments,
        _report,
    ),
    "keep": Command(
        "keep finished runs in compact form: results, metrics and epoch means, no weights and no steps",
        "1 if a run is damaged and was not kept",
        _keep_arguments,
        _keep,
    ),
    "inspect": Command(
        "inspect the last weights of finished runs, and write inspection.json beside them",
        "1 if a run could not be inspected",
        _inspect_arguments,
        _inspect,
        "It is safe for other people's runs: of what their configurations name, only nets and data sets of sppbench "
        "are "
        "created. A configuration is refused if it is larger than 4 MB, or if its YAML aliases expand to more than "
        "100,000 values.",
    ),
    "dashboard": Command("save the W&B view of the project", "", _dashboard_arguments, _dashboard, extra="dashboard"),
}

if __name__ == "__main__":
    sys.exit(main())
