"""Branches and skips: in which nets they are found, and when one of them carries nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sppbench.models.merges import MPSum, Sum
from sppbench.spp import diagnose
from sppbench.spp.diagnosis.finding import LIMITS
from sppbench.spp.diagnosis.residual import adds_of
from sppbench.spp.diagnosis.step_table import StepTable
from sppbench.spp.diagnosis.structure import structure_of
from tests.spp.diagnosis.recorded import history, lasting, resnet, transformer


class Merging(nn.Module):
    """A residual block whose sum is a module, as this package's nets have it."""

    def __init__(self, merge: nn.Module) -> None:
        super().__init__()
        self.linear, self.act, self.merge = nn.Linear(16, 16), nn.ReLU(), merge

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.merge(self.act(self.linear(x)), x)
        return y


def merging(*merges: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), *(Merging(merge) for merge in merges), nn.Linear(16, 4))


def scaled(layer: nn.Linear | nn.BatchNorm2d, factor: float) -> None:
    with torch.no_grad():
        layer.weight *= factor
        layer.bias *= factor


def sums(frame: pd.DataFrame, net: nn.Module) -> list[tuple[str, str | None]]:
    """Where the branches end, and what their skips are."""
    table = StepTable(frame)
    return [
        (table.layers[one.branch].name, None if one.skip is None else table.layers[one.skip].name)
        for one in adds_of(table, structure_of(net))
    ]


def test_sums_are_found_by_the_structure_of_a_net() -> None:
    net: nn.Module = merging(Sum(), MPSum(0.3))
    assert sums(history(net, shape=(16,)), net) == [("1.act", "0"), ("2.act", "1.merge")]
    net = resnet(2)
    assert sums(history(net, shape=(3, 8, 8)), net) == [("2.bn2", "1"), ("3.bn2", "2.relu#2")]
    net = resnet(1)
    net[2].downsample = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    net[2].forward = lambda x, own=net[2]: own.relu(own.bn2(own.conv2(own.relu(own.conv1(x)))) + own.downsample(x))
    assert sums(history(net, shape=(3, 8, 8)), net) == [("2.bn2", "2.downsample.1")]
    net = transformer(2)
    found = [("1.attn", None), ("1.mlp.2", None), ("2.attn", None), ("2.mlp.2", "1")]
    assert sums(history(net, shape=(16,), blocks=True), net) == found
    assert sums(history(net, shape=(16,)), net) == []


def test_sums_of_blocks_that_normalize_before_and_after_a_branch() -> None:
    class Sandwich(nn.Module):
        """As of Gemma 2: the branch ends with a norm."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.attn, self.after = nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)
            self.then, self.mlp, self.last = nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.after(self.attn(self.before(x)))
            return x + self.last(self.mlp(self.then(x)))

    class Dense(nn.Module):
        """Nothing is added to its output."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(self.norm(x))
            return y

    net = nn.Sequential(*(Sandwich() for _ in range(2)))
    found = [("0.after", None), ("0.last", None), ("1.after", None), ("1.last", "0")]
    assert sums(history(net, shape=(16,), blocks=True), net) == found
    net = nn.Sequential(*(Dense() for _ in range(2)))
    assert sums(history(net, shape=(16,), blocks=True), net) == []


@pytest.mark.parametrize("merge", [Sum, MPSum])
def test_a_branch_of_a_module_sum_that_carries_nothing(merge: type[nn.Module]) -> None:
    net = merging(merge(), merge())
    scaled(net[2].linear, 1e-4)
    frame = lasting(history(net, 1, (16,)))
    for model in (net, None):
        [one] = diagnose(frame[frame["signal"] == "activation"], model)
        assert (one.kind, one.layer, one.step, one.others) == ("silent branch", "2.act", 0, ())
        assert (one.threshold, one.source) == LIMITS["silent branch"]
        first = frame[(frame["step"] == 0) & (frame["signal"] == "activation")].set_index("layer")["second_moment"]
        assert one.number == pytest.approx(first["2.act"] / (first["2.act"] + first["1.merge"]))
        assert one.number == pytest.approx(1e-8, rel=0.9)


def test_the_weight_of_a_weighted_sum_counts() -> None:
    net = merging(MPSum(), MPSum(0.999))
    frame = lasting(history(net, 1, (16,)))
    [one] = diagnose(frame[frame["signal"] == "activation"], net)
    assert (one.kind, one.layer) == ("silent branch", "2.act")


def test_a_branch_of_a_transformer_or_a_resnet_that_carries_nothing() -> None:
    net = transformer()
    scaled(net[3].mlp[2], 1e-3)
    frame = lasting(history(net, 1, (16,), blocks=True))
    [one] = diagnose(frame[frame["signal"] == "activation"], net)
    assert (one.kind, one.layer) == ("silent branch", "3.mlp.2")
    net = resnet()
    net[3].bn2.weight.requires_grad_(False)
    scaled(net[3].bn2, 1e-3)
    frame = lasting(history(net, 1, (3, 8, 8)))
    [one] = diagnose(frame[frame["signal"].isin(["activation", "parameter"])], net)
    assert (one.kind, one.layer) == ("silent branch", "3.bn2")


def test_a_branch_that_begins_small_is_none_as_long_as_it_grows() -> None:
    net = resnet()
    for block in net[2:5]:
        nn.init.constant_(block.bn2.weight, 1e-3)
    frame = history(net, 25, (3, 8, 8))
    assert list(diagnose(frame, net)) == []
    # Attention at the start is a mean over tokens: that it carries little is known when it has been seen for a while.
    net = transformer()
    scaled(net[3].mlp[2], 0.03)
    frame = lasting(history(net, 1, (16,), blocks=True))
    frame = frame[frame["signal"] == "activation"]
    assert list(diagnose(frame[frame["step"] < 900], net)) == []
    assert [one.kind for one in diagnose(frame, net)] == ["silent branch"]
    growth = np.where(frame["layer"] == "3.mlp.2", 1.1 ** (frame["step"] / 50), 1)
    assert list(diagnose(frame.assign(second_moment=frame["second_moment"] * growth), net)) == []


def test_a_branch_that_is_nothing_is_found_in_the_first_step() -> None:
    net = transformer()
    scaled(net[3].mlp[2], 1e-5)
    [one] = diagnose(history(net, 1, (16,), blocks=True), net)
    assert (one.kind, one.layer) == ("silent branch", "3.mlp.2")


def test_a_branch_that_drowns_its_skip() -> None:
    net = transformer()
    scaled(net[3].mlp[2], 100)
    [one] = diagnose(history(net, 1, (16,), blocks=True), net)
    assert (one.kind, one.layer, one.step) == ("drowned skip", "3.mlp.2", 0)
    assert one.number < one.threshold == 0.01
    net = resnet()
    scaled(net[3].bn2, 100)
    [one] = diagnose(history(net, 1, (3, 8, 8)), net)
    assert (one.kind, one.layer) == ("drowned skip", "3.bn2")
    net = merging(Sum(), Sum())
    scaled(net[2].linear, 100)
    [one] = diagnose(history(net, 1, (16,)))
    assert (one.kind, one.layer) == ("drowned skip", "2.act")
