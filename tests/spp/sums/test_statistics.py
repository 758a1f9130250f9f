"""The statistics against an independent two-pass computation in float64 and against closed forms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from sppbench.spp.sums.batched import TAIL, FirstAxisSums, Fold, Layout, Segments, joined
from sppbench.spp.sums.statistics import (
    _PIECE,
    _double_precision,
    _sums_on_device,
    _with_channels,
    acsm_acv,
    channel_rows,
    channel_sums,
    folded,
    statistics,
)


def two_pass(x: Tensor, channel_dim: int) -> tuple[float, float]:
    """ACSM and ACV as the paper defines them: means and variances channel by channel, in NumPy's float64."""
    channels = [channel.astype(np.float64) for channel in np.moveaxis(x.detach().double().numpy(), channel_dim, 0)]
    return float(np.mean([c.mean() ** 2 for c in channels])), float(np.mean([c.var() for c in channels]))


def formed(sums: Tensor) -> dict[str, float]:
    """The statistics of one tensor, by name, from its sums; without ``subnormal`` where that is not counted."""
    values = statistics(sums, Layout([len(sums) - len(TAIL)], sums.device))
    found = {name: float(value) for name, value in values._asdict().items()}
    return {name: value for name, value in found.items() if name != "subnormal" or not math.isnan(value)}


@pytest.fixture(params=["kernel", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the sums, where there is a compiler."""
    if request.param == "torch":
        monkeypatch.setattr("sppbench.spp.sums.statistics.kernel", lambda: None)
        monkeypatch.setitem(_PIECE, "cpu", 5000)
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Small, and large enough to be cut into pieces or divided among threads.
LAYOUTS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "(N, C)": (lambda: normal(7, 5), 1),
    "(N, C) large": (lambda: normal(601, 101), 1),
    "(N, L, C)": (lambda: normal(4, 6, 5), 2),
    "(N, L, C) large": (lambda: normal(33, 49, 41), -1),
    "(N, C, L)": (lambda: normal(4, 6, 5), 1),
    "(N, C, L) large": (lambda: normal(33, 41, 49), 1),
    "NCHW": (lambda: normal(3, 4, 5, 6), 1),
    "NCHW large": (lambda: normal(65, 24, 7, 9), 1),
    "NCHW, one pixel": (lambda: normal(301, 201, 1, 1), 1),
    "NCHW, one sample": (lambda: normal(1, 16, 65, 63), 1),
    "NHWC": (lambda: normal(65, 7, 9, 24), 3),
    "channels_last": (lambda: normal(65, 24, 7, 9).to(memory_format=torch.channels_last), 1),
    "NCDHW": (lambda: normal(17, 8, 5, 7, 9), 1),
    "channels_last_3d": (lambda: normal(17, 8, 5, 7, 9).to(memory_format=torch.channels_last_3d), 1),
    "weight": (lambda: normal(96, 40, 3, 3), 0),
    "weight of a linear layer": (lambda: normal(301, 203), 0),
    "matrix of one row": (lambda: normal(1, 50_000), 0),
    "one channel": (lambda: normal(300, 1, 15, 15), 1),
    "not contiguous": (lambda: normal(65, 24, 14, 9)[:, ::2, ::2], 1),
    "transposed": (lambda: normal(300, 200).T, 1),
    "permuted": (lambda: normal(33, 41, 7, 9).permute(0, 2, 3, 1), 3),
    "expanded": (lambda: normal(1, 24, 1, 1).expand(65, 24, 30, 30) + 0.0, 1),
    "expanded view": (lambda: normal(65, 24, 1, 1).expand(65, 24, 30, 30), 1),
}
CONTENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "float64": lambda x: x.double() + 0.3,
    "positive": lambda x: x.relu() + 0.1,
    "nearly constant": lambda x: 0.1 + 1e-3 * x,
    "large mean, tiny variance": lambda x: 1e4 + 0.5 * x,
    "squares overflow float32": lambda x: 1e25 * x,
    "squares underflow float32": lambda x: 1e-30 * x,
    "denormal": lambda x: 1e-42 * x,
    "wide range": lambda x: x * torch.logspace(-18, 18, x.shape[0]).view(-1, *[1] * (x.ndim - 1)),
    "zero": torch.zeros_like,
    "bfloat16": lambda x: (x + 0.5).bfloat16(),
    "float16": lambda x: (100 * x + 50).half(),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_content_agrees_with_two_passes_in_double_precision(
    layout: str, content: str, path: str
) -> None:
    make, channel_dim = LAYOUTS[layout]
    x = CONTENTS[content](make())
    before = x.clone()
    acsm, acv = two_pass(x, channel_dim)
    found = acsm_acv(x, channel_dim)
    noise = 1e-14 * (acsm + acv)
    assert found[0] == pytest.approx(acsm, rel=1e-9, abs=noise)
    assert found[1] == pytest.approx(acv, rel=1e-5, abs=0 if "expanded" not in layout else noise)
    assert sum(found) == pytest.approx(acsm + acv, rel=1e-12, abs=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [10, 300])
def test_vector_scalar_and_one_channel(size: int, path: str) -> None:
    x = normal(size) + 1
    # γ of a normalization: each element is a channel, with a mean and no variance.
    assert acsm_acv(x, 0) == pytest.approx((float(x.double().square().mean()), 0.0), rel=1e-12, abs=1e-14)
    assert acsm_acv(torch.tensor(-3.0), 0) == (9.0, 0.0)
    whole = formed(channel_sums(x, None))
    assert whole["acsm"] == pytest.approx(float(x.double().mean() ** 2), rel=1e-12)
    assert whole["acv"] == pytest.approx(float(x.double().var(correction=0)), rel=1e-12)
    assert (whole["samples"], len(channel_sums(x, None))) == (size, 1 + len(TAIL))


@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (64, 32, 8, 8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_elements_that_are_not_finite_are_counted_and_not_dropped(
    shape: tuple[int, ...], memory_format: torch.memory_format, path: str
) -> None:
    x = normal(*shape).to(memory_format=memory_format)
    for index, fault in zip(((0, 0, 0, 0), (1, 2, 3, 3), (7, 1, 0, 2)), (math.nan, math.inf, -math.inf), strict=True):
        x[index] = fault
    found = formed(channel_sums(x, 1))
    assert found["nonfinite"] == 3
    assert math.isnan(found["acsm"])
    assert math.isnan(found["acv"])
    assert found["samples"] == shape[0]
    assert formed(channel_sums(1e30 * torch.ones(shape), 1))["nonfinite"] == 0


def test_several_tensors_at_once_are_as_one_by_one() -> None:
    tensors = [normal(5, 3), normal(64, 32, 8, 8), normal(4), normal(6, 1, 2), 100 + normal(9, 70, 5)]
    sums = [channel_sums(x, 0 if x.ndim == 1 else 1) for x in tensors]
    together = statistics(torch.cat(sums), Layout([len(one) - len(TAIL) for one in sums], torch.device("cpu")))
    for i, one in enumerate(sums):
        for name, value in formed(one).items():
            assert float(getattr(together, name)[i]) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("shape", [(12, 5), (12, 7, 5), (96, 24, 6, 6)])
def test_parts_of_a_batch_add_up_to_the_batch(shape: tuple[int, ...]) -> None:
    # Means that drift over the batch: statistics of the parts could not be averaged.
    x = normal(*shape) + torch.linspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    parts = [channel_sums(part, 1) for part in x.split([shape[0] // 2, shape[0] // 3, shape[0] // 6])]
    total = functools.reduce(joined, parts)
    assert formed(total) == pytest.approx(formed(channel_sums(x, 1)), rel=1e-6, abs=1e-9)
    averaged = sum(formed(part)["acsm"] for part in parts) / 3
    assert averaged > 2 * formed(total)["acsm"]


def test_double_precision_path_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(50, 6, 30).double() + 2
    before = x.clone()
    whole = channel_sums(x, 1)
    monkeypatch.setitem(_PIECE, "cpu", 100)
    torch.testing.assert_close(channel_sums(x, 1), whole, rtol=1e-13, atol=1e-12, equal_nan=True)
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3, 63, 65, 500, 3000])
def test_the_smallest_variance_that_is_promised(channels: int, path: str) -> None:
    """A variance of 1e-10 of the second moment is right to 1e-5, however many channels there are."""
    x = 1.3 * (1 + 1e-5 * normal(200_000 // channels, channels))
    assert acsm_acv(x, 1)[1] == pytest.approx(two_pass(x, 1)[1], rel=1e-5)


def test_traced_path_agrees() -> None:
    x = normal(64, 32, 8, 8) + 0.2
    x[3, 1, 4, 1] = math.inf
    traced = torch.compile(channel_sums, backend="aot_eager", fullgraph=True)
    for part in (x, x[:7, :, 0]):
        torch.testing.assert_close(traced(part, 1), channel_sums(part, 1), rtol=1e-6, atol=1e-6, equal_nan=True)


# -- absmax, zeros and what is below the smallest normal number -------------------------------------------------------


def as_weight(x: Tensor, axis: int | None) -> Tensor:
    x = x.moveaxis(axis or 0, 0)
    return folded(FirstAxisSums([x])([x])[0])


WAYS: dict[str, Callable[[Tensor, int | None], Tensor]] = {
    "on a CPU": channel_sums,
    "without a kernel": lambda x, axis: _double_precision(*_with_channels(x, axis)),
    "on another device": lambda x, axis: _sums_on_device(*_with_channels(x, axis)),
    "in a compiled graph": lambda x, axis: folded(channel_rows(x, axis)),
    "of weights at once": as_weight,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_largest_magnitude_and_zeros_of_any_layout(layout: str, way: str) -> None:
    make, axis = LAYOUTS[layout]
    for x in (make(), make() - 4, (make() - 0.5).relu(), -make().relu(), torch.zeros_like(make())):
        found = formed(WAYS[way](x, axis))
        assert (found["absmax"], found["zeros"]) == (float(x.abs().max()), float((x == 0).double().mean()))
        assert "subnormal" not in found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("dtype", "smallest"), [(torch.float16, 2.0**-14), (torch.bfloat16, 2.0**-126), (torch.float32, 2.0**-126)]
)
def test_numbers_below_the_smallest_normal_one(dtype: torch.dtype, smallest: float, way: str) -> None:
    """Half of it, a quarter, ... until nothing is left: as many as the type has binary digits behind the first."""
    x = torch.tensor([sign * smallest * 2.0**-i for sign in (1, -1) for i in range(-2, 28)]).to(dtype).view(-1, 2)
    digits = round(-math.log2(torch.finfo(dtype).eps))
    found = formed(WAYS[way](x, 1))
    assert found["absmax"] == 4 * smallest
    assert found["zeros"] == pytest.approx((27 - digits) / 30, rel=1e-15)
    if dtype == torch.float32:  # nothing is lost there: it is not counted
        assert "subnormal" not in found
    else:
        assert found["subnormal"] == pytest.approx(digits / 30, rel=1e-15)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 2, 700, 1199])
def test_infinity_is_the_largest_and_nan_is_seen(dtype: torch.dtype, place: int, way: str) -> None:
    for fault, absmax in ((-math.inf, math.inf), (math.nan, math.nan)):
        x = normal(300, 4).relu().to(dtype)
        x.view(-1)[1] = math.inf  # less than NaN, before it and behind it
        x.view(-1)[place] = fault
        found = formed(WAYS[way](x, 1))
        assert found["absmax"] == pytest.approx(absmax, nan_ok=True)
        assert found["zeros"] == float((x == 0).double().mean())


def test_the_largest_of_parts_is_not_their_sum() -> None:
    parts = [normal(6, 5) for _ in range(3)]
    parts[1][2, 3], parts[2][0, 0] = -100.0, 0.0
    for way in (channel_sums, channel_rows):
        total = folded(functools.reduce(joined, [way(part, 1) for part in parts]))
        assert formed(total)["absmax"] == 100
        assert formed(total)["zeros"] == 1 / 90
    parts[0][0, 0] = math.nan
    for order in (parts, parts[::-1]):
        assert math.isnan(functools.reduce(joined, [channel_sums(part, 1) for part in order])[-1])


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_gaussian() -> None:
    """E[ACSM] = μ² + σ²/n and E[ACV] = σ²(1 − 1/n) for n samples a channel."""
    n, channels, mu, sigma = 50, 20_000, 0.3, 2.0
    acsm, acv = acsm_acv(mu + sigma * normal(n, channels))
    assert acsm == pytest.approx(mu**2 + sigma**2 / n, rel=0.02)
    assert acv == pytest.approx(sigma**2 * (1 - 1 / n), rel=0.01)


def test_the_largest_of_many_gaussians_and_the_zeros_of_a_relu() -> None:
    """Half of what a ReLU makes of z is 0; of n magnitudes the median of the largest is Φ⁻¹((1 + 2^(-1/n))/2)."""
    n = 1_000_000
    x = normal(n // 100, 100)
    found = formed(channel_sums(x.relu(), 1))
    assert found["zeros"] == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    median = math.sqrt(2) * float(torch.erfinv(torch.tensor(2.0 ** (-1 / n), dtype=torch.float64)))
    assert formed(channel_sums(x, 1))["absmax"] == pytest.approx(median, abs=0.6)


def test_he_initialised_relu_chain_keeps_its_second_moment() -> None:
    """He et al. 2015, eq. 10: q = E[x²] is kept by Linear(√(2/h)) and halved by the ReLU that follows."""
    width, depth = 2000, 5
    x = normal(500, width)
    for layer in range(depth):
        linear = x @ normal(width, width, seed=layer + 1).mul(math.sqrt(2 / width))
        x = linear.relu()
        assert sum(acsm_acv(linear)) == pytest.approx(2.0, rel=0.12)
        assert sum(acsm_acv(x)) == pytest.approx(1.0, rel=0.12)


def test_selu_fixed_point() -> None:
    """Klambauer et al. 2017: LeCun weights keep mean 0 and variance 1; gradients gain E[SELU'(z)²] = 1.0716 a layer."""
    width, gain = 2000, 1.0716
    x = normal(1000, width).requires_grad_()
    weight = normal(width, width, seed=1).div(math.sqrt(width))
    x_out = nn.functional.selu(x @ weight)
    overall = x_out.detach().double()
    assert float(overall.mean()) == pytest.approx(0.0, abs=0.01)
    assert sum(acsm_acv(x_out)) == pytest.approx(1.0, rel=0.03)
    arriving = normal(1000, width, seed=2)
    x_out.backward(arriving)
    assert x.grad is not None
    assert sum(acsm_acv(x.grad)) / sum(acsm_acv(arriving)) == pytest.approx(gain, rel=0.03)


def test_gradient_of_a_linear_layer_before_batch_normalization_has_no_mean() -> None:
    """Batch normalization's backward removes the batch mean: ACSM is 0 up to rounding, the second moment is not."""
    linear, norm = nn.Linear(64, 100), nn.BatchNorm1d(100)
    y = linear(normal(512, 64))
    y.retain_grad()
    norm(y).tanh().square().mean().backward()
    assert y.grad is not None
    acsm, acv = acsm_acv(y.grad)
    assert acv > 0
    assert acsm < 1e-12 * acv


ROWS_OF = [
    ((6, 5, 7, 3), 1),
    ((6, 7, 3, 5), -1),
    ((4, 9), 1),
    ((4, 9), None),
    ((5,), 0),
    ((5,), None),
    ((5, 3, 3), 0),  # an image without a batch
    ((2, 1, 7, 7), 1),
]


@pytest.mark.parametrize(("shape", "axis"), ROWS_OF)
def test_rows_of_compiled_graphs_fold_to_the_same_sums(shape: tuple[int, ...], axis: int | None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for value in (0.0, torch.nan, torch.inf):
        x.view(-1)[0] = value
        torch.testing.assert_close(folded(channel_rows(x, axis)), channel_sums(x, axis), equal_nan=True)


def test_all_tensors_of_a_step_are_folded_at_once() -> None:
    tensors = [torch.randn(shape) for shape, _ in ROWS_OF]
    axes = [axis for _, axis in ROWS_OF]
    vectors = [channel_sums(x, axis) for x, axis in zip(tensors, axes, strict=True)]
    mixed = [
        channel_rows(x, axis) if i % 3 else vectors[i] for i, (x, axis) in enumerate(zip(tensors, axes, strict=True))
    ]
    for sums in (mixed, vectors):
        fold = Fold([tuple(one.shape) for one in sums], torch.device("cpu"))
        torch.testing.assert_close(fold(sums), torch.cat(vectors), equal_nan=True)
    # Rows add up, also over a batch that is not of the same size: 2 times 7/49 is not 2/7 in binary.
    many = functools.reduce(joined, [channel_rows(torch.ones(n, 2, 7, 7), 1) for n in range(1, 50)])
    wanted = [49 * 1225.0, 1225.0, 1.0]
    assert folded(many)[-3:].tolist() == Fold([(8, 2)], many.device)([many])[-3:].tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_reductions_over_the_same_axes_and_nothing_else(dtype: torch.dtype) -> None:
    """What a compiler can put into one reading of the tensor: whatever else there was would be kernels of its own."""
    graph = make_fx(lambda x: channel_rows(x, 1))(torch.randn(2, 3, 4, 4).to(dtype)).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    sums, maxima = torch.ops.aten.sum.dim_IntList, torch.ops.aten.amax.default
    reductions = [node for node in calls if node.target in (sums, maxima)]
    assert [node.args[1] for node in reductions] == [[0, 2, 3]] * 8
    depends = {node for node in graph.nodes if node.op == "placeholder"}
    for node in calls:
        assert depends & set(node.all_input_nodes), f"{node} is a constant"
        depends.add(node)


WEIGHTS = {
    "convolution": lambda: normal(24, 8, 3, 3),
    "channels_last": lambda: normal(24, 8, 3, 3).to(memory_format=torch.channels_last),
    "depthwise": lambda: normal(96, 1, 5, 5),
    "linear": lambda: normal(7, 300),
    "transposed": lambda: normal(300, 7).T,
    "scale": lambda: normal(10),
    "scalar": lambda: normal(1)[0],
    "one channel": lambda: normal(1, 5000),
    "half precision": lambda: normal(6, 50).bfloat16(),
    "double precision": lambda: normal(6, 50).double(),
    "pruned": lambda: (normal(30, 20) - 1).relu(),
    "underflowing": lambda: (1e-6 * normal(6, 50) ** 3).half(),
}


def test_weights_are_summed_at_once_as_one_by_one() -> None:
    tensors = [make() for make in WEIGHTS.values()]
    tensors[0][3, 1, 2, 0], tensors[3][6, 299] = math.nan, -math.inf
    before = [x.clone() for x in tensors]
    for name, x, rows in zip(WEIGHTS, tensors, FirstAxisSums(tensors)(tensors), strict=True):
        torch.testing.assert_close(folded(rows), channel_sums(x, 0), rtol=1e-13, atol=1e-13, equal_nan=True, msg=name)
    for x, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(x, copy, rtol=0, atol=0, equal_nan=True)
    (single,) = FirstAxisSums(tensors[:1])(tensors[:1])
    torch.testing.assert_close(folded(single), channel_sums(tensors[0], 0), equal_nan=True)


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("block", [64, 10**9])
def test_values_of_segments_are_added_up(gap: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sppbench.spp.sums.batched._BLOCK", block)
    sizes = [1, 63, 64, 65, 128, 1000, 2]
    values = [normal(size + gap, seed=size).double() for size in sizes]
    found = Segments(sizes, torch.device("cpu"), gap)(torch.cat(values))
    expected = [math.fsum(one[:size].tolist()) for one, size in zip(values, sizes, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)
