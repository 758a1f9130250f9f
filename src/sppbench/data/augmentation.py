"""Random crop and flip of a whole batch at once."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CropFlip:
    """Random crop after zero padding, then a random horizontal flip, drawn for each sample.

    Distributed as torchvision's ``RandomCrop(size, padding)`` followed by ``RandomHorizontalFlip(0.5)``.

    Attributes:
        padding: zeros added on each side, in pixels; 0 crops nothing.
        flip: whether to flip half of the samples.

    Example:
        >>> augment = CropFlip(padding=4)
        >>> padded = augment.pad(torch.zeros(10, 32, 32, 3, dtype=torch.uint8))
        >>> draws = augment.draw(2, torch.Generator().manual_seed(0))
        >>> augment(padded, torch.tensor([7, 3]), draws).shape
        torch.Size([2, 32, 32, 3])
    """

    padding: int = 4
    flip: bool = True

    def pad(self, images: Tensor) -> Tensor:
        """Pad uint8 images ``(N, H, W, C)`` to ``(N, H + 2 padding, W + 2 padding, C)``, contiguous.

        Done once for a data set, so that a batch is a single gather.
        """
        p = self.padding
        return functional.pad(images, (0, 0, p, p, p, p)).contiguous()

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw int64 ``(count, 3)``: top and left of the crop in the padded image, and whether to flip (0 or 1)."""
        corner = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        flip = torch.randint(2, (count, 1), generator=generator) * int(self.flip)
        return torch.cat([corner, flip], dim=1)

    def __call__(self, padded: Tensor, index: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip samples of a padded data set.

        Args:
            padded: uint8 ``(N, H + 2 padding, W + 2 padding, C)`` from :meth:`pad`.
            index: int64 ``(B,)``, the samples.
            draws: int64 ``(B, 3)`` from :meth:`draw`, on the images' device.

        Returns:
            uint8 ``(B, H, W, C)``, contiguous.
        """
        _, padded_height, padded_width, channels = padded.shape
        height, width = padded_height - 2 * self.padding, padded_width - 2 * self.padding
        top, left, flip = draws.unsqueeze(2).unbind(1)  # (B, 1) each
        column = torch.arange(width, device=padded.device)
        rows = top + torch.arange(height, device=padded.device)
        columns = left + torch.where(flip.bool(), width - 1 - column, column)
        # One gather of whole pixels by their number in the data set: 3 times as fast here as three index tensors.
        pixels = ((index[:, None] * padded_height + rows) * padded_width)[:, :, None] + columns[:, None, :]
        return padded.view(-1, channels).index_select(0, pixels.flatten()).view(len(index), height, width, channels)
