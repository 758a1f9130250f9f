"""What is refused before a run begins; whole configurations are in tests/test_train.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sppbench.run.validation import (
    OWN_TRAINER_KEYS,
    UsageError,
    check_batches,
    check_cuda_graphs,
    check_fit,
    check_values,
    how_to_compile,
)

CONFIG: dict[str, Any] = {
    "seed": 0,
    "overwrite": False,
    "flush_denormal": True,
    "compile": False,
    "name": "ffnn",
    "trainer": {},
}
IMAGE = (1, 2, 2)


class Data:
    """A user's own data module, of a loader of torch."""

    in_channels, image_size, num_classes = 1, 2, 3

    def __init__(self, images: int, batch_size: int, drop_last: bool = False) -> None:
        self.batch_size = batch_size
        self.set_up: list[str] = []
        data = TensorDataset(torch.zeros(images, *IMAGE), torch.zeros(images))
        self.loader = DataLoader(data, batch_size, drop_last=drop_last)

    def setup(self, stage: str) -> None:
        self.set_up.append(stage)

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return []

    def test_dataloader(self) -> Any:
        return iter([])  # of no known length


def trainer(**limits: Any) -> Any:
    shares = dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), 1.0)
    return SimpleNamespace(**shares | {"world_size": 1} | limits)


def net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), *layers)


@pytest.mark.parametrize("name", ["ffnn", "a/b", "größe", 5, "x" * 255])
def test_names_of_folders_are_accepted(name: Any) -> None:
    check_values(CONFIG | {"name": name})


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/", "a//b", "../a", "a\nb", "a\x1b[2J", "ö" * 128])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^name must"):
        check_values(CONFIG | {"name": name})


@pytest.mark.parametrize("key", OWN_TRAINER_KEYS)
def test_keys_that_would_be_ignored_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=rf"^trainer\.{key} cannot be set"):
        check_values(CONFIG | {"trainer": {key: None}})


def test_a_last_batch_of_one_image_is_refused_where_the_net_cannot_be_trained_with_it() -> None:
    normalized, dropping = net(nn.BatchNorm1d(3)), net(nn.Dropout())
    data = Data(images=7, batch_size=3)
    before = {name: value.clone() for name, value in normalized.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(UsageError, match=r"batch_size=3 leaves a single image of 7 for the last batch"):
        check_batches(trainer(), normalized, data)
    assert all(torch.equal(value, before[name]) for name, value in normalized.state_dict().items())
    check_batches(trainer(), dropping, data)
    assert torch.equal(torch.get_rng_state(), random)
    assert data.set_up == ["fit", "test"] * 2
    for allowed in (Data(7, 3, drop_last=True), Data(8, 3), Data(6, 3)):
        check_batches(trainer(), normalized, allowed)
    check_batches(trainer(limit_train_batches=2), normalized, data)


def test_a_share_of_the_batches_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"limit_train_batches=0\.3 leaves none of 3 batches"):
        check_batches(trainer(limit_train_batches=0.3), net(), Data(9, 3))
    check_batches(trainer(limit_train_batches=0.4, limit_val_batches=0.1, limit_test_batches=0.1), net(), Data(9, 3))


def test_a_net_that_does_not_fit_is_refused_and_trained_as_before() -> None:
    fitting = net()
    check_fit(fitting, Data(2, 2))
    assert fitting.training
    with pytest.raises(UsageError, match=r"model and data do not fit: logits \(2, 4\) for 3 classes"):
        check_fit(nn.Flatten(), Data(2, 2))
    with pytest.raises(UsageError, match=r"model and data do not fit: images \(2, 1, 2, 2\) give: mat1"):
        check_fit(nn.Linear(9, 3), Data(2, 2))


def test_cuda_graphs_do_not_accumulate_gradients() -> None:
    """Without a GPU there are none, and PyTorch leaves them out."""
    for value in ("reduce-overhead", {"triton.cudagraphs": True}):
        how = how_to_compile(value)
        with pytest.raises(UsageError, match="accumulate_grad_batches"):
            check_cuda_graphs(how, 2, "cuda")
        check_cuda_graphs(how, 1, "cuda")
        check_cuda_graphs(how, 2, "cpu")
    check_cuda_graphs(how_to_compile(True), 2, "cuda")
