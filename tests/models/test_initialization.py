"""Moments of the initial weights, for every layer, against the formulas written out by the type of the layer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sppbench.models import FFNN, EfficientNet, initialize
from sppbench.models.initialization import rescale_to_unit_variance


def _assert_normal(weight: Tensor, variance: float, name: str) -> None:
    """Mean and variance within five standard errors: σ²/n and 2σ⁴/n are the variances of the sample moments."""
    values = weight.detach().double().flatten()
    assert abs(values.mean().item()) < 5 * math.sqrt(variance / len(values)), name
    assert abs(values.square().mean().item() / variance - 1) < 5 * math.sqrt(2 / len(values)), name


def _conv_variance(conv: nn.Conv2d, init: str) -> float:
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    depthwise = conv.groups > 1
    fan_in = taps if depthwise else taps * conv.in_channels
    fan_out = taps * conv.out_channels  # for depthwise layers, too
    return {"he_fan_out": 2 / fan_out, "he_fan_in": 2 / fan_in, "lecun": 1 / fan_in}[init]


@pytest.mark.parametrize("init", ["he_fan_out", "he_fan_in", "lecun"])
@pytest.mark.parametrize("normalization", [None, "batch_norm"])
def test_efficientnet_weights(init: str, normalization: str | None) -> None:
    torch.manual_seed(0)
    net = EfficientNet(init=init, normalization=normalization)
    convs = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convs) == 1 + 3 * 16 - 1 + 2 * 16 + 1  # stem, blocks (the first without expansion), SE, head
    for name, conv in convs.items():
        _assert_normal(conv.weight, _conv_variance(conv, init), name)
        assert (conv.bias is not None) == name.endswith((".fc1", ".fc2"))
    _assert_normal(net.classifier[1].weight, 0.01**2, "classifier")
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0), name
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)


@pytest.mark.parametrize(("classifier_std", "variance"), [(None, 1 / 1280), (0.1, 0.01)])
def test_efficientnet_classifier(classifier_std: float | None, variance: float) -> None:
    torch.manual_seed(0)
    net = EfficientNet(classifier_std=classifier_std)
    _assert_normal(net.classifier[1].weight, variance, "classifier")


@pytest.mark.parametrize("init", ["he_fan_out", "he_fan_in", "lecun"])
def test_ffnn_weights(init: str) -> None:
    torch.manual_seed(0)
    linears = [module for module in FFNN(init=init).modules() if isinstance(module, nn.Linear)]
    widths = [3072] + [512] * 9 + [100]
    assert len(linears) == 10
    for layer, fan_in, fan_out in zip(linears, widths[:-1], widths[1:], strict=True):
        variance = {"he_fan_out": 2 / fan_out, "he_fan_in": 2 / fan_in, "lecun": 1 / fan_in}[init]
        _assert_normal(layer.weight, variance, repr(layer))
        assert torch.all(layer.bias == 0)


def test_ffnn_forward_second_moment_follows_he() -> None:
    """He et al. 2015: 3072·(2/h)·E[x²] after the first layer, unchanged by each ReLU and Linear(h, h) after that."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    nets = []
    for _ in range(10):  # the moment of one finite net scatters by about sqrt(5 / h) per layer
        net = FFNN(depth=2, hidden_features=200)
        moments: list[Tensor] = []
        for i in range(3):
            net.get_submodule(f"block{i}.linear").register_forward_hook(
                lambda module, inputs, output, moments=moments: moments.append(output.square().mean())
            )
        net(images)
        nets.append(torch.stack(moments))
    expected = 3072 * 2 / 200 * images.square().mean()
    torch.testing.assert_close(torch.stack(nets).mean(0), expected.expand(3), rtol=0.2, atol=0)


def test_same_seed_same_weights_and_pairing_over_variants() -> None:
    def weights(seed: int, **arguments: Any) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return dict(EfficientNet(width_mult=0.25, depth_mult=0.3, **arguments).named_parameters())

    first, again, other = weights(1), weights(1), weights(2)
    without = weights(1, normalization=None, skip="mp_sum", gate="mp_scale")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])
    # The variants differ in modules that draw no random numbers, so a seed gives all of them the same weights.
    assert all(torch.equal(first[name], without[name]) for name in without)


def test_same_seed_same_ffnn() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(FFNN(hidden_features=16, normalization="batch_norm").state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_unknown_init_is_refused() -> None:
    with pytest.raises(
        ValueError, match="init must be one of 'he_fan_out', 'he_fan_in', 'lecun', 'lsuv'; got 'xavier'"
    ):
        initialize(nn.Linear(2, 2), "xavier")


@pytest.mark.parametrize("init", ["he_fan_out", "he_fan_in", "lecun", "lsuv"])
def test_each_weight_is_one_draw_from_the_global_generator(init: str) -> None:
    """So that weights stay what they were, bit for bit, and that "lsuv" draws no more than what it starts from."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 28 * 28, 5))
    torch.manual_seed(4)
    initialize(net, init)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    for layer, fan_in, fan_out in ((net[0], 27, 72), (net[1], 9, 72), (net[3], 6272, 5)):
        variance = {"he_fan_in": 2 / fan_in, "lecun": 1 / fan_in}.get(init, 2 / fan_out)
        drawn = torch.empty_like(layer.weight).normal_(0, math.sqrt(variance))
        if init == "lsuv":
            drawn *= layer.weight.detach().norm() / drawn.norm()
        torch.testing.assert_close(layer.weight.detach(), drawn, rtol=0 if init != "lsuv" else 1e-5, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def _variances(net: nn.Module, images: Tensor) -> dict[str, float]:
    """Of the output of each convolution and linear layer but those of squeeze-and-excitation."""
    found: dict[str, float] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.endswith((".fc1", ".fc2")):
            layer.register_forward_hook(
                lambda module, inputs, output, name=name: found.update({name: output.var().item()})
            )
    with torch.no_grad():
        net.eval()(images)
    return found


# SiLU, whose gain grows with its input, amplifies the differences between images from layer to layer, until few images
# hold most of the variance and 256 of them are a small sample. SELU and the bounded gates do not.
SELF_NORMALIZING = {"activation": "SELU", "skip": "mp_sum", "gate": "mp_scale"}


@pytest.mark.parametrize(("arguments", "factor"), [({}, 2.5), (SELF_NORMALIZING, 1.1)])
def test_lsuv_gives_unit_variances_to_images_it_has_not_seen(arguments: dict[str, Any], factor: float) -> None:
    torch.manual_seed(0)
    net = EfficientNet(normalization=None, init="lsuv", **arguments)
    variances = _variances(net, torch.randn(256, 3, 32, 32))
    assert len(variances) == 1 + 3 * 16 - 1 + 1 + 1
    logits = variances.pop("classifier.1")
    assert all(1 / factor < variance < factor for variance in variances.values()), variances
    assert variances["features.0.0"] == pytest.approx(1, rel=0.02)
    assert 0.01 < logits < 0.15  # 1280 weights of variance 0.01² and an activation of second moment 1 at most


def test_lsuv_is_exact_on_the_images_that_it_has_seen() -> None:
    """So that doing it again changes nothing, however wrong the scales were before the first time."""
    torch.manual_seed(0)
    net = EfficientNet(width_mult=0.25, depth_mult=0.3, normalization=None)
    layers = [layer for layer in net.features.modules() if isinstance(layer, nn.Conv2d) and layer.bias is None]
    norms = []
    for _ in range(2):
        rescale_to_unit_variance(net.features)
        norms.append(torch.stack([layer.weight.detach().norm() for layer in layers]))
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=0)
    with torch.no_grad():
        layers[2].weight *= 1e-3
        layers[5].weight *= 1e3
    rescale_to_unit_variance(net.features)
    again = torch.stack([layer.weight.detach().norm() for layer in layers])
    torch.testing.assert_close(again, norms[0], rtol=1e-3, atol=0)


def test_the_depthwise_collapse_is_gone() -> None:
    """Adam, ε = 1e-8, moves nothing where gradients are far smaller."""
    gradients = {}
    for init in ("he_fan_out", "lsuv"):
        torch.manual_seed(0)
        net = EfficientNet(normalization=None, init=init)
        logits = net(torch.randn(32, 3, 32, 32))
        assert (logits.std() < 1e-13) == (init == "he_fan_out")
        nn.functional.cross_entropy(logits, torch.arange(32)).backward()
        weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
        gradients[init] = [weight.grad.square().mean().sqrt().item() for weight in weights if weight.grad is not None]
    assert max(gradients["he_fan_out"]) < 1e-10
    assert min(gradients["lsuv"]) > 1e-6


def test_lsuv_keeps_directions_gates_and_classifier() -> None:
    nets = []
    for init in ("he_fan_out", "lsuv"):
        torch.manual_seed(1)
        nets.append(EfficientNet(width_mult=0.25, depth_mult=0.3, normalization=None, init=init))
    rescaled = 0
    for (name, before), after in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if ".fc" in name or "classifier" in name or name.endswith("bias"):
            assert torch.equal(before, after), name
        else:
            rescaled += not torch.equal(before, after)
            torch.testing.assert_close(before / before.norm(), after / after.norm(), msg=name)
    assert rescaled == len([name for name in nets[0].state_dict() if "weight" in name and ".fc" not in name]) - 1


def test_lsuv_leaves_modes_and_running_statistics_alone() -> None:
    net = EfficientNet(width_mult=0.25, depth_mult=0.3, init="lsuv")
    assert all(module.training for module in net.modules())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert torch.all(module.running_mean == 0)
            assert torch.all(module.running_var == 1)
    mixed = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5).eval(), nn.Linear(4, 2))
    for layer in (mixed[0], mixed[2]):
        nn.init.zeros_(layer.bias)
    rescale_to_unit_variance(mixed)
    assert [module.training for module in mixed.modules()] == [True, True, False, True]
    assert not any(module._forward_hooks for module in mixed.modules())


def test_lsuv_leaves_a_layer_alone_that_nothing_reaches() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Threshold(1e9, 0), nn.Linear(3, 2, bias=False))
    before = net[2].weight.detach().clone()
    rescale_to_unit_variance(net)
    assert torch.equal(net[2].weight, before)


@pytest.mark.parametrize("arguments", [{}, {"in_channels": 1, "image_size": 8}, {"normalization": "batch_norm"}])
def test_lsuv_of_an_ffnn(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = FFNN(hidden_features=200, init="lsuv", **arguments)
    images = torch.randn(512, arguments.get("in_channels", 3), *2 * [arguments.get("image_size", 32)])
    variances = _variances(net, images)
    assert len(variances) == 10
    assert all(variance == pytest.approx(1, rel=0.25) for variance in variances.values()), variances


def test_lsuv_is_the_same_at_each_seed_of_the_images() -> None:
    """They come from a generator of their own: two nets of one seed are equal, whatever was drawn in between."""
    nets = []
    for draws in (0, 3):
        net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
        nn.init.eye_(net[0].weight)
        nn.init.ones_(net[2].weight)
        torch.rand(draws)
        rescale_to_unit_variance(net)
        nets.append(net.state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
