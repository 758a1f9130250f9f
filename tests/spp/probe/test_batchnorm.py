"""Backward gains of batch normalizations: every factor against autograd in double precision, and their product."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sppbench.models.efficientnet import EfficientNet
from sppbench.models.ffnn import FFNN
from sppbench.spp.history.reader import read_batchnorm
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.history.writer import BatchNormWriter
from sppbench.spp.names import BATCHNORM_COLUMNS
from sppbench.spp.probe.batchnorm import _IN_GRAPH, BatchNormProbe
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.sums.batchnorm_sums import CALLS
from tests.processes import in_processes

FACTORS = ["gain", "gamma_squared", "inverse_variance", "projection"]


def sums_by_autograd(bn: Any, x: Tensor, g: Tensor) -> np.ndarray:
    """Σg_in², Σg², Σγ²g², Σγ²g²/σ² and what the projection leaves of the last, by definition, in double precision.

    The projection is applied element by element here, and not as a formula for its mean square.
    """
    x, g = x.detach().double().requires_grad_(), g.detach().double()
    others = [axis for axis in range(x.ndim) if axis != 1]
    mean, variance = x.mean(others, keepdim=True), x.var(others, correction=0, keepdim=True)
    weight = torch.ones(x.shape[1]) if bn.weight is None else bn.weight.detach()
    weight = weight.double().view(1, -1, *[1] * (x.ndim - 2))
    normalized = (x - mean) / (variance + bn.eps).sqrt()
    [g_in] = torch.autograd.grad(weight * normalized, x, g)
    normalized, scale = normalized.detach(), (weight**2 / (variance + bn.eps)).detach()
    left = g - g.mean(others, keepdim=True) - normalized * (g * normalized).mean(others, keepdim=True)
    terms = [g_in**2, g**2, weight**2 * g**2, scale * g**2, scale * left**2]
    return np.array([float(term.sum()) for term in terms])


def factors_of(sums: np.ndarray) -> list[float]:
    inner, outer, gamma, variance, kept = sums
    return [inner / outer, gamma / outer, variance / gamma, kept / variance]


def passes(net: nn.Module, run: Callable[[], None]) -> dict[str, list[tuple[Any, Tensor, Tensor]]]:
    """Input and output gradient of every call of every batch normalization, by means other than the probe's."""
    seen: dict[str, list[tuple[Any, Tensor, Tensor]]] = {}
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):

            def hook(bn: Any, arguments: Any, output: Tensor, name: str = name) -> None:
                x = arguments[0].detach().clone()
                output.register_hook(lambda g: seen.setdefault(name, []).append((bn, x, g.clone())))

            handles.append(module.register_forward_hook(hook))
    run()
    for handle in handles:
        handle.remove()
    return seen


def expected(calls: list[tuple[Any, Tensor, Tensor]]) -> list[float]:
    return factors_of(sum(sums_by_autograd(*call) for call in calls))


def closure(frame: pd.DataFrame) -> pd.Series:
    """How far the product of the factors is from the gain, relatively."""
    product = frame["gamma_squared"] * frame["inverse_variance"] * frame["projection"]
    return (product / frame["gain"] - 1).abs()


class Net(nn.Module):
    """Every dimension, an in-place activation, and an input of a BN that goes elsewhere, too."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.bn2d = nn.BatchNorm2d(5, affine=affine)
        self.relu = nn.ReLU(inplace=True)
        self.bn3d = nn.BatchNorm3d(5, eps=0.1, affine=affine)
        self.bn1d = nn.BatchNorm1d(5, affine=affine)
        self.fc = nn.Linear(5 * 36, 7)
        self.bnflat = nn.BatchNorm1d(7, affine=affine)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.relu(self.bn2d(x)) + 0.5 * x
        x = x + self.bn3d(x.contiguous().unflatten(3, (3, 2))).flatten(3)
        x = self.bn1d(x.flatten(2))
        return self.bnflat(self.fc(x.flatten(1)))


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).logsumexp(1).square().mean()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("dtype", "layout", "compiled"),
    [
        (torch.float64, torch.contiguous_format, False),
        (torch.float64, torch.channels_last, True),
        (torch.float32, torch.contiguous_format, False),
        (torch.float32, torch.channels_last, False),
    ],
)
def test_factors_against_autograd(
    affine: bool, dtype: torch.dtype, layout: torch.memory_format, compiled: bool
) -> None:
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    net = Net(affine).to(dtype, memory_format=layout)
    x = (torch.randn(70, 3, 8, 8, dtype=dtype) + 1).to(memory_format=layout)
    calls = passes(net, lambda: loss_of(net, x).backward())
    with BatchNormProbe(net) as probe:
        run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        loss_of(run, x).backward()
        frame = probe.collect()
    assert list(frame) == list(BATCHNORM_COLUMNS)
    assert frame["layer"].tolist() == ["bn2d", "bn3d", "bn1d", "bnflat"]
    assert frame["depth"].tolist() == [0, 1, 2, 3]
    for row in frame.itertuples():
        found = [getattr(row, factor) for factor in FACTORS]
        assert found == pytest.approx(expected(calls[row.layer]), rel=tolerance)
    assert closure(frame).max() < tolerance
    assert probe.skipped == {}


@pytest.mark.parametrize("shape", [(4000, 12), (12, 12, 40, 40), (3000, 12, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
def test_many_values_in_single_precision(shape: tuple[int, ...], affine: bool) -> None:
    """Sums over 1e4 values a channel, and tensors whose layout is neither of the usual."""
    net = nn.Sequential((nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(12, affine=affine))
    x = (torch.randn(shape) * 3 + 5).requires_grad_()
    g = torch.randn(shape) * x.detach() + 0.3
    layouts = [g, g.movedim(0, -1).contiguous().movedim(-1, 0), g.flatten(1)[:, :1].view(-1, *[1] * (g.ndim - 1))]
    for output_gradient in (*layouts[:2], layouts[2].expand(shape)):
        with BatchNormProbe(net) as probe:
            net(x).backward(output_gradient)
            [row] = probe.collect().to_dict("records")
        found = [row[factor] for factor in FACTORS]
        assert found == pytest.approx(expected([(net[0], x, output_gradient)]), rel=5e-5)


def test_whole_nets_close() -> None:
    """At 16×16 images EfficientNet's last stages have 1×1 pixels, and depthwise outputs whose variance is near ε."""
    nets: list[nn.Module] = [
        FFNN(image_size=16, hidden_features=100, normalization="batch_norm", affine=affine) for affine in (True, False)
    ]
    nets += [EfficientNet(width_mult=0.25, depth_mult=0.5), EfficientNet(width_mult=0.25, depth_mult=0.5, affine=False)]
    for net in nets:
        net.train().to(memory_format=torch.channels_last)
        x = torch.randn(48, 3, 16, 16).to(memory_format=torch.channels_last)
        with BatchNormProbe(net) as probe:
            nn.functional.cross_entropy(net(x), torch.arange(48)).backward()
            frame = probe.collect()
        assert len(frame) == sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()) - (
            "conv_stem" in probe.skipped
        )
        assert closure(frame).max() < 1e-3
        assert (frame["projection"] < 1).all()
        assert (frame["projection"] > 0).all()
        if isinstance(net, EfficientNet):
            assert frame["inverse_variance"].max() > 0.1 / 1e-5  # ε is what bounds it


def test_compiled_together_with_a_signal_probe_in_two_parts_of_a_batch() -> None:
    """No graph break, and the numbers of eager; the parts of the batch are summed with their own statistics."""
    net = Net()
    parts = torch.randn(48, 3, 8, 8).split(24)  # of one size, and so in one graph

    def run(model: nn.Module) -> pd.DataFrame:
        with SignalProbe(net) as signals, BatchNormProbe(net) as probe:
            for part in parts:
                loss_of(model, part).backward()
            signals.collect()
            return probe.collect()

    calls = passes(net, lambda: [loss_of(net, part).backward() for part in parts] and None)
    eager = run(net)
    compiled = run(torch.compile(net, backend="aot_eager", fullgraph=True))
    for row in eager.itertuples():
        assert len(calls[row.layer]) == 2
        assert [getattr(row, factor) for factor in FACTORS] == pytest.approx(expected(calls[row.layer]), rel=2e-5)
    pd.testing.assert_frame_equal(eager, compiled, rtol=1e-4)
    assert closure(eager).max() < 1e-5


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_in_many_parts(compiled: bool) -> None:
    """What waits to be added up is added up on the way; a part may come from a graph of any size, and another not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 6), nn.BatchNorm1d(6))
    parts = torch.randn(190, 4).split([10, 9] * 10)
    calls = passes(net, lambda: [loss_of(net, part).backward() for part in parts] and None)
    with BatchNormProbe(net) as probe:
        graph = torch.compile(net, backend="aot_eager") if compiled else net
        for i, part in enumerate(parts):
            loss_of(graph if i % 3 == 1 else net, part).backward()
            assert len(probe._totals.calls) < CALLS * len(probe.layers)
        found = probe.readings()
    assert found is not None
    # What processes add up, and so must lie in memory alike.
    assert found.values.is_contiguous()
    expectation = [expected(calls[name]) for name in probe.layers]
    np.testing.assert_allclose(found.values[:, 1:].numpy(), expectation, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_training_is_not_touched(compiled: bool) -> None:
    def train(measured: bool) -> tuple[list[float], dict[str, Tensor]]:
        torch.manual_seed(0)
        torch._dynamo.reset()
        net = Net()
        keys = list(net.state_dict())
        probe = BatchNormProbe(net) if measured else None
        run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of(run, torch.randn(8, 3, 8, 8))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if probe is not None:
                assert len(probe.collect()) == 4
                assert list(net.state_dict()) == keys
        return losses, net.state_dict()

    (losses, state), (measured_losses, measured_state) = train(False), train(True)
    assert losses == measured_losses
    assert all(torch.equal(state[key], measured_state[key]) for key in state)


def test_nothing_is_left_behind_and_copies_are_free() -> None:
    net = Net()
    probe = BatchNormProbe(net)
    twin = copy.deepcopy(net)
    loss_of(twin, torch.randn(8, 3, 8, 8)).backward()
    assert probe.collect().empty
    loss = loss_of(net, torch.randn(8, 3, 8, 8))
    probe.close()
    loss.backward()  # hooks of the graph that are still there
    assert probe.readings() is None
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    reference = weakref.ref(probe)
    del probe, loss
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("affine", [True, False])
def test_no_activation_outlives_the_backward_pass(affine: bool) -> None:
    """Without a probe BN's input is freed in backward, even though the loss, and with it the graph, is still there."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Linear(6, 2))
    inputs: list[weakref.ref[Tensor]] = []
    net[0].register_forward_hook(lambda module, arguments, output: inputs.append(weakref.ref(output)))
    with BatchNormProbe(net) as probe:
        loss = loss_of(net, torch.randn(8, 4))
        assert inputs[0]() is not None
        loss.backward()
        assert inputs[0]() is None
        assert len(probe.collect()) == 1
    assert loss.grad_fn is not None


def test_dead_channels_zero_scales_and_constant_inputs() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4))
    nn.init.constant_(net[0].weight[1], 0)
    x = torch.randn(16, 4)
    x[:, 2] = 3  # v = 0
    x.requires_grad_()
    g = torch.randn(16, 4)
    g[:, 0] = 0  # no gradient
    probe = BatchNormProbe(net)
    net(x).backward(g)
    [row] = probe.collect().to_dict("records")
    assert [row[factor] for factor in FACTORS] == pytest.approx(expected([(net[0], x, g)]), rel=1e-5)
    net(x).backward(torch.zeros_like(g))
    assert probe.collect()[FACTORS].isna().all(axis=None)
    nn.init.zeros_(net[0].weight)
    net(x).backward(g)
    [row] = probe.collect().to_dict("records")
    assert (row["gain"], row["gamma_squared"]) == (0, 0)
    assert math.isnan(row["inverse_variance"])
    nn.init.ones_(net[0].weight)
    g[3, 3] = torch.nan
    net(x).backward(g)
    assert probe.collect()["gain"].isna().all()


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen = nn.BatchNorm1d(6).eval()
        self.unused = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.frozen(self.norm(self.second(x)))


class NormAndActivation(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:not measured")
def test_shared_frozen_unused_and_foreign_layers(compiled: bool) -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), Shared(), NormAndActivation(6))
    run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
    x = torch.randn(16, 4)
    calls = passes(net, lambda: loss_of(net, x).backward())
    assert len(calls["1.norm"]) == 2
    with BatchNormProbe(net) as probe:
        loss_of(run, x).backward()
        row = probe.collect().to_dict("records")[0]
    assert row["layer"] == "1.norm"
    assert [row[factor] for factor in FACTORS] == pytest.approx(expected(calls["1.norm"]), rel=1e-4)
    reasons = {
        "0": "its input needs no gradient",
        "1.frozen": "it is in evaluation mode",
        "1.unused": "never called in training mode",
    }
    assert probe.skipped == reasons | ({"2": _IN_GRAPH} if compiled else {})


class NormActivation(nn.BatchNorm2d):
    """As the layers of a well-known library: what it normalizes is given to its children."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Normalizes(nn.Module):
    """A batch normalization that is none of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), 1e-5
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return nn.functional.silu(
            nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 0.1, self.eps)
        )


@pytest.mark.parametrize(("kind", "compiled"), [(NormActivation, False), (NormActivation, True), (Normalizes, False)])
def test_a_normalization_inside_of_a_layer_is_followed(kind: type[nn.Module], compiled: bool) -> None:
    torch.compiler.reset()

    plain = nn.BatchNorm2d(6)
    frames = []
    for norm, parts in ((plain, (plain, nn.SiLU())), (one := kind(6), (one,))):
        torch.manual_seed(1)
        nn.init.uniform_(norm.weight, 0.5, 2)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), *parts, nn.Conv2d(6, 2, 3))
        run = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        with BatchNormProbe(net) as probe:
            run(torch.randn(4, 3, 9, 9)).square().mean().backward()
            frames.append(probe.collect()[FACTORS])
            assert not probe.skipped
    pd.testing.assert_frame_equal(*frames, rtol=1e-5)
    assert len(frames[0]) == 1


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_an_instance_normalization_has_a_channel_for_each_of_each_sample(affine: bool, batched: bool) -> None:
    x = torch.randn(3, 4, 5, 5)[... if batched else 0]
    net = nn.Sequential(nn.Conv2d(4, 6, 1), nn.InstanceNorm2d(6, affine=affine), nn.Conv2d(6, 2, 1))
    if affine:
        nn.init.uniform_(net[1].weight, 0.5, 2)
    bn = nn.BatchNorm1d(18 if batched else 6, affine=affine)
    if affine:
        bn.weight = nn.Parameter(net[1].weight.detach().repeat(3 if batched else 1))
    calls = []
    hidden = net[0](x)
    output = net[1](hidden)
    output.register_hook(lambda g: calls.append((bn, hidden.reshape(1, -1, 25), g.reshape(1, -1, 25))))
    net[2](output).square().mean().backward()
    with BatchNormProbe(net) as probe:
        net(x).square().mean().backward()
        [row] = probe.collect().to_dict("records")
    assert [row[factor] for factor in FACTORS] == pytest.approx(expected(calls), rel=1e-4)


def test_a_kind_that_cannot_be_followed_is_named_once() -> None:
    class Foreign(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return (input - input.mean(0)) / (input.var(0) + self.eps).sqrt()

    net = nn.Sequential(nn.Linear(4, 6), Foreign(6))
    with BatchNormProbe(net) as probe:
        for step in range(2):
            net(torch.randn(8, 4)).square().mean().backward()
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                assert probe.collect().empty
            assert [str(one.message)[:34] for one in found] == ["not measured: 1 (1: its output com"] * (not step)
    assert probe.skipped == {"1": "its output comes from DivBackward0"}


def test_steps_that_are_not_measured() -> None:
    net = Shared()
    probe = BatchNormProbe(net, every_n_steps=2)
    probe.epoch = 3
    frames = []
    for _ in range(4):
        loss_of(net, torch.randn(16, 4)).backward()
        with torch.no_grad():
            net(torch.randn(16, 4))
        frames.append(probe.collect())
    assert [frame["step"].tolist() for frame in frames] == [[0], [], [2], []]
    assert [frame["epoch"].tolist() for frame in frames] == [[3], [], [3], []]
    assert all(list(frame) == list(BATCHNORM_COLUMNS) for frame in frames)
    net.eval()
    net.norm.train()
    loss_of(net, torch.randn(16, 4)).backward()
    assert probe.collect().empty
    with pytest.raises(ValueError, match="every_n_steps must be an integer of at least 1; got 0"):
        BatchNormProbe(net, every_n_steps=0)
    assert BatchNormProbe(nn.Linear(2, 2)).collect().empty


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_under_activation_checkpointing(reentrant: bool, affine: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(16, 4, requires_grad=True)
    calls = passes(net, lambda: loss_of(net, x).backward())
    with BatchNormProbe(net) as probe:
        checkpoint(net, x, use_reentrant=reentrant).logsumexp(1).square().mean().backward()
        frame = probe.collect()
    if not affine and not reentrant:
        assert frame.empty
        assert "checkpointing" in probe.skipped["1"]
        return
    [row] = frame.to_dict("records")
    assert [row[factor] for factor in FACTORS] == pytest.approx(expected(calls["1"]), rel=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_half_precision(affine: bool) -> None:
    """Under autocast gradients are rounded to 8 bits, and in a net of bfloat16 μ and 1/σ that BN has saved as well."""
    x = torch.randn(256, 3, 8, 8)
    net = Net(affine)
    for dtype in (torch.float32, torch.bfloat16):
        net = net.to(dtype)
        with BatchNormProbe(net) as probe:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                y = net(x.to(dtype))
            (y.float().logsumexp(1).square().mean() * 2.0**16).backward()
            frame = probe.collect()
        assert len(frame) == 4
        assert closure(frame).max() < 0.02


def one_of_two(rank: int, number: int, net: nn.Module, parts: tuple[Tensor, ...]) -> tuple[tuple[str, ...], Tensor]:
    net = nn.parallel.DistributedDataParallel(net)
    probe = BatchNormProbe(net)
    loss_of(net, parts[rank]).backward()
    readings = probe.readings()
    assert readings is not None
    return readings.layers, readings.values


def test_two_processes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3), nn.BatchNorm1d(3))
    parts = torch.randn(24, 4).split([16, 8])
    layers, values = in_processes(partial(one_of_two, net=net, parts=parts), 2, tmp_path)[0]
    calls = passes(net, lambda: [loss_of(net, part).backward() for part in parts] and None)
    assert layers == ("module.1", "module.4")
    for name, row in zip(("1", "4"), values.tolist(), strict=True):
        assert row == pytest.approx([24 * calls[name][0][1].shape[1], *expected(calls[name])], rel=1e-5)


def test_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "batchnorm.parquet"
    net = Net()
    probe = BatchNormProbe(net)
    frames = []
    for step in range(6):
        probe.epoch = step // 2
        loss_of(net, torch.randn(8, 3, 8, 8)).backward()
        frames.append(probe.collect().astype(dict.fromkeys(FACTORS, np.float32)).astype(dict.fromkeys(FACTORS, float)))
    frames[1].loc[0, FACTORS] = np.nan
    writer = BatchNormWriter(path)
    writer.append(pd.concat(frames[:5]))
    writer = BatchNormWriter(path, resume_at=2)
    assert writer.last_step == 1
    for frame in frames[2:]:
        writer.append(frame.iloc[::-1])
    everything = pd.concat(frames, ignore_index=True)
    pd.testing.assert_frame_equal(read_batchnorm(path), everything, check_dtype=False)
    found = read_batchnorm(path, layers="bn?d", epochs=[0, 2], steps=range(1, 6))
    wanted = everything.query("layer != 'bnflat' and epoch != 1 and step > 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    with pytest.raises(HistoryError, match="no layer matches 'bn4d'"):
        read_batchnorm(path, layers="bn4d")
