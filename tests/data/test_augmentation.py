"""Random crop and flip against NumPy, torchvision and their distributions."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms

from sppbench.data.augmentation import CropFlip
from sppbench.data.random import generator

# 0.9999 quantiles of chi-square by degrees of freedom.
CHI_SQUARE = {1: 15.14, 3: 21.11, 80: 135.78, 161: 236.43}


def coordinates(height: int, width: int) -> Tensor:
    """An image (H, W, 3) whose pixels say where they are, from 1 on: padding is 0."""
    row, column = torch.meshgrid(torch.arange(1, height + 1), torch.arange(1, width + 1), indexing="ij")
    return torch.stack([row, column, torch.ones_like(row)], dim=2).to(torch.uint8)


def decode(images: Tensor) -> Tensor:
    """Read (top, left, flip) of crops (N, 32, 32, 3) of the coordinate image off their middle pixels."""
    row, left, right = images[:, 16, 16, 0].long(), images[:, 16, 15, 1].long(), images[:, 16, 16, 1].long()
    flip = (right < left).long()
    column = torch.where(flip == 1, left, right)
    return torch.stack([row - 17 + 4, column - 17 + 4, flip], dim=1)


def chi_square(counts: Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (2, True), (0, False)])
@pytest.mark.parametrize("shape", [(32, 32, 3), (5, 8, 1)])
def test_equals_pad_crop_flip_of_each_sample(padding: int, flip: bool, shape: tuple[int, int, int]) -> None:
    height, width, _ = shape
    images = torch.randint(256, (20, *shape), dtype=torch.uint8, generator=generator(0))
    augmentation = CropFlip(padding, flip)
    index = torch.randperm(20, generator=generator(1))[:13]
    draws = augmentation.draw(13, generator(2))
    result = augmentation(augmentation.pad(images), index, draws)

    for sample, (top, left, mirrored), got in zip(index.tolist(), draws.tolist(), result, strict=True):
        pads = ((padding, padding), (padding, padding), (0, 0))
        crop = np.pad(images[sample].numpy(), pads)[top : top + height, left : left + width]
        assert np.array_equal(got.numpy(), crop[:, ::-1] if mirrored else crop)
    assert result.is_contiguous()
    assert result.dtype == torch.uint8


def test_offsets_are_uniform_and_independent() -> None:
    count = 81 * 2 * 100
    augmentation = CropFlip()
    images = coordinates(32, 32)[None]
    draws = augmentation.draw(count, generator(0))
    seen = decode(augmentation(augmentation.pad(images), torch.zeros(count, dtype=torch.long), draws))
    assert torch.equal(seen, draws)  # the picture shows what was drawn

    cell = (seen[:, 0] * 9 + seen[:, 1]) * 2 + seen[:, 2]
    assert chi_square(torch.bincount(cell, minlength=162)) < CHI_SQUARE[161]  # joint: all combinations alike
    for column in range(3):  # neighbours in a batch: each pair of values alike
        values = seen[:, column]
        sides = int(values.max()) + 1
        pairs = torch.bincount(values[:-1:2] * sides + values[1::2], minlength=sides * sides)
        assert chi_square(pairs) < CHI_SQUARE[sides * sides - 1]


def test_distribution_is_torchvisions() -> None:
    count = 6000
    reference = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(0.5)])
    image = coordinates(32, 32)
    torch.manual_seed(0)
    theirs = decode(torch.stack([reference(image.permute(2, 0, 1)) for _ in range(count)]).permute(0, 2, 3, 1))
    ours = CropFlip().draw(count, generator(0))
    for values, sides in ((9 * ours[:, 0] + ours[:, 1], 81), (ours[:, 2], 2)):
        a = torch.bincount(values, minlength=sides).float()
        b = torch.bincount(9 * theirs[:, 0] + theirs[:, 1] if sides == 81 else theirs[:, 2], minlength=sides).float()
        assert a.min() > 0
        assert b.min() > 0
        assert float(((a - b) ** 2 / (a + b)).sum()) < CHI_SQUARE[sides - 1]  # two samples of one distribution


def test_draws_do_not_depend_on_what_is_switched_off() -> None:
    both, crop = CropFlip(4, True).draw(50, generator(3)), CropFlip(4, False).draw(50, generator(3))
    assert torch.equal(both[:, :2], crop[:, :2])
    assert crop[:, 2].sum() == 0
