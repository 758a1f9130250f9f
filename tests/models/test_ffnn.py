"""FFNN: structure, counts from its widths, arguments."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sppbench.models import FFNN


def _leaves(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if not list(module.children())]


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("normalization", "block"),
    [(None, [nn.Linear, nn.ReLU]), ("batch_norm", [nn.Linear, nn.BatchNorm1d, nn.ReLU])],
)
def test_leaves_in_order(normalization: str | None, block: list[type[nn.Module]]) -> None:
    types = [type(leaf) for leaf in _leaves(FFNN(normalization=normalization))]
    assert types == [nn.Flatten, *(block * 9), nn.Linear]
    assert len(types) == (20 if normalization is None else 29)


@pytest.mark.parametrize("hidden", [100, 512])
def test_parameter_counts(hidden: int) -> None:
    weights = 3072 * hidden + 8 * hidden**2 + hidden * 100
    biases = 9 * hidden + 100
    plain = _parameters(FFNN(hidden_features=hidden))
    assert plain == weights + biases
    assert hidden != 512 or plain == 3_725_924

    def extra(affine: bool, first_affine: bool) -> int:
        net = FFNN(hidden_features=hidden, normalization="batch_norm", affine=affine, first_affine=first_affine)
        return _parameters(net) - plain

    assert extra(True, True) == 9 * 2 * hidden
    assert extra(False, True) == 2 * hidden
    assert extra(False, False) == 0


def test_affine_flags_address_the_right_normalizations() -> None:
    net = FFNN(hidden_features=8, normalization="batch_norm", affine=False)
    assert [leaf.affine for leaf in _leaves(net) if isinstance(leaf, nn.BatchNorm1d)] == [True] + [False] * 8


@pytest.mark.parametrize(("affine", "learned"), [("scale", "weight"), ("shift", "bias")])
def test_interventions_learn_one_of_scale_and_shift(affine: str, learned: str) -> None:
    torch.manual_seed(0)
    net = FFNN(image_size=4, hidden_features=8, depth=2, normalization="batch_norm", affine=affine)
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    both = FFNN(image_size=4, hidden_features=8, depth=2, normalization="batch_norm")
    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())
    # Weight decay, too, must not move what is not learned.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    nn.functional.cross_entropy(net(torch.randn(16, 3, 4, 4)), torch.arange(16)).backward()
    optimizer.step()
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    norms = {f"block0.norm.{name}" for name in ("weight", "bias")} | {f"block{i}.norm.{learned}" for i in (1, 2)}
    assert {name for name in moved if ".norm." in name} == norms


def test_names() -> None:
    net = FFNN(hidden_features=8, depth=1, normalization="batch_norm")
    names = [name for name, module in net.named_modules() if not list(module.children())]
    blocks = [f"block{i}.{part}" for i in range(2) for part in ("linear", "norm", "activation")]
    assert names == ["flatten", *blocks, "classifier"]


def test_forward_is_the_written_out_net() -> None:
    torch.manual_seed(0)
    net = FFNN(in_channels=1, image_size=4, num_classes=3, hidden_features=5, depth=2)
    images = torch.randn(7, 1, 4, 4)
    x = images.reshape(7, 16)
    for i in range(3):
        x = torch.relu(x @ net.get_parameter(f"block{i}.linear.weight").T)
    torch.testing.assert_close(net(images), x @ net.get_parameter("classifier.weight").T)


def test_activation_by_name_and_by_callable() -> None:
    for activation, expected in (("SELU", nn.SELU), (nn.Tanh, nn.Tanh)):
        net = FFNN(hidden_features=4, depth=2, activation=activation)
        assert [type(leaf) for leaf in _leaves(net)].count(expected) == 3


def test_depth_zero() -> None:
    assert len(_leaves(FFNN(hidden_features=4, depth=0))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "Swish"}, "activation must be one of .*'ReLU'.*'SELU'.*; got 'Swish'"),
        ({"activation": lambda: nn.ReLU(inplace=True)}, "activation must not work in place"),
        ({"activation": lambda: torch.relu}, "activation must give a torch.nn.Module"),
        ({"normalization": "layer_norm"}, "normalization must be one of None, 'batch_norm'; got 'layer_norm'"),
        ({"affine": "both"}, "affine must be one of True, False, 'scale', 'shift'; got 'both'"),
        ({"first_affine": None}, "first_affine must be one of True, False, 'scale', 'shift'; got None"),
        ({"init": "xavier"}, "init must be one of 'he_fan_out', 'he_fan_in', 'lecun', 'lsuv'; got 'xavier'"),
        ({"hidden_features": 0}, "hidden_features must be an integer of at least 1; got 0"),
        ({"hidden_features": 2.5}, "hidden_features must be an integer of at least 1; got 2.5"),
        ({"depth": -1}, "depth must be an integer of at least 0; got -1"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"image_size": 0}, "image_size must be"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FFNN(**arguments)
    assert "\n" not in str(error.value)


def test_copy_pickle_and_compile() -> None:
    torch.manual_seed(0)
    net = FFNN(hidden_features=8, depth=2, normalization="batch_norm", activation=lambda: nn.ELU()).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = net(images)
    assert torch.equal(copy.deepcopy(net)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(images), expected)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(images), expected)
