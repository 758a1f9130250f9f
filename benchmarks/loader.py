"""Images per second of sppbench's TensorLoader and of the usual DataLoader, in one run, as a Markdown table.

    python benchmarks/loader.py [--root PATH]

Both serve augmented, normalised training batches of CIFAR-100 (of random images without ``--root``). The variants take
turns, so that a disturbance of the machine hits all of them; the medians over the rounds are shown.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from machine import describe
from sppbench.data import CIFAR100, ImageDataModule, Synthetic


class PILImages(Dataset[tuple[Tensor, int]]):
    """Serves images as torchvision's CIFAR100 does: from an array, through PIL, through the transform."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = images.numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual(data: ImageDataModule, count: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return the usual loader over the first ``count`` images; its workers live on between the epochs."""
    images = data.load()
    transform = transforms.Compose(
        [
            transforms.RandomCrop(data.image_size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    dataset = PILImages(images.train_images[:count], images.train_labels[:count], transform)
    return DataLoader(
        dataset, data.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=False
    )


def images_per_second(loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Time one epoch, the start of its iterator included."""
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with CIFAR-100; random images without it")
    parser.add_argument("--images", type=int, default=10_240, help="images that the usual loaders serve a round")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    options = parser.parse_args()

    data = CIFAR100(options.root, download=False) if options.root else Synthetic(40_000, val_size=10_000)
    data.prepare_data()
    data.setup()
    loaders: dict[str, Iterable[tuple[Tensor, Tensor]]] = {
        "TensorLoader": data.train_dataloader(),
        "PIL + DataLoader, 0 workers": usual(data, options.images, 0),
        "PIL + DataLoader, 2 workers": usual(data, options.images, 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for round_ in range(options.rounds + 1):
        for name, loader in loaders.items():
            rate = images_per_second(loader)
            if round_:
                rates[name].append(rate)

    ours = rates["TensorLoader"]
    source = "CIFAR-100" if options.root else "random images"
    print(f"{describe()}; {source}, batch {data.batch_size}, {options.rounds} rounds\n")
    print("| loader | images/s (median) | range | TensorLoader is faster by (median of pairs) |\n|---|---:|---:|---:|")
    for name, values in rates.items():
        ratio = median(a / b for a, b in zip(ours, values, strict=True))
        print(f"| {name} | {median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} | {ratio:.1f}x |")


if __name__ == "__main__":
    main()
