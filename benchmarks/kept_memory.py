"""What it gives to keep memory from step to step on a CPU, as a Markdown table.

    python benchmarks/kept_memory.py [--rounds 3] [--nets efficientnet_bn ffnn_bn]

A process does ten training steps (Adam, fp32, channels_last, batch 512) and tells the median of the last seven, the
page faults of a step and the most memory that it held. Processes with and without it take turns; medians over the
rounds.
"""

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from statistics import median

import torch

from machine import describe
from rounds import markdown, ratio, spread, timed
from spp_overhead import Plain
from sppbench.run.memory import keep_freed_memory, map_constants

STEPS, WARM_UP = 10, 3


def measure(name: str, kept: bool) -> None:
    """Prints what a process has to tell."""
    map_constants()
    if kept:
        keep_freed_memory()
    step = Plain(name, 512, torch.device("cpu"))
    times, faults = [], []
    for _ in range(STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(timed(step, torch.device("cpu")))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([median(times[WARM_UP:]), median(faults[WARM_UP:]), most]))


def told(name: str, how: str) -> list[float]:
    command = [sys.executable, __file__, "--measure", name, how]
    numbers: list[float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=["efficientnet_bn", "ffnn_bn"])
    parser.add_argument("--measure", nargs=2, metavar=("NET", "kept|returned"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], options.measure[1] == "kept")
        return
    rows = []
    for name in options.nets:
        tell = partial(told, name)
        rounds = [(tell("returned"), tell("kept")) for _ in range(options.rounds)]
        returned, kept = zip(*rounds, strict=True)
        for label, runs in (("returned to the system", returned), ("kept", kept)):
            seconds, faults, most = zip(*runs, strict=True)
            cells = [f"{1e3 * median(seconds):.0f}", spread(seconds, 1e3, 0), f"{median(faults):,.0f}"]
            quotient = ratio(seconds, [run[0] for run in returned])
            rows.append([f"{name}, {label}", *cells, f"{median(most):,.0f}", f"{quotient:.2f}"])
    print(f"{describe()}; {options.rounds} rounds\n")
    print(markdown(["memory", "ms a step", "range", "page faults a step", "MiB at most", "ratio"], rows))


if __name__ == "__main__":
    main()
