"""The base of all image data sets: checks, the train/validation split, loaders on the right device."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from sppbench.data.augmentation import CropFlip
from sppbench.data.loader import TensorLoader
from sppbench.data.random import Stream, generator
from sppbench.errors import DataError


class Images(NamedTuple):
    """A data set on the CPU: images uint8 ``(N, H, W, C)``, labels int64 ``(N,)``.

    Example:
        >>> pixels, labels = torch.zeros(10, 8, 8, 3, dtype=torch.uint8), torch.arange(10)
        >>> Images(pixels, labels, pixels, labels)._fields
        ('train_images', 'train_labels', 'test_images', 'test_labels')
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split(count: int, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``count`` samples at random; return int64 indices of the training and ``val_size`` validation samples."""
    order = torch.randperm(count, generator=generator(seed, Stream.SPLIT))
    return order[val_size:], order[:val_size]


class ImageDataModule(LightningDataModule):
    """Serves a data set that fits in memory, from the device that trains. A subclass implements :meth:`load`.

    Training batches are shuffled and augmented; validation and test batches are neither. Works without a Trainer as
    well (on the CPU): ``prepare_data()``, ``setup()``, ``train_dataloader()``.

    Args:
        num_classes, in_channels, image_size: what the nets are built for; the data is checked against them.
        mean, std: of each channel, or one for all, for pixels scaled to 0..1.
        val_size: training images set aside for validation, drawn from the seed; with 0 there is no validation.
        batch_size: samples in a batch, over all devices.
        padding: of the random crop, in pixels.
        flip: whether to flip training images at random.
        seed: of split, order and augmentation.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> class Blank(ImageDataModule):
        ...     def load(self) -> Images:
        ...         pixels, labels = torch.zeros(10, 8, 8, 1, dtype=torch.uint8), torch.arange(10)
        ...         return Images(pixels, labels, pixels, labels)
        >>> data = Blank(num_classes=10, in_channels=1, image_size=8, mean=0.5, std=0.5, val_size=4)
        >>> data.prepare_data(); data.setup()
        >>> [len(labels) for images, labels in data.train_dataloader()]
        [6]
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        val_size: int,
        batch_size: int = 512,
        padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least = {"num_classes": (num_classes, 1), "in_channels": (in_channels, 1), "image_size": (image_size, 1)}
        at_least |= {
            "batch_size": (batch_size, 1),
            "val_size": (val_size, 0),
            "padding": (padding, 0),
            "seed": (seed, 0),
        }
        for name, (value, least) in at_least.items():
            if not isinstance(value, int):
                raise ValueError(f"data.{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}")
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.mean = _per_channel("mean", mean, in_channels)
        self.std = _per_channel("std", std, in_channels)
        if min(self.std) <= 0:
            raise ValueError(f"data.std must be positive, got {list(self.std)}")
        self.val_size, self.batch_size, self.seed = val_size, batch_size, seed
        self.augmentation = CropFlip(padding, flip) if padding or flip else None
        self._loaded: Images | None = None
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def load(self) -> Images:
        """Return the data set; must be safe to call in several processes at once.

        Raises:
            DataError: the data is missing or damaged.
        """

    def prepare_data(self) -> None:
        """Load the data set, so that whatever is made once (a download, a cache) is made by one process.

        Raises:
            DataError: the data is missing or damaged.
        """
        if self._loaded is None and not self._parts:
            self._loaded = self.load()
            self._check(self._loaded)

    def setup(self, stage: str | None = None) -> None:
        """Check and split the data set and move it to the device that trains. All stages are set up at once.

        Raises:
            DataError: the data is missing, damaged or not what the arguments say.
        """
        if not self._parts:
            # Only the process that ran prepare_data has loaded it already.
            images = self._loaded or self.load()
            self._check(images)
            self._loaded = None
            train, val = split(len(images.train_labels), self.val_size, self.seed)
            self._parts = {
                "train": (images.train_images[train], images.train_labels[train]),
                "val": (images.train_images[val], images.train_labels[val]),
                "test": (images.test_images, images.test_labels),
            }
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        self._parts = {name: (images.to(device), labels.to(device)) for name, (images, labels) in self._parts.items()}

    def train_dataloader(self) -> TensorLoader:
        """Return shuffled, augmented training batches."""
        return self._loader("train", shuffle=True, augmentation=self.augmentation)

    def val_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return validation batches; an empty list, which Lightning takes for no validation, where val_size is 0."""
        return self._loader("val") if self.val_size else []

    def test_dataloader(self) -> TensorLoader:
        """Return test batches."""
        return self._loader("test")

    def training_evaluation_dataloader(self, images: int = 10_000) -> TensorLoader:
        """Batches of the first training images, in a fixed order, without augmentation.

        Unlike with the other loaders, each process of a distributed run gets all of them, not a share.

        Args:
            images: How many; fewer where the training set is smaller.
        """
        pixels, labels = self._parts["train"]
        return TensorLoader(pixels[:images], labels[:images], self.batch_size, self.mean, self.std)

    def _loader(self, part: str, shuffle: bool = False, augmentation: CropFlip | None = None) -> TensorLoader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return TensorLoader(
            *self._parts[part],
            self.batch_size,
            self.mean,
            self.std,
            shuffle=shuffle,
            augmentation=augmentation,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def _check(self, images: Images) -> None:
        shape = (self.image_size, self.image_size, self.in_channels)
        for part in ("train", "test"):
            pixels, labels = getattr(images, f"{part}_images"), getattr(images, f"{part}_labels")
            if len(labels) == 0:
                raise DataError(f"the {part} set is empty")
            if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (len(labels), *shape):
                raise DataError(
                    f"{len(labels)} {part} images must be uint8 of (height, width, channels) {shape} as "
                    f"data.image_size and data.in_channels say, got {pixels.dtype} {tuple(pixels.shape)}"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise DataError(f"{part} labels must be below data.num_classes={self.num_classes}, got {low}..{high}")
        if self.val_size >= len(images.train_labels):
            raise DataError(
                f"data.val_size={self.val_size} leaves none of the {len(images.train_labels)} training images"
            )


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = (float(value),) * channels if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    if len(values) != channels:
        raise ValueError(f"data.{name} must be one number or {channels}, one for each channel, got {list(values)}")
    return values
