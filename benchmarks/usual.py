"""Training images per second of EfficientNet-B0 here, and trained the usual way, in one run, as a Markdown table.

    python benchmarks/usual.py [--root PATH] [--rounds 3]

Usual is: torchvision's transforms on PIL images in a DataLoader (0 or 2 workers), NCHW, eager, a plain PyTorch loop,
with the same net, and with timm's own ``efficientnet_b0`` where timm is installed. Ours is a plain loop, too, over
TensorLoader with the settings of a run: channels_last, fused Adam, our convolutions; what Lightning adds is measured by
``lightning_overhead.py``. On a CPU memory is kept, as in a run, for all of them. All train with Adam on batches of 512
augmented CIFAR-100 images (random images without ``--root``). A round is two optimizer steps of each variant, loading
included, after one that is not timed; the variants take turns, in which workers load ahead for theirs.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loader import usual
from machine import describe
from rounds import in_turns, markdown, ratio, spread, timed
from sppbench.data import CIFAR100, ImageDataModule, Synthetic
from sppbench.models import EfficientNet
from sppbench.run.memory import prepare_memory
from training import with_torchs_convolutions

STEPS = 2


class Loop:
    """A plain training loop over endless batches; a call does two steps and returns seconds."""

    def __init__(
        self,
        net: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        device: torch.device,
        ours: bool = False,
    ) -> None:
        self.layout = torch.channels_last if ours else torch.contiguous_format
        self.net, self.device = net.to(device, memory_format=self.layout), device
        self.batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(batches))
        self.optimizer = torch.optim.Adam(self.net.parameters(), fused=True if ours else None)

    def step(self) -> None:
        images, labels = (part.to(self.device, non_blocking=True) for part in next(self.batches))
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images.contiguous(memory_format=self.layout)), labels).backward()
        self.optimizer.step()

    def steps(self) -> None:
        for _ in range(STEPS):
            self.step()

    def __call__(self) -> float:
        self.step()  # after the others' turns
        return timed(self.steps, self.device)


def variants(data: ImageDataModule, device: torch.device) -> dict[str, Callable[[], float]]:
    """The loops by name, ours first."""

    torch.manual_seed(0)
    net = EfficientNet(in_channels=3, num_classes=100)
    count = 8 * data.batch_size
    loops = {"sppbench": Loop(net, data.train_dataloader(), device, ours=True)}
    for workers in (0, 2):
        name = f"usual: PIL, DataLoader with {workers} workers, NCHW"
        loops[name] = Loop(with_torchs_convolutions(net), usual(data, count, workers), device)
    with suppress(ImportError):
        import timm

        for workers in (0, 2):
            torch.manual_seed(0)
            theirs = timm.create_model("efficientnet_b0", num_classes=100)
            loops[f"timm's efficientnet_b0, the same with {workers} workers"] = Loop(
                theirs, usual(data, count, workers), device
            )
    return dict(loops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with CIFAR-100; random images without it")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device.type == "cpu":
        prepare_memory()

    data = CIFAR100(options.root, download=False) if options.root else Synthetic(40_000, val_size=10_000)
    data.prepare_data()
    data.setup()
    times = in_turns(variants(data, options.device), options.rounds)
    images = STEPS * data.batch_size
    ours = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        rates = [images / seconds for seconds in values]
        rows.append([name, f"{median(rates):,.0f}", spread(rates, digits=0), f"{ratio(values, ours):.2f}"])
    source = "CIFAR-100" if options.root else "random images"
    print(f"{describe()}; device {options.device}, {source}, batch {data.batch_size}, {options.rounds} rounds\n")
    print(markdown(["training EfficientNet-B0", "images/s", "range", "time, in ours"], rows))


if __name__ == "__main__":
    main()
