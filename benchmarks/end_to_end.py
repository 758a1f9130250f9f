"""What whole runs took, and what all 60 cells of Table 1 would take one after the other, as a Markdown table.

    python benchmarks/end_to_end.py outputs

It reads the result.json of runs of 20 epochs; nothing is run. Wall seconds are those of whole runs, from the start to
the test, all parts of an interrupted one added up. A projection is the median over the runs of a net, times 15.
"""

import argparse
from pathlib import Path
from statistics import median

from rounds import markdown, spread
from sppbench.evidence.runs import Run
from sppbench.evidence.selection import read_evidence

CELLS = 15  # three learning rates, five seeds
TABLE1 = ("efficientnet_nobn", "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    found: dict[tuple[str, str, int], list[Run]] = {}
    for run in read_evidence(options.directory).runs:
        result = run.result
        if result is not None and run.state == "completed" and result.epochs == options.epochs:
            found.setdefault((run.model, result.device, result.threads), []).append(run)
    rows = []
    walls: dict[str, float] = {}
    for (model, device, threads), runs in found.items():
        seconds = [run.result.wall_seconds for run in runs if run.result is not None]
        walls[model] = min(median(seconds), walls.get(model, float("inf")))
        rate = median(run.result.images_per_second or 0 for run in runs if run.result is not None)
        cells = [len(runs), f"{rate:,.0f}", f"{median(seconds) / 60:.1f}", spread(seconds, 1 / 60)]
        rows.append([model, f"{device}, {threads} threads", *cells])
    print(markdown(["net", "device", "runs", "images/s", "minutes a run", "range"], rows))
    if all(model in walls for model in TABLE1):
        hours = CELLS * sum(walls[model] for model in TABLE1) / 3600
        print(f"\nTable 1, {CELLS * len(TABLE1)} cells one after the other, projected: {hours:.1f} hours")
    else:
        print(f"\nTable 1 cannot be projected without runs of {', '.join(m for m in TABLE1 if m not in walls)}")


if __name__ == "__main__":
    main()
