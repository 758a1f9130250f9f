"""Independent streams of random numbers from one seed."""

from enum import IntEnum

import torch
from numpy.random import SeedSequence


class Stream(IntEnum):
    """What a stream of random numbers is for; the values are part of every result and never change."""

    SPLIT = 0
    ORDER = 1
    AUGMENTATION = 2
    SYNTHETIC = 3


def generator(seed: int, *stream: int) -> torch.Generator:
    """Return a CPU generator for one stream (purpose, epoch, ...) of a seed.

    Streams of a seed, and the same stream of two seeds, are statistically independent, unlike ``seed + epoch``.

    Raises:
        ValueError: the seed or a part of the stream is negative.
    """
    if min(seed, *stream, 0) < 0:
        raise ValueError(f"seed and stream must not be negative, got {seed} and {stream}")
    # As spawn_key: within the entropy itself, trailing zeros are padding, and (1,) and (1, 0) would be one stream.
    state = SeedSequence(seed, spawn_key=stream).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
