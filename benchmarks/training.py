"""Training images per second of each net, with each thing that is done for speed, in pairs, as a Markdown table.

    python benchmarks/training.py [--batch-size 512] [--rounds 3] [--device cuda] [--compile reduce-overhead]

A column adds one thing to the column before: NCHW, with torch's default Adam and convolutions; channels_last; Adam
fused; our own convolutions, which do no more than small images need; with ``--compile`` the net compiled. On a CPU
memory is kept and constants are mapped for all of them (``kept_memory.py`` and ``constants.py`` measure that). A
round is one timed optimizer step (Adam, fp32) of each, after one that is not timed, on batches from TensorLoader, in
a plain loop; the variants take turns. A rate is the median over the rounds, the ratio that of the pairs of last and
first column. The projection is for 15 runs of 20 epochs of 40,000 images a net, without the probe, validation and
start.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F

from machine import COMPILE, describe, how_to_compile
from rounds import in_turns, markdown, ratio, timed
from sppbench.data import Synthetic
from sppbench.files import config_directory
from sppbench.models.convolution import Conv2d
from sppbench.run.memory import prepare_memory

TABLE1 = ("efficientnet_nobn", "efficientnet_bn", "sn_efficientnet_nomp", "sn_efficientnet_mp")
NETS = ("ffnn", "ffnn_bn", "ffnn_bn_h100", *TABLE1)
IMAGES_OF_A_NET = 15 * 20 * 40_000


def with_torchs_convolutions(net: nn.Module) -> nn.Module:
    """A copy of a net whose convolutions are torch's own."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, Conv2d):
            module.__class__ = nn.Conv2d
    return net


class Training:
    """A net with its optimizer; a call does two steps and returns the seconds of the second one."""

    def __init__(
        self,
        name: str,
        batches: Iterator[tuple[Tensor, Tensor]],
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        fused: bool = False,
        ours: bool = False,
        mode: str | None = None,
    ) -> None:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = compose(
                "train", [f"model={name}", "name=benchmark", f"optimizer.fused={'true' if fused else 'null'}"]
            )
        torch.manual_seed(0)
        net: nn.Module = instantiate(cfg.model)
        self.net = (net if ours else with_torchs_convolutions(net)).to(device, memory_format=layout)
        if mode is not None:
            self.net.compile(**how_to_compile(mode))
        self.optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer)(self.net.parameters())
        self.batches, self.device, self.layout = batches, device, layout

    def step(self) -> None:
        images, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images.contiguous(memory_format=self.layout)), labels).backward()
        self.optimizer.step()

    def __call__(self) -> float:
        self.step()
        return timed(self.step, self.device)


def endless_batches(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random images and labels from TensorLoader, without end."""
    data = Synthetic(8 * batch_size, batch_size=batch_size)
    data.prepare_data()
    data.setup()
    return chain.from_iterable(repeat(data.train_dataloader()))


def variants(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each column adds, all that is before it included."""
    layout: dict[str, Any] = {"layout": torch.channels_last}
    found = {"NCHW": {}, "channels_last": layout, "and fused Adam": layout | {"fused": True}}
    last = layout | {"fused": True, "ours": True}
    found["and our convolutions"] = last
    if options.compile:
        found[f"and compiled ({options.compile})"] = last | {"mode": options.compile}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", help=COMPILE)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    options = parser.parse_args()
    if options.device.type == "cpu":
        prepare_memory()

    batches = endless_batches(options.batch_size)
    rows, rates = [], {}
    for name in options.nets:
        trainings: dict[str, Callable[[], float]] = {
            column: Training(name, batches, options.device, **settings)
            for column, settings in variants(options).items()
        }
        times = list(in_turns(trainings, options.rounds).values())
        rates[name] = options.batch_size / median(times[-1])
        cells = [f"{options.batch_size / median(values):,.0f}" for values in times]
        rows.append([name, *cells, f"{ratio(times[0], times[-1]):.2f}"])
    print(f"{describe()}; device {options.device}, batch {options.batch_size}, {options.rounds} rounds; images/s\n")
    print(markdown(["net", *variants(options), "last / first"], rows))
    if set(TABLE1) <= set(rates):
        hours = sum(IMAGES_OF_A_NET / rates[name] for name in TABLE1) / 3600
        print(f"\nTable 1, 60 runs one after the other, projected from these steps: {hours:.1f} hours")


if __name__ == "__main__":
    main()
