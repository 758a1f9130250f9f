"""What it gives to map the constants of PyTorch's library before a training on a CPU, as a Markdown table.

    python benchmarks/constants.py [--rounds 3] [--nets sn_efficientnet_mp ffnn]

A process computes a function of 4.7 million numbers, or does a training step (Adam, fp32, channels_last, batch 512),
seven times and tells the median of the last four. Processes with and without ``map_constants`` take turns; medians over
the rounds. A function is at its slowest in a process that does nothing else. In others, another function may have read
from the page of its constants, which makes it fast.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from machine import describe
from rounds import markdown, ratio, spread, timed
from spp_overhead import Plain
from sppbench.run.memory import keep_freed_memory, map_constants

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "SELU": F.selu,
    "SiLU": F.silu,
    "softmax": lambda x: torch.softmax(x, dim=1),
    "softplus": F.softplus,
    "GELU": F.gelu,
    "ReLU": torch.relu,
}
NETS = ("sn_efficientnet_mp", "nf_efficientnet", "efficientnet_bn", "ffnn")
REPEATS, WARM_UP = 7, 3
CPU = torch.device("cpu")


def measure(name: str, mapped: bool) -> None:
    """Prints the seconds that a process needs for it."""
    keep_freed_memory()
    if mapped:
        map_constants()
    if name in FUNCTIONS:
        x = torch.randn(512, 144, 8, 8)
        times = [timed(lambda: FUNCTIONS[name](x), CPU) for _ in range(REPEATS)]
    else:
        step = Plain(name, 512, CPU)
        times = [timed(step, CPU) for _ in range(REPEATS)]
    print(median(times[WARM_UP:]))


def told(name: str, how: str) -> float:
    command = [sys.executable, __file__, "--measure", name, how]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "mapped|left"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], options.measure[1] == "mapped")
        return
    rows = []
    for name in (*FUNCTIONS, *options.nets):
        rounds = [(told(name, "left"), told(name, "mapped")) for _ in range(options.rounds)]
        left, mapped = zip(*rounds, strict=True)
        cells = [f"{1e3 * median(left):.1f}", spread(left, 1e3), f"{1e3 * median(mapped):.1f}", spread(mapped, 1e3)]
        rows.append([name, *cells, f"{ratio(left, mapped):.1f}"])
    print(f"{describe()}; {torch.backends.cpu.get_cpu_capability()}; {options.rounds} rounds\n")
    print(markdown(["ms", "constants left", "range", "mapped", "range", "left / mapped"], rows))


if __name__ == "__main__":
    main()
