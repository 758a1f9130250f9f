"""Time of a training step of the normalizer-free nets over that of efficientnet_bn, in pairs, as a Markdown table.

    python benchmarks/normalizer_free.py [--batch-size 512] [--rounds 9] [--device cuda]

A round is one timed optimizer step (Adam, fp32) of each net, after one that is not timed, on batches from TensorLoader,
in a plain loop, with all that runs have for speed: channels_last, fused Adam, our convolutions. The nets take turns; a
ratio is the median over the rounds.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch

from machine import describe
from rounds import in_turns, markdown, ratio, spread
from sppbench.run.memory import prepare_memory
from training import Training, endless_batches

REFERENCE = "efficientnet_bn"
NETS = (
    REFERENCE,
    "efficientnet_bn_regularized",
    "sn_efficientnet_nomp",
    "sn_efficientnet_mp",
    "nf_efficientnet",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds, after one to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device.type == "cpu":
        prepare_memory()

    batches = endless_batches(options.batch_size)
    trainings: dict[str, Callable[[], float]] = {
        name: Training(name, batches, options.device, torch.channels_last, fused=True, ours=True) for name in NETS
    }
    times = in_turns(trainings, options.rounds)
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[REFERENCE], strict=True)]
        rate = f"{options.batch_size / median(seconds):,.0f}"
        rows.append([name, rate, f"{ratio(seconds, times[REFERENCE]):.2f}", spread(ratios, digits=2)])
    print(f"{describe()}; device {options.device}, batch {options.batch_size}, {options.rounds} rounds\n")
    print(markdown(["net", "images/s", f"step over {REFERENCE}", "range"], rows))


if __name__ == "__main__":
    main()
