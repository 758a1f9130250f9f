"""The batch loader: values, layout, order, shares, restarts."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from sppbench.data.augmentation import CropFlip
from sppbench.data.loader import TensorLoader
from sppbench.data.random import generator

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
COUNT = 83
IMAGES = torch.randint(256, (COUNT, 6, 8, 3), dtype=torch.uint8, generator=generator(0))
LABELS = torch.arange(COUNT)  # so that a label says which sample it is

Batches = list[tuple[Tensor, Tensor]]


def make(batch_size: int = 10, seed: int = 868, train: bool = True, rank: int = 0, world_size: int = 1) -> TensorLoader:
    augmentation = CropFlip(2) if train else None
    return TensorLoader(
        IMAGES,
        LABELS,
        batch_size,
        MEAN,
        STD,
        shuffle=train,
        augmentation=augmentation,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def epoch(loader: TensorLoader, number: int) -> Batches:
    loader.sampler.set_epoch(number)
    return list(loader)


def same(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, p) and torch.equal(y, q) for (x, y), (p, q) in zip(a, b, strict=True)
    )


def test_values_are_torchvisions_normalisation() -> None:
    batches = list(make(train=False))
    expected = [functional.normalize(i.permute(2, 0, 1).float() / 255, list(MEAN), list(STD)) for i in IMAGES]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.cat([y for _, y in batches]), LABELS)


@pytest.mark.parametrize("train", [True, False])
def test_layout(train: bool) -> None:
    for images, labels in make(train=train):
        assert images.shape == (len(labels), 3, 6, 8)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64


def test_every_sample_once_and_the_partial_batch_last() -> None:
    loader = make()
    for number in range(3):
        labels = [y for _, y in epoch(loader, number)]
        assert [len(y) for y in labels] == [10] * 8 + [3]
        assert len(loader) == 9
        assert sorted(torch.cat(labels).tolist()) == list(range(COUNT))


def test_augmented_batches_follow_from_the_streams() -> None:
    """Put together again from order and draws, one sample at a time."""
    loader = make()
    loader.sampler.set_epoch(5)
    images = torch.cat([x for x, _ in loader])
    order = torch.randperm(COUNT, generator=generator(868, 1, 5))
    draws = CropFlip(2).draw(COUNT, generator(868, 2, 5))
    padded = torch.nn.functional.pad(IMAGES.permute(0, 3, 1, 2), (2, 2, 2, 2))
    for position, (sample, (top, left, flip)) in enumerate(zip(order.tolist(), draws.tolist(), strict=True)):
        crop = padded[sample, :, top : top + 6, left : left + 8]
        crop = functional.normalize((crop.flip(2) if flip else crop).float() / 255, list(MEAN), list(STD))
        torch.testing.assert_close(images[position], crop, rtol=1e-5, atol=1e-6)


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch(make(), 3)
    torch.manual_seed(2)
    other = make()
    epoch(other, 0)
    assert same(first, epoch(other, 3))
    assert not same(first, epoch(other, 4))
    assert not same(first, epoch(make(seed=67), 3))


def test_draws_no_global_random_numbers() -> None:
    before = torch.get_rng_state()
    list(make())
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffling_epochs_are_alike() -> None:
    loader = make(train=False)
    assert same(epoch(loader, 0), epoch(loader, 1))


@pytest.mark.parametrize("served", [0, 1, 4, 8, 9])
def test_restart_in_the_middle(served: int) -> None:
    whole, after = epoch(make(), 2), epoch(make(), 3)
    interrupted = make()
    interrupted.sampler.set_epoch(2)
    iterator = iter(interrupted)
    for _ in range(served):
        next(iterator)
    state = interrupted.state_dict()
    if served:
        assert state == {"epoch": 2, "batches": served}

    loader = make()
    loader.load_state_dict({"epoch": 2, "batches": served})
    iter(loader)  # as Lightning does, more often than it iterates
    assert loader.state_dict() == {"epoch": 2, "batches": served}
    assert same(epoch(loader, 2), whole[served:])
    assert same(epoch(loader, 2), whole)
    assert same(epoch(loader, 3), after)


def test_state_of_a_finished_epoch_leaves_the_next_one_whole() -> None:
    loader = make()
    loader.load_state_dict({"epoch": 2, "batches": 9})
    assert same(epoch(loader, 3), epoch(make(), 3))


@pytest.mark.parametrize(
    "state", [{"epoch": 0, "batches": 10}, {"epoch": 0, "batches": -1}, {"epoch": -1, "batches": 0}]
)
def test_impossible_state_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot resume"):
        make().load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_the_ranks_make_the_global_batch(world_size: int) -> None:
    whole = epoch(make(), 1)
    ranks = [epoch(make(rank=rank, world_size=world_size), 1) for rank in range(world_size)]
    for batch, shares in zip(whole, zip(*ranks, strict=True), strict=True):
        sizes = [len(y) for _, y in shares]
        assert max(sizes) - min(sizes) <= 1
        assert same([batch], [(torch.cat([x for x, _ in shares]), torch.cat([y for _, y in shares]))])


def test_a_batch_too_small_for_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="83 images in batches of 10 leave a batch of 3: too few for 4 processes"):
        make(world_size=4)
    with pytest.raises(ValueError, match="too few for 2 processes"):
        make(batch_size=1, world_size=2)
    make(batch_size=COUNT, world_size=4)


def test_wrong_input_is_refused() -> None:
    for images, labels, batch_size, rank, match in [
        (IMAGES.float(), LABELS, 1, 0, "images must be uint8"),
        (IMAGES, LABELS[:-1], 1, 0, "labels must be int64"),
        (IMAGES, LABELS.int(), 1, 0, "labels must be int64"),
        (IMAGES, LABELS, 0, 0, "batch_size must be at least 1"),
        (IMAGES, LABELS, 1, 1, "rank"),
    ]:
        with pytest.raises(ValueError, match=match):
            TensorLoader(images, labels, batch_size, MEAN, STD, rank=rank)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_serves_what_the_cpu_serves() -> None:
    on_gpu = TensorLoader(IMAGES.cuda(), LABELS.cuda(), 10, MEAN, STD, shuffle=True, augmentation=CropFlip(2), seed=868)
    for (x, y), (p, q) in zip(epoch(make(), 1), epoch(on_gpu, 1), strict=True):
        assert p.is_cuda
        assert p.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(x, p.cpu(), rtol=1e-6, atol=1e-6)  # one multiply-add may or may not be fused
        assert torch.equal(y, q.cpu())
