"""What a net is looked at with: noise of the right shape, tokens, or one's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sppbench.look.nets import LookError, Net
from sppbench.run.error_text import one_line

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


def noise(net: Net, batch: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """Standard normal noise (batch, *shape), or uniformly drawn tokens (batch, length).

    Args:
        net: What takes it.
        batch: The number of samples.
        shape: Of one sample; by default what the net's library says, or what its first layer takes.

    Raises:
        LookError: The shape is not known.
    """
    first = first_layer(net.module)
    tokens = net.tokens or (first.num_embeddings if isinstance(first, nn.Embedding) else None)
    shape = shape or net.shape or _guess(first)
    if shape is None:
        raise LookError(
            f"the input shape of {net.name} is not known: give the shape of one sample, as in --input 3,32,32"
        )
    return torch.randint(tokens, (batch, *shape)) if tokens else torch.randn(batch, *shape)


def first_layer(module: nn.Module) -> nn.Module | None:
    """The first leaf that has a weight, in the order in which they are registered."""
    leaves = (one for one in module.modules() if next(one.children(), None) is None)
    return next((one for one in leaves if next(one.parameters(recurse=False), None) is not None), None)


def _guess(first: nn.Module | None) -> tuple[int, ...] | None:
    """What a first layer takes, without the batch; of places as many as pass a usual net."""
    if isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        places = {1: (256,), 2: (64, 64), 3: (16, 32, 32)}[len(first.kernel_size)]
        return (first.in_channels, *places)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, nn.RNNBase):
        return (32, first.input_size)
    return (64,) if isinstance(first, nn.Embedding) else None


def images(net: Net, folder: Path, batch: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """The first images of a folder, at any depth, cut to squares and normalized: (batch, C, H, W).

    Raises:
        LookError: The net takes none, there is none, or one cannot be read.
    """
    shape = shape or net.shape or _guess(first_layer(net.module))
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        raise LookError(f"{net.name} is not known to take images: leave out --images, or give --input")
    if not folder.is_dir():
        raise LookError(f"--images: {folder} is not a directory")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)[:batch]
    if not files:
        raise LookError(f"--images: there is no image in {folder}: looked for {', '.join(PICTURES)}")
    return torch.stack([_image(path, shape, net) for path in files])


def _image(path: Path, shape: tuple[int, ...], net: Net) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            picture = ImageOps.fit(opened.convert("L" if shape[0] == 1 else "RGB"), (shape[2], shape[1]))
    except Exception as error:  # of any kind, by format
        raise LookError(f"--images: {path} cannot be read: {one_line(error)}") from error
    pixels = torch.from_numpy(np.array(picture)).view(*shape[1:], shape[0]).permute(2, 0, 1).contiguous() / 255
    mean, deviation = (torch.tensor(values[: shape[0]]).view(-1, 1, 1) for values in net.normalization)
    return (pixels - mean) / deviation
