"""Training images per second of each net, channels_last and NCHW in pairs, as a Markdown table.

    python benchmarks/training.py [--batch-size 512] [--rounds 5] [--device cpu]

A round is one optimizer step (Adam, fp32) on a batch from TensorLoader, augmentation included, in a plain loop. The two
layouts take turns within a round, so that a disturbance of the machine hits both; medians over the rounds are shown.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import chain, repeat
from statistics import median

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from machine import describe
from sppbench.data import Synthetic
from sppbench.files import config_directory

NETS = ("ffnn", "ffnn_bn", "efficientnet_nobn", "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp")


class Training:
    """A net in one memory format, with its optimizer."""

    def __init__(self, name: str, layout: torch.memory_format, device: torch.device) -> None:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = compose("train", [f"model={name}", "name=benchmark"])
        torch.manual_seed(0)
        self.layout = layout
        self.net: nn.Module = instantiate(cfg.model).to(device, memory_format=layout)
        self.optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer)(self.net.parameters())

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Does one optimizer step and returns its images per second."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images.contiguous(memory_format=self.layout)), labels).backward()
        self.optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        return len(labels) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    options = parser.parse_args()

    data = Synthetic(8 * options.batch_size, batch_size=options.batch_size)
    data.prepare_data()
    data.setup()
    batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(data.train_dataloader()))
    print(f"{describe()}; device {options.device}, batch {options.batch_size}, {options.rounds} rounds\n")
    print("| net | images/s, channels_last | range | images/s, NCHW | ratio (median of pairs) |")
    print("|---|---:|---:|---:|---:|")
    for name in options.nets:
        ours, usual = (
            Training(name, layout, options.device) for layout in (torch.channels_last, torch.contiguous_format)
        )
        rates = []
        for _ in range(options.rounds + 1):
            images, labels = (part.to(options.device) for part in next(batches))
            rates.append((ours.step(images, labels), usual.step(images, labels)))
        left, right = zip(*rates[1:], strict=True)
        ratio = median(a / b for a, b in rates[1:])
        spread = f"{min(left):,.0f} to {max(left):,.0f}"
        print(f"| {name} | {median(left):,.0f} | {spread} | {median(right):,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
