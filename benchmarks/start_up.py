"""Seconds from the command to the end of the first training step, beside the bare imports, as a Markdown table.

    python benchmarks/start_up.py [--root PATH] [--rounds 3]

Each command is a process of its own; they take turns. "Bare imports" is ``import torch, lightning, hydra``. The data is
CIFAR-100, from its cache after the first round, which is not counted (random images without ``--root``). The loggers
are the CSV file and, in a row of its own, also W&B, offline.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from machine import describe
from rounds import in_turns, markdown, spread

# Ends the process as soon as the first step is done: what follows is not asked for.
TRAIN = """
import os, sys
import sppbench.train as train
build = train.build
def build_and_stop(cfg, run):
    parts = build(cfg, run)
    step = parts.classifier.training_step
    def training_step(batch, batch_idx):
        step(batch, batch_idx)["loss"].backward()
        os._exit(0)
    parts.classifier.training_step = training_step
    return parts
train.build = build_and_stop
train.main()
os._exit(1)
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env={**os.environ, "WANDB_SILENT": "1"})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with CIFAR-100; random images without it")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one to warm up")
    options = parser.parse_args()
    data = [f"data.root={options.root.resolve()}"] if options.root else ["data=synthetic"]
    with tempfile.TemporaryDirectory() as folder:
        # Each time over the run that was cut off before.
        run = ["-c", TRAIN, "model=sn_efficientnet_mp", *data, f"output_dir={folder}/run", "overwrite=true"]
        commands = {
            "bare imports": ["-c", "import torch, lightning, hydra"],
            "first step, CSV": [*run, "logger=csv"],
            "first step, CSV and W&B": run,
            "train --help": ["-m", "sppbench.train", "--help"],
            "table --help": ["-m", "sppbench", "table", "--help"],
            "report --help": ["-m", "sppbench", "report", "--help"],
        }
        times = in_turns({name: partial(seconds, command) for name, command in commands.items()}, options.rounds)
    bare = median(times["bare imports"])
    rows = [
        [name, f"{median(values):.1f}", spread(values), f"{median(values) - bare:+.1f}"]
        for name, values in times.items()
    ]
    print(f"{describe()}, {options.rounds} rounds\n")
    print(markdown(["command", "seconds", "range", "above the bare imports"], rows))


if __name__ == "__main__":
    main()
