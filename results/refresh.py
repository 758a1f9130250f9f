"""Writes the numbers of README.md and docs/, and the kept tables, from the kept runs: ``python results/refresh.py``.

Each block that this script writes stands between ``<!-- name: written by results/refresh.py -->`` and
``<!-- end -->``. A test compares them with what it would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import small_cnn

import normalizer_free
from sppbench.evidence.selection import Evidence, read_evidence
from sppbench.files import config_directory, write_text
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.claims.judge import judge
from sppbench.study.common.published import read_published
from sppbench.study.common.text_tables import DASH, pipes
from sppbench.study.figures.figure_output import ANSWERS
from sppbench.study.table.cells import read_table
from sppbench.study.table.formats import matrix, plus_minus, write_table

HERE = Path(__file__).parent
ROOT = HERE.parent
BLOCK = re.compile(r"(<!-- (\w+): written by results/refresh\.py -->\n).*?(<!-- end -->)", re.DOTALL)
OVERHEAD = re.compile(r"<!-- spp -->\n(.*?)<!-- end -->", re.DOTALL)
LR, SEED = 0.001, 868
SINGLE = ("ffnn", "ffnn_bn", "ffnn_bn_noaffine", "efficientnet_bn", "sn_efficientnet_mp")
TABLES = ("table1", "table3")
HEADLINE = "C2"
THESIS = config_directory() / "published" / "thesis_ffnn.yaml"
RATIOS = ("affine on / off", "scale alone", "shift alone", "h = 100 / h = 512", "as the study", "γ² in the change")
WIDTHS = ("affine on / off", "h = 100 / h = 512, affine off")
# Of the table of tools in the README: how a row begins → the variant of benchmarks/spp_overhead.py.
TOOLS = {
    "**sppbench**": "SignalProbe",
    "your own hooks": "hooks to NumPy",
    "[`wandb.watch`]": "wandb.watch",
    "[TorchLens]": "TorchLens",
}
RMSE = "RMSE of log10 at the peaks"


def pages() -> dict[Path, str]:
    """Every page that has blocks, with its text."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}
    return {path: text for path, text in texts.items() if BLOCK.search(text)}


def written() -> dict[str, list[str]]:
    """The lines of each block, by its name."""
    evidence = read_evidence(HERE)
    claims = judge(evidence)
    return {
        "runs": _runs(evidence),
        **{name: pipes(*matrix(read_table(HERE / name))) for name in TABLES},
        "c2": _ratios(claims),
        "c2_accuracies": _accuracies(claims),
        **normalizer_free.blocks(evidence),
        **small_cnn.blocks(evidence),
        "widths": _ratios(claims, WIDTHS),
        "claims": _verdicts(claims),
        "figures": _figures(),
    }


def refreshed(text: str, blocks: Mapping[str, Sequence[str]]) -> str:
    """A page with all of its blocks written anew.

    Raises:
        KeyError: A block has a name that is not known here.
    """
    return BLOCK.sub(lambda found: "\n".join([found[1].rstrip("\n"), *blocks[found[2]], found[3]]), text)


def priced(text: str, costs: Mapping[str, str]) -> str:
    """A page whose table of tools has the measured costs."""
    for tool, cost in costs.items():
        row = rf"^(\| {re.escape(tool)}.*?\| )\d+\.\d+ to \d+\.\d+( \|)"
        text = re.sub(row, lambda found, cost=cost: found[1] + cost + found[2], text, flags=re.MULTILINE)
    return text


def measured() -> dict[str, str]:
    """The range of each tool's cost, as times of a step over those without, from the page of benchmarks."""
    pages = [*(ROOT / "benchmarks").glob("*.md"), *(ROOT / "docs" / "benchmarks").glob("*.md")]
    (table,) = (found[1] for page in pages if (found := OVERHEAD.search(page.read_text(encoding="utf-8"))))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    ratios = {tool: [float(row[-1]) for row in rows if row[0] == name] for tool, name in TOOLS.items()}
    return {tool: f"{min(found):.2f} to {max(found):.2f}" for tool, found in ratios.items()}


def _runs(evidence: Evidence) -> list[str]:
    """A row a net: the runs of one seed, and the mean of the poster or, of feed-forward nets, of the thesis."""
    published = read_published().values | read_published(THESIS).values
    rows = []
    for net in SINGLE:
        (run,) = evidence.select(net, LR, [SEED])
        assert run.result is not None
        assert run.result.test is not None
        study = published.get((net, LR))
        test = run.result.test
        others = f"{plus_minus(study, digits=1)} %" if study is not None else DASH
        minutes = f"{run.result.wall_seconds / 60:.1f} min"
        rows.append([net, f"{test['accuracy']:.2f} %", f"{test['top5']:.2f} %", others, minutes])
    return pipes(["model", "test accuracy", "top-5", "the study", "time of the run"], rows)


def _ratios(claims: Sequence[Claim], names: tuple[str, ...] = RATIOS) -> list[str]:
    """The ratios of gradients over all epochs, at equal widths and between them; and what γ² does to the gain."""
    (claim,) = (claim for claim in claims if claim.id == HEADLINE)
    parts = [part for part in claim.parts if part.name.startswith(names) and ", epoch " not in part.name]
    lacking = [name for name in names if not any(part.name.startswith(name) for part in parts)]
    assert not lacking, f"{HEADLINE} has no part {lacking}"
    rows = [[part.name, _value(part), str(part.n)] for part in parts]
    return pipes(["ratio of the gradients' second moments at the ReLU outputs", "value [95 % interval]", "seeds"], rows)


def _accuracies(claims: Sequence[Claim]) -> list[str]:
    """A row a width and setting: test accuracies beside the two that the thesis has."""
    (claim,) = (claim for claim in claims if claim.id == HEADLINE)
    rows = []
    for part in claim.parts:
        setting, found, published = part.name.partition(": ours - ")
        if found and part.details:
            ours = part.details[0].rpartition(": ")[2]
            rows.append([setting, ours, str(part.n), published, _value(part), part.verdict])
    equal = next(part.criterion.partition(";")[0] for part in claim.parts if ": ours - " in part.name)
    return pipes(["net", "ours", "seeds", "the thesis", "difference [95 %]", f"equal: {equal}"], rows)


def _figures() -> list[str]:
    """A row a drawn figure: how far it is from the published one."""
    matches = json.loads((HERE / "figures" / "matches.json").read_text(encoding="utf-8"))["matches"]
    found = [match for match in matches if match["quantity"] == RMSE]
    rows = [[one["figure"], one["ours"].partition(";")[0], one["criterion"], ANSWERS[one["agrees"]]] for one in found]
    return pipes(["figure", RMSE, "criterion", "agrees"], rows)


def _verdicts(claims: Sequence[Claim]) -> list[str]:
    """A row a claim: its statement, its verdict and what decides it."""
    rows = []
    for claim in claims:
        deciding = [part for part in claim.parts if part.decides]
        texts = [f"{part.name}: {_value(part)}" for part in deciding if part.value is not None]
        missing = sum(part.value is None for part in deciding)
        texts += [f"{missing} of {len(deciding)} tests have no run yet"] if missing else []
        rows.append([f"{claim.id} {claim.statement}", claim.verdict, "; ".join(texts)])
    return pipes(["claim", "verdict", "what decides it"], rows)


def _value(part: Part) -> str:
    if part.value is None:
        return DASH
    interval = f" [{part.interval[0]:.3g}, {part.interval[1]:.3g}]" if part.interval is not None else ""
    return f"{part.value:.3g}{interval}"


if __name__ == "__main__":
    for name in TABLES:
        write_table(read_table(HERE / name), {}, HERE / name)
    blocks, costs = written(), measured()
    for path, text in pages().items():
        write_text(path, priced(refreshed(text, blocks), costs))
