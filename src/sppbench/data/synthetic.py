"""Random images of any size, for timing and for tests."""

from collections.abc import Sequence
from typing import Any

import torch

from sppbench.data.datamodule import ImageDataModule, Images
from sppbench.data.random import Stream, generator


class Synthetic(ImageDataModule):
    """Noise: independent uniform bytes and labels, drawn from the seed. A net can only memorize them.

    Args:
        train_size, test_size: images to train (besides those for validation) and to test with.
        mean, std: by default those of uniform bytes.
        options: the other arguments of :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> images = Synthetic(train_size=40, test_size=20, val_size=10, image_size=8).load()
        >>> images.train_images.shape, images.test_images.dtype
        (torch.Size([50, 8, 8, 3]), torch.uint8)
    """

    def __init__(
        self,
        train_size: int = 4096,
        test_size: int = 1024,
        *,
        num_classes: int = 100,
        in_channels: int = 3,
        image_size: int = 32,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.2898,
        val_size: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            mean=mean,
            std=std,
            val_size=val_size,
            **options,
        )
        for name, value in (("train_size", train_size), ("test_size", test_size)):
            if value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        self.train_size, self.test_size = train_size, test_size

    def load(self) -> Images:
        """Return ``train_size + val_size`` training and ``test_size`` test images."""
        chance = generator(self.seed, Stream.SYNTHETIC)
        train, test = self.train_size + self.val_size, self.test_size
        shape = (train + test, self.image_size, self.image_size, self.in_channels)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=chance)
        labels = torch.randint(self.num_classes, (train + test,), generator=chance)
        return Images(images[:train], labels[:train], images[train:], labels[train:])
