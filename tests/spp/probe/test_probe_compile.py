"""The probe inside of compiled graphs: no graph break, few graphs, the numbers of eager."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.efficientnet import MBConvConfig

from sppbench.models.efficientnet import MBConv
from sppbench.models.merges import Scale, Sum
from sppbench.spp.probe.probe import SignalProbe
from tests.spp.reference import same, seeded, select


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that counts the graphs it gets."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        self.count += 1
        return lookup_backend("aot_eager")(graph, inputs)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def images(n: int = 6, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module, probe: SignalProbe, batches: list[list[Tensor]], called: Callable[..., Any] | None = None
) -> pd.DataFrame:
    """Steps of accumulated batches; what the probe collected in them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frames = []
    for parts in batches:
        optimizer.zero_grad()
        for part in parts:
            (model if called is None else called)(part).square().mean().div(len(parts)).backward()
        optimizer.step()
        frames.append(probe.collect())
    return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)


def both(
    make: Callable[[], nn.Module],
    batches: list[list[Tensor]],
    in_place: bool = True,
    dynamic: bool | None = None,
    **options: Any,
) -> int:
    """Compares compiled with eager; returns the number of graphs."""
    eager, compiled, graphs = seeded(make), seeded(make), Graphs()
    with SignalProbe(eager, **options) as probe:
        expected = train(eager, probe, batches)
    called: Any = compiled
    if in_place:
        compiled.compile(backend=graphs, fullgraph=True, dynamic=dynamic)
    else:
        called = torch.compile(compiled, backend=graphs, fullgraph=True, dynamic=dynamic)
    with SignalProbe(called, **options) as probe:
        keys = list(compiled.state_dict())
        found = train(compiled, probe, batches, called)
        assert list(compiled.state_dict()) == keys
    same(found, expected)
    assert len(found)
    for name, value in compiled.state_dict().items():
        assert torch.equal(value, eager.state_dict()[name]), name
    return graphs.count


@pytest.mark.parametrize("in_place", [True, False])
def test_small_net_with_partial_batches_accumulation_and_inplace_activations(in_place: bool) -> None:
    accumulated = [[images(6, seed), images(6, seed + 9)] for seed in range(2)]
    rest = [[images(4)], [images(5)], [images(4), images(3)]] if in_place else []
    # One graph for the fixed, one for any size of a batch.
    assert both(Block, accumulated + rest, in_place) == (2 if in_place else 1)


def test_every_second_step_takes_a_graph_with_and_one_without_the_probe() -> None:
    batches = [[images(6, seed)] for seed in range(8)] + [[images(4)], [images(4)], [images(5)], [images(3)]]
    assert both(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), batches, every_n_steps=2) == 4


def test_block_of_efficientnet() -> None:
    # Expansion, depthwise convolution, squeeze-and-excitation and sum, each with batch normalization.
    config = MBConvConfig(2, 3, 1, 8, 8, 1)
    make = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(3, 8, 3), MBConv(config, 0.0, nn.BatchNorm2d, Sum, Scale), nn.AdaptiveAvgPool2d(1)
    )
    both(make, [[images()]] * 2)


def test_transformer_block() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, dropout=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(2).transpose(1, 2).repeat(1, 1, 4))

    both(Encoder, [[images(4, size=3)]] * 2)


def test_channels_are_where_the_tensor_that_a_layer_is_given_has_them() -> None:
    # As many channels as the sequence is long, half of which are gated away.
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.glu, self.act, self.down = nn.Linear(3, 8), nn.GLU(), nn.SELU(inplace=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.act(self.glu(self.up(x.flatten(2)[..., :8].transpose(1, 2)))))

    both(Gated, [[images()], [images(4)], [images(3)]], dynamic=True)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, x + 1),
        lambda x: [None, x],
        lambda x: Pair(x, x),
        lambda x: {"ids": (x > 0), "value": (x,)},
        lambda x: OrderedDict(ids=x > 0, value=(x,)),
    ],
    ids=["tuple", "list", "named tuple", "dict", "ordered dict"],
)
def test_tensor_inside_of_an_output(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapping(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wrapping, self.second = nn.Linear(8, 5), Wrapping(), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.wrapping(self.first(x.flatten(2).mean(1)[:, :8]))
            x = x["value"][0] if isinstance(x, dict) else x[1] if x[0] is None else x[0]
            return self.second(x)

    both(Net, [[images()]] * 2)


def test_shared_modules_and_outputs_without_gradient() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.fc, self.act, self.pick = nn.Linear(8, 8), nn.Tanh(), nn.Softmax(-1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.frozen(x.flatten(2).mean(1)[:, :8])
            return self.act(self.fc(self.act(self.fc(x))))

    both(Net, [[images()]] * 3)


def test_regions_compiled_by_themselves() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)), nn.Flatten())

    eager, compiled, graphs = seeded(make), seeded(make), Graphs()
    compiled[1] = torch.compile(compiled[1], backend=graphs, fullgraph=True)
    frames = []
    for model in (eager, compiled):
        with SignalProbe(model) as probe:
            frames.append(train(model, probe, [[images()], [images(), images(6, 2)], [images()]]))
    same(frames[1], frames[0])
    assert graphs.count == 1


def test_evaluation_is_not_recorded_and_takes_a_graph_of_its_own() -> None:
    model, graphs = seeded(Block), Graphs()
    with SignalProbe(model) as probe:
        model.compile(backend=graphs, fullgraph=True)
        for _ in range(3):
            model.eval()
            with torch.no_grad():
                model(images(6, 5))
            model.train()
            model(images()).square().mean().backward()
            assert set(probe.collect().samples) == {6}
    assert graphs.count == 2


@pytest.mark.parametrize("reset", [False, True])
def test_probe_attached_after_the_first_call_says_so(reset: bool) -> None:
    model = seeded(Block)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(images()).square().mean().backward()
    with SignalProbe(compiled) as probe:
        if reset:
            torch.compiler.reset()
            compiled(images()).square().mean().backward()
            assert len(select(probe.collect(), "gradient")) == 4
        else:
            compiled(images()).square().mean().backward()
            with pytest.warns(RuntimeWarning, match="before the first call of a compiled model"):
                probe.collect()
            assert set(probe.skipped) == {"conv", "norm", "act", "head"}
            assert all("torch.compiler.reset()" in reason for reason in probe.skipped.values())


def test_closing_takes_the_probe_out_of_the_graph() -> None:
    model, graphs = seeded(Block), Graphs()
    model.compile(backend=graphs, fullgraph=True)
    with SignalProbe(model) as probe:
        model(images()).square().mean().backward()
        assert len(select(probe.collect(), "gradient")) == 4
    model(images()).square().mean().backward()
    assert graphs.count == 2
    assert not any(list(slots.gradients()) for slots in probe._slots.values())


@pytest.mark.parametrize("fullgraph", [False, True])
def test_checkpointing_inside_of_a_graph(fullgraph: bool) -> None:
    class Net(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.block, self.head, self.checkpointed = Block(), nn.Linear(4, 2), checkpointed

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
            return self.head(x)

    frames = []
    for checkpointed in (False, True):
        model = seeded(lambda checkpointed=checkpointed: Net(checkpointed))
        with SignalProbe(model) as probe:
            if checkpointed:
                model.compile(backend="aot_eager", fullgraph=fullgraph)
            with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=fullgraph):
                frames.append(train(model, probe, [[images()], [images(), images(6, 3)]]))
    same(frames[1], frames[0])
