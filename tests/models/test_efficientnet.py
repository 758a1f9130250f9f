"""EfficientNet: torchvision is the reference for names, shapes, outputs and gradients."""

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0

from sppbench.models import EfficientNet, MPScale, MPSum, Scale, Sum

# One block a stage, but two, hence a skip connection, in the sixth.
SMALL: dict[str, Any] = {"width_mult": 0.25, "depth_mult": 0.3, "num_classes": 10}
MP: dict[str, Any] = {"skip": "mp_sum", "gate": "mp_scale", "mp_weight": 0.3}
SN: dict[str, Any] = {"normalization": None, "activation": "SELU", "init": "lecun"}
MERGES = (Sum, MPSum, Scale, MPScale)


def _leaves(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if not list(module.children())}


def _images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = efficientnet_b0(num_classes=100, stochastic_depth_prob=0.0)
    return net


def test_state_dict_is_torchvisions(reference: nn.Module) -> None:
    expected = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    actual = {name: tensor.shape for name, tensor in EfficientNet(**MP).state_dict().items()}
    assert list(actual.items()) == list(expected.items())


def test_state_dict_without_normalization_is_torchvisions_without_its_entries(reference: nn.Module) -> None:
    norms = {name for name, module in reference.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 49
    expected = [
        (name, tensor.shape) for name, tensor in reference.state_dict().items() if name.rpartition(".")[0] not in norms
    ]
    actual = [(name, tensor.shape) for name, tensor in EfficientNet(normalization=None).state_dict().items()]
    assert actual == expected


def test_parameter_counts() -> None:
    def count(**arguments: Any) -> int:
        return sum(parameter.numel() for parameter in EfficientNet(**arguments).parameters())

    assert count() == 4_135_648
    assert count(normalization=None) == count(affine=False) == 4_093_632
    assert count(**SN, **MP) == 4_093_632


@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_torchvisions(reference: nn.Module, training: bool) -> None:
    results = []
    ours = EfficientNet()
    ours.load_state_dict(reference.state_dict())
    for net in (ours, copy.deepcopy(reference)):
        net.double().train(training)  # batch normalization of four pixels makes much of rounding
        torch.manual_seed(1)  # dropout
        logits = net(_images(4).double())
        logits.logsumexp(1).sum().backward()
        results.append((logits, {name: parameter.grad for name, parameter in net.named_parameters()}, net.state_dict()))
    torch.testing.assert_close(*(logits for logits, _, _ in results), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(*(gradients for _, gradients, _ in results), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(*(state for _, _, state in results), rtol=1e-7, atol=1e-9)  # running statistics


@pytest.mark.parametrize(("normalization", "count"), [("batch_norm", 215), (None, 166)])
@pytest.mark.parametrize("arguments", [{}, MP])
def test_leaves(arguments: dict[str, Any], normalization: str | None, count: int) -> None:
    leaves = _leaves(EfficientNet(normalization=normalization, **arguments))
    types = Counter(type(module) for module in leaves.values())
    scale, total = (MPScale, MPSum) if arguments else (Scale, Sum)
    assert (types.pop(scale), types.pop(total)) == (16, 9)
    assert types.total() == count
    assert types[nn.BatchNorm2d] == (49 if normalization else 0)
    assert types[nn.Flatten] == types[nn.Dropout] == types[nn.Linear] == 1
    assert nn.Identity not in types
    for name, module in leaves.items():
        if isinstance(module, MERGES):
            assert name.endswith(".scale" if isinstance(module, scale) else ".sum")
            assert not module.state_dict()


@pytest.mark.parametrize("arguments", [{}, {**SN, **MP}])
def test_each_leaf_is_called_once_in_the_order_of_registration(arguments: dict[str, Any]) -> None:
    net = EfficientNet(**SMALL, **arguments)
    leaves, called = _leaves(net), []
    for name, module in leaves.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
    net(_images())
    assert called == list(leaves)


@pytest.mark.parametrize("arguments", [{}, {**SN, **MP}])
def test_no_module_changes_its_input(arguments: dict[str, Any]) -> None:
    net = EfficientNet(**SMALL, **arguments)
    assert not any(getattr(module, "inplace", False) for module in net.modules())
    before: list[tuple[str, Tensor, Tensor]] = []
    for name, module in _leaves(net).items():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: before.append((name, output, output.detach().clone()))
        )
    net(_images())
    for name, output, value in before:
        assert torch.equal(output, value), name


def test_merges_give_what_their_names_say() -> None:
    net = EfficientNet(**SMALL, **SN, **MP).eval()
    seen: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: (inputs, output)}))
    net(_images())
    (main, skip), output = seen["features.6.1.sum"]
    assert main is seen["features.6.1.block"][1]
    assert skip is seen["features.6.1"][0][0]
    torch.testing.assert_close(output, (0.7 * main + 0.3 * skip) / (0.7**2 + 0.3**2) ** 0.5)
    (x, gate), output = seen["features.6.1.block.2.scale"]
    assert x is seen["features.6.1.block.2"][0][0]
    assert gate is seen["features.6.1.block.2.scale_activation"][1]
    torch.testing.assert_close(output, x * gate / ((1 - gate) ** 2 + gate**2).sqrt())


@pytest.mark.parametrize("activation", ["SELU", nn.ReLU])
def test_all_activations_are_swapped(activation: Any) -> None:
    types = Counter(type(module) for module in EfficientNet(activation=activation).modules())
    assert types[nn.SiLU] == 0
    assert types[nn.SELU if activation == "SELU" else nn.ReLU] == 49  # 2 stem and head, 15 + 16 in blocks, 16 in SE
    assert types[nn.Sigmoid] == 16


def test_normalization_without_affine() -> None:
    norms = [module for module in EfficientNet(affine=False).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 49
    assert all(norm.weight is None and norm.bias is None for norm in norms)


def test_shape_arguments() -> None:
    net = EfficientNet(in_channels=1, **SMALL)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert net.features[0][0].weight.shape == (8, 1, 3, 3)  # 32 · 0.25 channels
    assert [len(stage) for stage in net.features[1:-1]] == [1, 1, 1, 1, 1, 2, 1]
    assert EfficientNet(dropout=0.4, **SMALL).classifier[0].p == 0.4


def test_stem_with_other_channels_is_torchvisions_but_for_the_channels() -> None:
    one, three = (EfficientNet(in_channels=channels, **SMALL).features[0][0] for channels in (1, 3))
    for name in ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"):
        assert getattr(one, name) == getattr(three, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "Swish"}, "activation must be one of .*'SELU'.*'SiLU'.*; got 'Swish'"),
        ({"activation": lambda: nn.ReLU(inplace=True)}, "activation must not work in place"),
        ({"normalization": "none"}, "normalization must be one of None, 'batch_norm'; got 'none'"),
        ({"init": "xavier"}, "init must be one of 'he_fan_out', 'he_fan_in', 'lecun', 'lsuv'; got 'xavier'"),
        ({"skip": "mean"}, "skip must be one of 'sum', 'mp_sum'; got 'mean'"),
        ({"gate": "mul"}, "gate must be one of 'scale', 'mp_scale'; got 'mul'"),
        ({"mp_weight": 1.5}, r"mp_weight must be in \[0, 1\]; got 1.5"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\); got -0.1"),
        ({"classifier_std": -1.0}, "classifier_std must be None or at least 0; got -1.0"),
        ({"width_mult": 0.0}, "width_mult must be above 0; got 0.0"),
        ({"depth_mult": -1.0}, "depth_mult must be above 0; got -1.0"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1; got 0"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1; got 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EfficientNet(**{**SMALL, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments", [{}, {**SN, **MP}])
def test_memory_formats_agree(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = EfficientNet(**SMALL, **arguments).eval()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        last(_images().contiguous(memory_format=torch.channels_last)), net(_images()), rtol=1e-4, atol=1e-6
    )


def test_compile_without_graph_break() -> None:
    torch.manual_seed(0)
    net = EfficientNet(**SMALL, **MP, dropout=0.0)
    compiled = copy.deepcopy(net)
    compiled.compile(fullgraph=True, backend="eager")  # blocks of it, differentiated in a graph: test_probe_compile.py
    for module in (net, compiled):
        module(_images(4)).square().sum().backward()
    assert list(compiled.state_dict()) == list(net.state_dict())
    # Rounding of sums in another order, where they nearly cancel.
    rounding = 1e-6 * max(float(parameter.grad.abs().max()) for parameter in net.parameters())
    for (name, expected), actual in zip(net.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=rounding, msg=name)


def test_copy_and_pickle() -> None:
    net = EfficientNet(**SMALL, **MP, activation=lambda: nn.ELU()).eval()
    expected = net(_images())
    assert torch.equal(copy.deepcopy(net)(_images()), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(_images()), expected)
