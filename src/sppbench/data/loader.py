"""Batches straight from tensors: no worker processes and no Python per sample."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sppbench.data.augmentation import CropFlip
from sppbench.data.random import Stream, generator


class EpochSampler(Sampler[int]):
    """The order of the samples in an epoch: a function of (seed, epoch) alone.

    Lightning calls :meth:`set_epoch` before each epoch, because it finds this object as ``loader.sampler``.
    """

    def __init__(self, count: int, shuffle: bool, seed: int) -> None:
        self.count, self.shuffle, self.seed = count, shuffle, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration serves."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the sample numbers in the order of this epoch: int64 ``(count,)`` on the CPU."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=generator(self.seed, Stream.ORDER, self.epoch))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class TensorLoader:
    """Iterable over normalized batches ``(float32 (B, C, H, W) channels_last, int64 (B,))`` on the images' device.

    The last partial batch is kept. Order and augmentation depend on (seed, epoch) alone, so an epoch can be started in
    the middle: :meth:`state_dict` and :meth:`load_state_dict` are what Lightning saves and restores with a checkpoint.

    With several processes ``batch_size`` is the global batch: each rank gets its share of each batch, the shares
    differing by at most one sample.

    Args:
        images: uint8 ``(N, H, W, C)``.
        labels: int64 ``(N,)`` on the same device.
        batch_size: samples in a (global) batch.
        mean, std: of each channel, for pixels scaled to 0..1.
        shuffle: whether each epoch has an order of its own.
        augmentation: applied to every sample, or None.
        seed: of order and augmentation.
        rank, world_size: this process among all.

    Raises:
        ValueError: wrong types or shapes, or a batch that would leave a rank without a sample.

    Example:
        >>> images = torch.randint(256, (50, 32, 32, 3), dtype=torch.uint8)
        >>> loader = TensorLoader(images, torch.arange(50), 20, mean=(0.5,) * 3, std=(0.25,) * 3, shuffle=True)
        >>> [batch.shape for batch, labels in loader]
        [torch.Size([20, 3, 32, 32]), torch.Size([20, 3, 32, 32]), torch.Size([10, 3, 32, 32])]
    """

    # Lightning reads this attribute of whatever has a `sampler`.
    batch_sampler = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        shuffle: bool = False,
        augmentation: CropFlip | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(images, labels, batch_size, rank, world_size)
        self.batch_size, self.augmentation, self.seed = batch_size, augmentation, seed
        self.rank, self.world_size = rank, world_size
        self.sampler = EpochSampler(len(images), shuffle, seed)
        self.labels = labels
        self.images = images if augmentation is None else augmentation.pad(images)
        # Of a whole image's shape, because the CPU does not vectorize over three channels.
        self._scale = (1 / (255 * torch.tensor(std))).to(images.device).expand(images.shape[1:]).contiguous()
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).to(images.device).expand(images.shape[1:]).contiguous()
        self._position = (0, 0)  # epoch, and batches of it that were served
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, so that nothing here runs before the first batch is requested: Lightning calls iter() before
        # set_epoch(), and more than once.
        epoch, first = self.sampler.epoch, 0
        if self._resume is not None and self._resume[0] == epoch:
            first = self._resume[1]
        self._resume = None
        device = self.images.device
        order = self.sampler.order().to(device)
        draws = None
        if self.augmentation is not None:
            # On the CPU whatever the device, so that a run sees the same batches everywhere.
            chance = generator(self.seed, Stream.AUGMENTATION, epoch)
            draws = self.augmentation.draw(len(order), chance).to(device)
        for batch in range(first, len(self)):
            self._position = (epoch, batch + 1)
            share = self._share(batch)
            yield self._images(order[share], None if draws is None else draws[share]), self.labels[order[share]]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were served."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration serve the rest of that epoch, if it is still that epoch; later ones start at 0.

        Lightning also restores the state of a finished epoch, and then sets the next epoch.

        Raises:
            ValueError: the position lies outside an epoch of this loader.
        """
        epoch, batches = state["epoch"], state["batches"]
        if epoch < 0 or not 0 <= batches <= len(self):
            raise ValueError(f"cannot resume after batch {batches} of epoch {epoch}: an epoch has {len(self)} batches")
        self.sampler.set_epoch(epoch)
        self._position = self._resume = (epoch, batches)

    def _share(self, batch: int) -> slice:
        """Return this rank's part of a global batch, as positions in the epoch."""
        start = batch * self.batch_size
        size, more = divmod(min(self.batch_size, len(self.labels) - start), self.world_size)
        start += self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def _images(self, index: Tensor, draws: Tensor | None) -> Tensor:
        if self.augmentation is None or draws is None:
            images = self.images.index_select(0, index)
        else:
            images = self.augmentation(self.images, index, draws)
        pixels = images.float()
        # NHWC in memory, so the NCHW view is channels_last.
        return torch.addcmul(self._shift, pixels, self._scale, out=pixels).permute(0, 3, 1, 2)


def _check(images: Tensor, labels: Tensor, batch_size: int, rank: int, world_size: int) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (N, H, W, C), got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
    smallest = min(batch_size, len(images), len(images) % batch_size or batch_size)
    if 0 < smallest < world_size:
        raise ValueError(
            f"{len(images)} images in batches of {batch_size} leave a batch of {smallest}: too few for {world_size} "
            "processes; choose another batch size or fewer devices"
        )
