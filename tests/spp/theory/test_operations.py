"""Each operation that `expected_of_net` follows, between wide layers: expected values against those of the tensors.

The tensors are those of one wide random net, so that tolerances are those of `recorded`; where there is a closed form,
it is compared as well.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppbench.spp.theory.closed_forms import taps_overlap
from sppbench.spp.theory.net import expected_of_net
from tests.spp.theory.recorded import column, draw


class Op(nn.Module):
    """A layer without weights."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


class Between(nn.Module):
    """Two wide layers of the same input, and an operation on what they give."""

    def __init__(self, a: nn.Module, b: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.op = a, b, Op(function)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(self.a(x), self.b(x))
        return y


def moments_of(net: nn.Module, x: Tensor) -> dict[str, float]:
    """The second moment of each leaf's output."""
    found: dict[str, float] = {}
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: found.update({name: float(output.double().square().mean())})
        )
        for name, module in net.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        net.train()(x)
    for handle in handles:
        handle.remove()
    return found


def compare(net: nn.Module, x: Tensor, tolerance: float = 0.08) -> dict[str, float]:
    """The expected values, which are those of the tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = column(expected_of_net(net, x), "activation", "second_moment").to_dict()
    there = moments_of(net, x)
    assert expected
    for layer, value in expected.items():
        assert value == pytest.approx(there[layer], rel=tolerance), layer
    return expected


def normal(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """With weights of variance gain/fan_in."""
    weight = layer.get_parameter("weight")
    fan_in = weight[0].numel()
    nn.init.normal_(weight, std=math.sqrt(gain / fan_in))
    if layer.bias is not None:
        nn.init.normal_(layer.get_parameter("bias"), std=0.1)
    return layer


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def rms_norm_by_hand(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


VECTORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    # By name: the operation on two independent standard normal signals, and the second moment by its closed form.
    "sum": (lambda a, b: a + b, 2.0),
    "difference": (lambda a, b: a.sub(b, alpha=2), 5.0),
    "sum with itself": (lambda a, b: a + a, 4.0),
    "product": (lambda a, b: a * b, 1.0),
    "square": (lambda a, b: a * a, 3.0),
    "relu of a sum": (lambda a, b: F.relu(a + b), 1.0),
    # ¼ from b < 0, and ∫ φ(b)·[(1 + b²)·Φ(b) + b·φ(b)] over b > 0.
    "relu of a relu and a branch": (lambda a, b: F.relu(a + F.relu(b)), 1 + 1 / (2 * math.pi)),
    "larger": (torch.maximum, 1.0),
    "larger minus smaller": (lambda a, b: torch.maximum(a, b) - torch.minimum(a, b), 2.0),
    "concatenation": (lambda a, b: torch.cat([a, 3 * b], 1), 5.0),
    "relu of a concatenation": (lambda a, b: F.relu(torch.cat([a, 3 * b], 1)), 2.5),
    "gated halves": (lambda a, b: a.chunk(2, 1)[0] * a.chunk(2, 1)[1].sigmoid(), 0.2933),
    "halves of a square": (lambda a, b: (a * a).chunk(2, 1)[0] - (a * a).chunk(2, 1)[1], 4.0),
    "a number from all channels": (lambda a, b: a / a.abs().mean(1, keepdim=True), math.pi / 2),
    "norm": (lambda a, b: F.normalize(a, dim=1) * math.sqrt(a.shape[1]), 1.0),
    "layer norm": (lambda a, b: F.layer_norm(3 * a.relu(), a.shape[1:]), 1.0),
    "rms norm by hand": (lambda a, b: rms_norm_by_hand(3 * a.relu()), 1.0),
    "gelu by hand": (lambda a, b: gelu_by_hand(a), 0.4252),
    "dropout": (lambda a, b: F.dropout(a, 0.2), 1.25),
    "dropout of a relu, then a sum": (lambda a, b: F.dropout(a.relu(), 0.5) + b, 2.0),
    "in place": (lambda a, b: F.relu(a.mul_(2.0), inplace=True), 2.0),
}


@pytest.mark.parametrize("name", VECTORS)
def test_operations_on_vectors(name: str) -> None:
    function, value = VECTORS[name]
    torch.manual_seed(0)
    a, b = (normal(nn.Linear(1000, 1000, bias=False)) for _ in range(2))
    x = draw(100, 1000)
    x = x / x.square().mean().sqrt()
    expected = compare(Between(a, b, function), x)
    assert expected["op"] == pytest.approx(value, rel=0.02)


IMAGES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float | None]] = {
    "largest of two": (lambda a, b: F.max_pool2d(a, (1, 2)), 1.0),
    "largest of nine after relu": (lambda a, b: F.max_pool2d(a.relu(), 3, 2, 1), None),
    "mean of four": (lambda a, b: F.avg_pool2d(a, 2), 0.25),
    "mean of four after relu": (lambda a, b: F.avg_pool2d(a.relu(), 2), 0.125 + 3 / 4 / (2 * math.pi)),
    "global mean": (lambda a, b: a.square().mean((2, 3)), 1 + 2 / 36),
    "gate": (lambda a, b: a * F.adaptive_avg_pool2d(b.square(), 1), 1 + 2 / 36),
    "group norm": (lambda a, b: F.group_norm(3 * a.relu(), 25), 1.0),
    "instance norm": (lambda a, b: F.instance_norm(3 * a.relu()), 1.0),
    "channels dropped": (lambda a, b: F.dropout2d(a, 0.5), 2.0),
    "nearest pixel": (lambda a, b: F.interpolate(a, scale_factor=2.0), 1.0),
    "padded": (lambda a, b: F.pad(a, (1, 1, 1, 1)), 36 / 64),
    "permuted": (lambda a, b: a.permute(0, 2, 3, 1).reshape(len(a), 36, -1).transpose(1, 2) + b.flatten(2), 2.0),
}


@pytest.mark.parametrize("name", IMAGES)
def test_operations_on_images(name: str) -> None:
    function, value = IMAGES[name]
    torch.manual_seed(0)
    a, b = (normal(nn.Conv2d(300, 300, 1, bias=False)) for _ in range(2))
    expected = compare(Between(a, b, function), draw(8, 300, 6, 6))
    if value is not None:
        assert expected["op"] == pytest.approx(value, rel=0.02)


def test_a_transposed_convolution_and_one_over_the_places() -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(500, 300, 2, 2)
    nn.init.normal_(up.weight, std=0.05)
    compare(nn.Sequential(nn.Conv2d(3, 500, 3), nn.ReLU(), up), draw(8, 3, 8, 8))
    mixing = nn.Sequential(nn.Linear(64, 200), Op(lambda x: x.transpose(1, 2)), nn.Linear(49, 300), nn.GELU())
    compare(mixing, draw(8, 49, 64))


def test_two_places_behind_few_weights_are_alike_in_some_channels() -> None:
    """2×2 pixels through 5×5 taps: half of the taps of a place meet those of another; SiLU makes of it a mean."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(400, 2000, 1, bias=False),
        nn.Conv2d(2000, 2000, 5, padding=2, groups=2000, bias=False),
        nn.BatchNorm2d(2000),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    compare(net, draw(64, 400, 2, 2), tolerance=0.05)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), [(7, 3, 1, 1), (8, 3, 2, 1), (2, 5, 1, 2)])
def test_the_overlap_of_taps_is_counted(size: int, kernel: int, stride: int, padding: int) -> None:
    ones = torch.ones(1, 1, kernel)
    seen = torch.stack(
        [F.conv1d(pixel[None, None], ones, stride=stride, padding=padding)[0, 0] for pixel in torch.eye(size)]
    )
    both = seen.T @ seen
    assert taps_overlap(size, kernel, stride, padding) == (int(both.sum()), int(both.trace()))


class Attention(nn.Module):
    """Causal or not, by one of three ways."""

    def __init__(self, way: str, width: int, heads: int, gain: float) -> None:
        super().__init__()
        self.projections = nn.ModuleList(normal(nn.Linear(width, width), g) for g in (gain, gain, 1.0))
        self.mix = Op(getattr(self, way))
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self._heads, -1)).transpose(1, 2) for layer in self.projections)
        y: Tensor = self.mix(q, k, v)
        return y

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def by_hand(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        unseen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        weights = logits.masked_fill(unseen, float("-inf")).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("way", ["fused", "causal", "by_hand"])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_attention(way: str, gain: float) -> None:
    """With logits of 0 the mean of the keys that are seen: of independent values of second moment q, q/n remains."""
    torch.manual_seed(0)
    net, x = Attention(way, 512, 8, gain), draw(8, 32, 512)
    for layer in net.projections:
        nn.init.zeros_(layer.bias)
    expected = compare(net, x, tolerance=0.1)
    if gain == 0:
        shares = [1 / 32] if way == "fused" else [1 / n for n in range(1, 33)]
        assert expected["mix"] == pytest.approx(sum(shares) / len(shares), rel=0.03)


class Tokens(nn.Module):
    """As a transformer begins: embeddings with positions and a class token, and multi-head attention before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(50, 512), nn.Parameter(torch.randn(1, 17, 512))
        self.start = nn.Parameter(torch.randn(1, 1, 512))
        self.drop, self.norm = nn.Dropout(0.1), nn.LayerNorm(512)
        self.attention = nn.MultiheadAttention(512, 8, batch_first=True)
        self.up, self.down = normal(nn.Linear(512, 1000)), normal(nn.Linear(1000, 512))
        self.act, self.last = nn.GELU(), nn.LayerNorm(512)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(x), -1, -1), self.embedding(x)], 1)
        x = self.drop(x + self.positions)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(self.act(self.up(x)))
        return self.last(x)[:, 0]


def test_a_transformer_is_followed_from_its_tokens_on() -> None:
    torch.manual_seed(0)
    net = Tokens()
    tokens = torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = expected_of_net(net, tokens)
    assert table["second_moment"].notna().all()
    moment = column(table, "activation", "second_moment")
    assert moment["embedding"] == pytest.approx(1, rel=0.05)
    assert moment["drop"] == pytest.approx(2 / 0.9, rel=0.05)
    assert moment["norm"] == pytest.approx(1, rel=0.01)
    found: dict[str, float] = {}
    net.attention.register_forward_hook(lambda m, args, out: found.update(a=float(out[0].square().mean())))
    net.act.register_forward_hook(lambda m, args, out: found.update(b=float(out.square().mean())))
    net(tokens)
    assert moment["attention"] == pytest.approx(found["a"], rel=0.1)
    assert moment["act"] == pytest.approx(found["b"], rel=0.05)


class Overwritten(nn.Module):
    def __init__(self, tracked: bool) -> None:
        super().__init__()
        self.a, self.b, self._tracked = nn.Linear(8, 8), nn.Linear(8, 8), tracked

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        into = y if self._tracked else torch.zeros(y.shape)
        into[:, :4] += 2 * y[:, :4]
        result: Tensor = self.b(into)
        return result


@pytest.mark.parametrize("tracked", [True, False])
def test_what_is_written_into_a_part_of_a_tensor_is_not_taken_for_the_whole(tracked: bool) -> None:
    net = Overwritten(tracked)
    with pytest.warns(UserWarning, match=r"follows 1 of 2 layers; stopped at `Overwritten`.*through a view"):
        table = expected_of_net(net, draw(4, 8))
    assert table["second_moment"].isna().tolist() == [False, True]
