"""How the time to append to a history, to read it and to resume it grows with its length, as a Markdown table.

    python benchmarks/history_growth.py [--epochs 127 400]

The run is imagined: 28 layers with three signals, as the study's FFNN has, epochs of 79 steps, and parts that are
flushed every 50 steps and at the end of an epoch, as `SPPCallback` does. 127 epochs are 10,000 steps. Times are of one
process, without the time that it waits for others.

- append: the median of a flush.
- parts: the files of the history, and their size; values are random, which compresses less than those of a run.
- read: the whole history.
- end of epoch: the means of the last epoch, as they are formed when it ends.
- resume: what the callback does before the first step, with figures after the epochs 0, 9 and 19.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from machine import describe
from rounds import markdown
from sppbench.spp import read_history
from sppbench.spp.history.parts import Origin, list_parts
from sppbench.spp.history.run_history import RunHistory
from sppbench.spp.schedule import Schedule

LAYERS, PER_EPOCH, FLUSH = 28, 79, 50
RUN = Origin(run_id="growth")


def rows(first: int, end: int) -> pd.DataFrame:
    """What is recorded in the steps from ``first`` until before ``end``."""
    steps = np.arange(first, end).repeat(3 * LAYERS)
    layers = np.tile(np.arange(LAYERS).repeat(3), end - first)
    acsm, acv, mean, absmax = np.random.default_rng(first).lognormal(-5, 5, (4, len(steps)))
    return pd.DataFrame(
        {
            "step": steps,
            "epoch": steps // PER_EPOCH,
            "samples": 512,
            "depth": layers,
            "layer": np.char.add("block", layers.astype(str)),
            "kind": "Linear",
            "signal": np.tile(["activation", "gradient", "parameter"], LAYERS * (end - first)),
            "ndim": 2,
            "acsm": acsm,
            "acv": acv,
            "mean": mean,
            "nonfinite": 0,
            "absmax": absmax,
            "zeros": 0.0,
            "subnormal": np.nan,
        }
    )


def open_history(directory: Path, resume_at: int | None = None) -> RunHistory:
    return RunHistory(
        directory, RUN, resume_at=resume_at, earlier=None, batchnorm=False, schedule=Schedule(), blocks={}
    )


def measure(epochs: int, directory: Path) -> list[str]:
    history, appends = open_history(directory), []
    for epoch in range(epochs):
        begin, end = epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH
        for first, last in ((begin, begin + FLUSH), (begin + FLUSH, end)):
            frame, start = rows(first, last), time.process_time()
            history.append_signals(frame, last)
            appends.append(time.process_time() - start)
    last_epoch = range(end - PER_EPOCH, end)
    timed = [
        lambda: read_history(history.path),
        lambda: history.means([epochs - 1], last_epoch),
        lambda: open_history(directory, resume_at=end).means([0, 9, 19, epochs - 1]),
    ]
    seconds = []
    for call in timed:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    read, mean, resume = seconds
    return [
        f"{end:,}",
        f"{1000 * median(appends):.1f} ms",
        str(len(list_parts(history.path))),
        f"{sum(part.path.stat().st_size for part in list_parts(history.path)) / 1e6:.1f} MB",
        *(f"{read:.2f} s", f"{1000 * mean:.0f} ms", f"{resume:.2f} s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[127, 400])
    arguments = parser.parse_args()
    table = []
    for epochs in arguments.epochs:
        with tempfile.TemporaryDirectory() as directory:
            table.append(measure(epochs, Path(directory)))
    print(f"{describe()}\n")
    print(markdown(["steps", "append", "parts", "size", "read", "end of epoch", "resume"], table))


if __name__ == "__main__":
    main()
