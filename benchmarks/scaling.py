"""How the cost of the probe grows with batch, width, depth and number of layers, as Markdown tables.

    python benchmarks/scaling.py [--rounds 7]

Fully connected nets with batch normalization, Adam, fp32; one quantity is varied at a time around batch 512, width 512
and 8 blocks. The same step with ``SignalProbe`` and without takes turns; the ratio is the median of the pairs. "µs a
tensor" is the difference by the number of tensors that are read in a step: activations, gradients and weights.
"""

import argparse
from statistics import median

import torch
from torch.nn import functional as F

from machine import describe
from rounds import in_turns, markdown, ratio, timed
from sppbench.models import FFNN
from sppbench.run.memory import prepare_memory
from sppbench.spp import SignalProbe

BASE = {"batch": 512, "width": 512, "blocks": 8, "layers": 1.0}
VARIED = {"batch": (64, 512, 4096), "width": (64, 512, 2048), "blocks": (2, 8, 32), "layers": (0.25, 0.5, 1.0)}


class Step:
    """A net and its optimizer; a call does one training step and returns its seconds."""

    def __init__(self, batch: int, width: int, blocks: int, share: float | None, device: torch.device) -> None:
        torch.manual_seed(0)
        self.net = FFNN(hidden_features=width, depth=blocks, normalization="batch_norm").to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), fused=True)
        self.images = torch.randn(batch, 3, 32, 32, device=device)
        self.labels = torch.randint(100, (batch,), device=device)
        self.device = device
        names = [name for name, module in self.net.named_modules() if not list(module.children())]
        self.probe = SignalProbe(self.net, names[: round(share * len(names))]) if share is not None else None
        self.tensors = 0

    def run(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimizer.step()
        if self.probe is not None and (readings := self.probe.readings()) is not None:
            self.tensors = len(readings.rows)

    def __call__(self) -> float:
        return timed(self.run, self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after three to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device.type == "cpu":
        prepare_memory()
    print(f"{describe()}; device {options.device}, {options.rounds} rounds")
    for varied, values in VARIED.items():
        rows = []
        for value in values:
            case = {**BASE, varied: value}
            size = int(case["batch"]), int(case["width"]), int(case["blocks"])
            plain, probed = Step(*size, None, options.device), Step(*size, case["layers"], options.device)
            times = in_turns({"plain": plain, "probed": probed}, options.rounds, warm_up=3)
            cost = median(b - a for a, b in zip(times["plain"], times["probed"], strict=True))
            rows.append(
                [
                    f"{varied} {value}",
                    f"{1e3 * median(times['plain']):.1f}",
                    probed.tensors,
                    f"{1e6 * cost / probed.tensors:.0f}",
                    f"{ratio(times['probed'], times['plain']):.2f}",
                ]
            )
        print("\n" + markdown([varied, "plain, ms a step", "tensors", "µs a tensor", "ratio"], rows), flush=True)


if __name__ == "__main__":
    main()
