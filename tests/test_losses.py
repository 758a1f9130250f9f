"""What is done for speed must not change what is computed: the first steps of every net against stored losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.losses import NETS, distance, losses, machine, read

STORED = read()


@pytest.fixture(autouse=True)
def _deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_all_nets_are_stored() -> None:
    assert set(NETS) == set(STORED["losses"]["float32"]) == set(STORED["losses"]["float64"])


@pytest.mark.parametrize("name", NETS)
def test_losses_are_those_stored(name: str) -> None:
    """50 steps bit for bit on a machine like the one that stored them; on others the first, up to rounding."""
    stored = STORED["losses"]["float32"][name]
    if machine() == STORED["machine"]:
        assert losses(name, torch.float32) == stored
    else:
        assert distance(losses(name, torch.float32, steps=1), stored, last=1) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_losses_in_double_precision_are_those_stored_on_any_machine(name: str) -> None:
    """The first 5 steps; that their rounding stays below 1e-12 was seen across threads and instruction sets."""
    assert distance(losses(name, torch.float64, steps=5), STORED["losses"]["float64"][name], last=5) < 1e-10
