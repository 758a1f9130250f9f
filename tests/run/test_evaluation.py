"""The fit to the training images, against a computation by hand and by a whole run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppbench.data import Synthetic
from sppbench.run.assembly import make_data_and_net
from sppbench.run.evaluation import evaluate
from sppbench.run.results import read_result
from sppbench.train import train


class Logits(nn.Module):
    """Gives what it is fed; with dropout, which must not act."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(x.flatten(1))


def test_loss_and_accuracy_are_means_over_images_not_over_batches() -> None:
    certain = torch.tensor([[100.0, 0.0], [100.0, 0.0], [0.0, 0.0]])
    batches = [(certain[:2, :, None, None], torch.tensor([0, 1])), (certain[2:, :, None, None], torch.tensor([0]))]
    net = Logits()
    found = evaluate(net, batches)
    assert found == {
        "loss": pytest.approx((0 + 100 + math.log(2)) / 3),
        "accuracy": pytest.approx(100 * 2 / 3),
        "images": 3,
    }
    assert net.training, "it is left in the mode that it was in"


def test_a_net_that_is_not_finite_has_no_loss() -> None:
    assert evaluate(Logits(), [(torch.full((2, 3, 1, 1), math.nan), torch.zeros(2, dtype=torch.int64))])["loss"] is None


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(Logits(), [])


def test_the_images_are_those_of_training_without_augmentation() -> None:
    data = Synthetic(train_size=40, val_size=20, test_size=8, batch_size=16, image_size=8, num_classes=10)
    data.prepare_data()
    data.setup()
    once, twice = ([x for x, _ in data.training_evaluation_dataloader()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert sum(map(len, once)) == 40
    assert [len(x) for x, _ in data.training_evaluation_dataloader(images=3)] == [3]
    plain = Synthetic(
        train_size=40, val_size=20, test_size=8, batch_size=16, image_size=8, num_classes=10, padding=0, flip=False
    )
    plain.prepare_data()
    plain.setup()
    augmented_off = torch.cat([x for x, _ in plain.train_dataloader()])
    assert torch.equal(augmented_off.sum((1, 2, 3)).sort().values, torch.cat(once).sum((1, 2, 3)).sort().values)


def test_a_run_leaves_it_beside_the_test(config: Any) -> None:
    cfg = config("trainer.max_epochs=1")
    train(cfg)
    found = read_result(Path(cfg.output_dir) / "result.json").train
    data, net = make_data_and_net(cfg)
    data.prepare_data()
    data.setup()
    weights = torch.load(f"{cfg.output_dir}/last.ckpt", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights.items()})
    net.eval()
    images, labels = (torch.cat(parts) for parts in zip(*data.training_evaluation_dataloader(), strict=True))
    with torch.no_grad():
        loss = F.cross_entropy(net(images), labels)
    assert found is not None
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found["images"] == len(labels)
