"""What numbers below float32's smallest normal one cost a training step on a CPU, as a Markdown table.

    python benchmarks/subnormal.py [--rounds 5] [--nets sn_efficientnet_mp efficientnet_bn ffnn]

Training steps (Adam, fp32, channels_last, batch 128, one thread) take turns: with gradients as they are, and with
gradients of 1e-34 times the size, which are subnormal, as in a net that dies. Both with ``torch.set_flush_denormal``
off and on. Medians; ratios are those of each round.
"""

import argparse
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from machine import describe
from rounds import in_turns, markdown, ratio, spread, timed
from spp_overhead import Plain
from sppbench.run.memory import prepare_memory

NETS = ("sn_efficientnet_mp", "efficientnet_bn", "ffnn")
BATCH, TINY = 128, 1e-34
CPU = torch.device("cpu")


class Dying(Plain):
    """Its gradients are subnormal, from the logits on."""

    def __init__(self, name: str, batch: int, device: torch.device) -> None:
        super().__init__(name, batch, device)
        self.net.register_forward_hook(self._weaken)

    def _weaken(self, net: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        logits.register_hook(lambda gradient: gradient * TINY)


def step_time(step: Plain, flush: bool) -> float:
    """Seconds of one step."""
    torch.set_flush_denormal(flush)
    return timed(step, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", nargs="+", default=NETS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the setting is one of each thread
    prepare_memory()
    rows = []
    for name in options.nets:
        for kind, make in (("as it is", Plain), ("dying", Dying)):
            step = make(name, BATCH, CPU)
            variants = {"off": partial(step_time, step, flush=False), "on": partial(step_time, step, flush=True)}
            times = in_turns(variants, options.rounds)
            cells = [cell for how in times.values() for cell in (f"{1e3 * median(how):,.0f}", spread(how, 1e3, 0))]
            rows.append([f"{name}, {kind}", *cells, f"{ratio(times['off'], times['on']):.1f}"])
    print(f"{describe()}; {options.rounds} rounds\n")
    print(markdown(["ms a step", "IEEE 754", "range", "flushed to 0", "range", "ratio"], rows))


if __name__ == "__main__":
    main()
