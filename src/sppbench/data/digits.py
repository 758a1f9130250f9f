"""Handwritten digits that come with scikit-learn: real images without a download."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from sppbench.data.datamodule import ImageDataModule, Images

TEST_SIZE = 297


class Digits(ImageDataModule):
    """The 1,797 8x8 digits of scikit-learn, enlarged to ``image_size`` and repeated over ``in_channels``.

    The last 297 are the test set, the same for all seeds.

    Args:
        options: the other arguments of :class:`ImageDataModule`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> data = Digits(batch_size=100)
        >>> data.prepare_data(); data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, len(data.train_dataloader())
        (torch.Size([100, 3, 32, 32]), 12)
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        mean: float | Sequence[float] = 0.3051,
        std: float | Sequence[float] = 0.3222,
        val_size: int = 300,
        batch_size: int = 128,
        flip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            mean=mean,
            std=std,
            val_size=val_size,
            batch_size=batch_size,
            flip=flip,  # off: a mirrored digit is not a digit
            **options,
        )

    def load(self) -> Images:
        """Return 1,500 training and 297 test images."""
        from sklearn.datasets import load_digits  # slow to import, and only needed here

        digits = load_digits()
        grey = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
        size = (self.image_size, self.image_size)
        grey = functional.interpolate(grey, size, mode="bilinear", align_corners=False).round().to(torch.uint8)
        images = grey.permute(0, 2, 3, 1).repeat(1, 1, 1, self.in_channels)
        labels = torch.from_numpy(digits.target).long()
        return Images(images[:-TEST_SIZE], labels[:-TEST_SIZE], images[-TEST_SIZE:], labels[-TEST_SIZE:])
