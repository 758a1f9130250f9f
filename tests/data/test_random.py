"""Streams of random numbers."""

import itertools

import pytest
import torch

from sppbench.data.random import generator


def draw(seed: int, *stream: int) -> list[int]:
    return torch.randint(2**31, (4,), generator=generator(seed, *stream)).tolist()


def test_a_stream_is_a_function_of_seed_and_stream() -> None:
    assert draw(868, 1, 2) == draw(868, 1, 2)


def test_streams_differ() -> None:
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (1,), (1, 0), (0, 1, 0), (0, 0, 1), (2**32,), (2**32 + 1,), (1, 1)]
    for a, b in itertools.combinations(keys, 2):
        assert draw(*a) != draw(*b), (a, b)


def test_neighbouring_epochs_are_uncorrelated() -> None:
    epochs = torch.stack([torch.rand(1000, generator=generator(0, 1, epoch)) for epoch in range(20)])
    correlation = torch.corrcoef(epochs) - torch.eye(20)
    assert correlation.abs().max() < 5 / 1000**0.5


@pytest.mark.parametrize("key", [(-1,), (0, -1)])
def test_negative_numbers_are_refused(key: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        generator(*key)
