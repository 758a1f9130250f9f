"""The probe on eager modules: what it reads, of whatever net, and that it leaves training as it is."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import pickle
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sppbench.models.efficientnet import EfficientNet
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.layers import choose_layers
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.reasons import NO_GRAD
from tests.spp.reference import Recorder, check, same, second_or_last, seeded, select

ALL = ("activation", "gradient", "parameter", "parameter_gradient", "update")


def images(n: int = 4, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vectors(n: int = 8, size: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def loss_of(output: Tensor) -> Tensor:
    return output.square().mean()


def one_step(model: nn.Module, *inputs: Any, **options: Any) -> pd.DataFrame:
    with SignalProbe(model, **options) as probe:
        loss_of(model(*inputs)).backward()
        return probe.collect()


# -- any net ----------------------------------------------------------------------------------------------------------


def swin_axis(name: str, module: nn.Module, x: Tensor) -> int:
    return 1 if name in ("features.0.0", "permute", "avgpool") else x.ndim - 1


def vit_axis(name: str, module: nn.Module, x: Tensor) -> int:
    return 1 if name == "conv_proj" else x.ndim - 1


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], Any]] = {
    "resnet18": (torchvision.models.resnet18, lambda: (images(),), second_or_last),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, lambda: (images(),), second_or_last),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, lambda: (images(),), second_or_last),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(image_size=32), lambda: (images(2),), vit_axis),
    "swin_t": (torchvision.models.swin_t, lambda: (images(2, 40),), swin_axis),
    "transformer": (
        lambda: nn.Transformer(16, 2, 2, 2, 24, batch_first=True),
        lambda: (torch.randn(3, 5, 16), torch.randn(3, 4, 16)),
        lambda name, module, x: x.ndim - 1,
    ),
    "lstm": (
        lambda: nn.Sequential(nn.Embedding(7, 6), nn.LSTM(6, 5, batch_first=True)),
        lambda: (torch.randint(7, (3, 4)),),
        lambda name, module, x: x.ndim - 1,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.MaxPool1d(2)),
        lambda: (torch.randn(4, 3, 20),),
        lambda name, module, x: 1,
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(3, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(inplace=True)),
        lambda: (torch.randn(2, 3, 6, 6, 6),),
        lambda name, module, x: 1,
    ),
}


@pytest.mark.parametrize("net", NETS)
def test_statistics_of_any_net_are_those_of_its_stored_tensors(net: str) -> None:
    make, inputs, axis = NETS[net]
    model = seeded(make)
    recorder = Recorder(model, axis)
    with SignalProbe(model) as probe:
        output = model(*inputs())
        loss_of(output[0] if isinstance(output, tuple) else output).backward()
        frame = probe.collect()
    check(frame, recorder)
    # torchvision makes modules for stochastic depth where it does not call them.
    assert all("stochastic_depth" in name and "never called" in reason for name, reason in probe.skipped.items())
    layers = {*choose_layers(model)} - {*probe.skipped}
    for signal in ("activation", "gradient"):
        assert {layer.partition("#")[0] for layer in select(frame, signal).layer} == layers
    for row in select(frame, "activation").itertuples():
        assert row.ndim == recorder.tensors["activation", row.layer][0].ndim
    weights = {name for name, weight in model.named_parameters() if weight.ndim > 1}
    assert weights <= {name for layer in select(frame, "parameter").layer for name in (layer, f"{layer}.weight")}


def test_channels_last() -> None:
    model = seeded(torchvision.models.resnet18).to(memory_format=torch.channels_last)
    recorder = Recorder(model)
    with SignalProbe(model) as probe:
        loss_of(model(images(16, 64).to(memory_format=torch.channels_last))).backward()
        check(probe.collect(), recorder)


def test_rows_are_in_the_order_of_first_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    frame = one_step(Backwards(), vectors())
    assert list(zip(frame.depth, frame.layer, frame.signal, strict=True)) == [
        (depth, layer, signal)
        for depth, layer in enumerate(["first", "last"])
        for signal in ("activation", "gradient", "parameter")
    ]
    assert list(frame.columns) == [
        *("step", "epoch", "samples", "depth", "layer", "kind", "signal", "ndim"),
        *("acsm", "acv", "second_moment", "mean", "nonfinite", "absmax", "zeros", "subnormal", "block", "role"),
    ]
    assert set(frame.kind) == {"Linear"}
    assert set(frame.samples) == {8}


def test_a_model_that_is_one_layer() -> None:
    frame = one_step(nn.Linear(6, 4), vectors())
    assert list(frame.layer) == ["Linear"] * 3
    lstm = nn.LSTM(6, 4)
    with SignalProbe(lstm) as probe:
        loss_of(lstm(torch.randn(3, 2, 6))[0]).backward()
        found = probe.collect()
    assert set(select(found, "activation").layer) == {"LSTM"}
    assert set(select(found, "parameter").layer) == {"weight_ih_l0", "weight_hh_l0"}


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="unknown signal 'weights'"):
        SignalProbe(mlp(), signals=("weights",))
    with pytest.raises(ValueError, match="every_n_steps"):
        SignalProbe(mlp(), every_n_steps=0)
    with pytest.raises(ValueError, match="no layer"):
        SignalProbe(mlp(), layers=lambda name, module: False)


# -- outputs of any kind ----------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Record:
    ids: Tensor
    value: Tensor


class Mapped(OrderedDict):  # type: ignore[type-arg]
    """As the outputs of a well-known library of transformers."""


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda x: (x, None, x + 1),
    "list": lambda x: [x],
    "named tuple": lambda x: Pair(x, x + 1),
    "dict": lambda x: {"value": x, "other": 3},
    "ordered dict": lambda x: Mapped(loss=x.sum(), value=x),
    "dataclass": lambda x: Record(torch.ones(2, dtype=torch.int64), x),
    "nested": lambda x: ({"ids": torch.ones(2, dtype=torch.int64)}, [None, (x,)]),
}


class Wrapping(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x)


class Unwrapped(nn.Module):
    """A linear layer, something that returns anything, and the loss from what is inside of it."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrapping = nn.Linear(6, 4), Wrapping(wrap)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        output = self.wrapping(x)
        return find(output) if find(output) is not None else x


def find(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.ndim else None
    if dataclasses.is_dataclass(output):
        output = vars(output)
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((found for part in parts if (found := find(part)) is not None), None)


@pytest.mark.parametrize("output", OUTPUTS)
def test_tensor_inside_of_an_output(output: str) -> None:
    frame = one_step(seeded(lambda: Unwrapped(OUTPUTS[output])), vectors())
    for signal in ("activation", "gradient"):
        plain, wrapped = select(frame, signal, "linear"), select(frame, signal, "wrapping")
        assert wrapped.second_moment.item() == plain.second_moment.item()


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (lambda x: None, "no tensor"),
        (lambda x: "text", "no tensor"),
        (lambda x: (x > 0).long(), "int64"),
        (lambda x: x > 0, "bool"),
        (lambda x: x.sum(), "shape"),
        (lambda x: x[:0], "shape"),
        (lambda x: x.detach().to_sparse(), "sparse"),
        (lambda x: x.detach(), "no gradient"),
    ],
)
def test_output_that_cannot_be_recorded_is_skipped_with_the_reason(wrap: Any, reason: str) -> None:
    model = Unwrapped(lambda x: wrap(x))
    with SignalProbe(model) as probe:
        loss_of(model.linear(vectors())).backward()
        probe.start_pass()
        model.wrapping(model.linear(vectors()))
        frame = probe.collect()
    assert reason in probe.skipped["wrapping"]
    assert select(frame, "gradient", "wrapping").empty
    assert len(select(frame, "activation", "wrapping")) == (reason == "no gradient")


def test_number_of_channels_that_changes_within_a_step_is_a_reason_and_not_a_crash() -> None:
    model = nn.Sequential(nn.Identity())
    with SignalProbe(model, "all", signals=("activation",)) as probe:
        model(vectors(4, 6))
        model(vectors(4, 5))
        probe.collect()
    assert "number of channels" in probe.skipped["0"]


def test_one_dimensional_outputs_are_one_channel() -> None:
    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    recorder = Recorder(model)
    with SignalProbe(model) as probe:
        for n in (8, 3):
            loss_of(model(vectors(n))).backward()
        frame = probe.collect()
    x = torch.cat(recorder.tensors["activation", "1"])
    assert select(frame, "activation", "1").acv.item() == pytest.approx(float(x.var(correction=0)))


class Gated(nn.Module):
    """Gates half of the channels, of which there are as many as the sequence is long."""

    def __init__(self, functional: bool = False, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.up, self.glu, self.drop, self.down = nn.Linear(4, 16), nn.GLU(), nn.Dropout(0.1), nn.Linear(8, 4)
        self.functional, self.use_reentrant = functional, use_reentrant

    def gate(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.drop(nn.functional.glu(x) if self.functional else self.glu(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.use_reentrant is None:
            return self.down(self.gate(x))
        return self.down(checkpoint(self.gate, x, use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_dropout_has_the_channels_where_the_tensor_that_it_is_given_has_them(use_reentrant: bool | None) -> None:
    model = seeded(lambda: Gated(use_reentrant=use_reentrant))
    recorder = Recorder(model, lambda name, module, x: 2)
    with SignalProbe(model) as probe, warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(model(torch.randn(3, 16, 4, requires_grad=True))).backward()
        frame = probe.collect()
    if use_reentrant is not True:  # the recorder does not know that it is the same call
        check(frame, recorder)
    assert {probe._layers.rows["gradient", layer].channels for layer in ("glu", "drop")} == {8}


def test_an_axis_that_only_sizes_tell_is_said_once() -> None:
    model = seeded(lambda: Gated(functional=True))
    with SignalProbe(model) as probe:
        for step in range(2):
            loss_of(model(torch.randn(3, 16, 4))).backward()
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                probe.collect()
            assert [str(one.message).partition(" was")[0] for one in found] == ["the channel axis of drop"] * (not step)
    assert probe._layers.rows["activation", "drop"].channels == 8


def test_blocks_alone_tell_where_their_channels_are_by_what_is_inside() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2))
    with SignalProbe(model, layers=nn.TransformerEncoderLayer) as probe, warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(model(torch.randn(4, 8, 3))).backward()
        probe.collect()
    rows = probe._layers.rows
    assert {rows["gradient", f"1.layers.{block}"].channels for block in range(2)} == {8}


# -- calls of any kind ------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Calls ``fc`` three times, through checkpoints or not, and ``unused`` never."""

    def __init__(self, use_reentrant: bool | None = None) -> None:
        super().__init__()
        self.stem, self.fc, self.act, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)
        self.unused = nn.Linear(5, 5)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        def twice(x: Tensor) -> Tensor:
            return self.act(self.fc(self.act(self.fc(x))))

        def once(x: Tensor) -> Tensor:
            return self.act(self.fc(x))

        x = self.stem(x)
        for part in (twice, once, twice):
            x = part(x) if self.use_reentrant is None else checkpoint(part, x, use_reentrant=self.use_reentrant)
        return self.head(x)


def test_shared_and_unused_modules() -> None:
    model = seeded(Shared)
    recorder = Recorder(model)
    with SignalProbe(model) as probe:
        loss_of(model(vectors())).backward()
        frame = probe.collect()
    assert list(select(frame, "activation").layer)[:5] == ["stem", "fc", "act", "fc#2", "act#2"]
    kept = recorder.tensors
    for name in ("fc", "fc#2", "fc#3", "fc#4", "fc#5"):
        [activation], [gradient] = kept["activation", name], kept["gradient", name]
        assert select(frame, "activation", name).second_moment.item() == pytest.approx(
            float(activation.square().mean())
        )
        assert select(frame, "gradient", name).second_moment.item() == pytest.approx(float(gradient.square().mean()))
    assert probe.skipped == {"unused": "never called in training mode"}
    assert len(select(frame, "parameter", "unused")) == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("passes", [1, 2])
def test_activation_checkpointing_changes_nothing(use_reentrant: bool, passes: int) -> None:
    frames = []
    for model in (seeded(Shared), seeded(lambda: Shared(use_reentrant))):
        with SignalProbe(model) as probe:
            for _ in range(2):
                outputs = [model(vectors(seed=seed)) for seed in range(passes)]
                sum(map(loss_of, outputs)).backward()  # type: ignore[union-attr]
                frames.append(probe.collect())
    same(frames[0], frames[2])
    same(frames[1], frames[3])


def test_checkpointed_blocks_of_a_net_for_images() -> None:
    class Net(nn.Module):
        def __init__(self, use_reentrant: bool | None) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Conv2d(c, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for c in (3, 8)
            )
            self.use_reentrant = use_reentrant

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x) if self.use_reentrant is None else checkpoint(block, x, use_reentrant=self.use_reentrant)
            return x

    frames = [
        one_step(seeded(lambda kind=kind: Net(kind)), images(size=8).requires_grad_()) for kind in (None, False, True)
    ]
    same(frames[0], frames[1])
    same(frames[0], frames[2])


def test_inplace_activations_do_not_change_what_was_read_before_them() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.SiLU(inplace=True))
    plain = copy.deepcopy(model)
    plain[1].inplace = plain[3].inplace = False
    same(one_step(model, vectors()), one_step(plain, vectors()))


def test_of_sequences_an_inplace_activation_takes_no_gradient() -> None:
    """There the output of a Linear is a view, whose hooks are lost where it is overwritten."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4, bias=False), nn.SiLU(inplace=True))
    plain = copy.deepcopy(model)
    plain[1].inplace = plain[3].inplace = False
    x = torch.randn(3, 7, 6)
    frame = one_step(model, x)
    assert set(frame.loc[frame["signal"] == "gradient", "layer"]) == {"0", "1", "2", "3"}
    same(frame, one_step(plain, x))


def test_several_calls_of_the_model_before_backward_are_one_batch() -> None:
    model = seeded(mlp)
    with SignalProbe(model) as probe:
        x = vectors(12)
        torch.cat([model(x[:5]), model(x[5:])]).square().mean().backward()
        parts = probe.collect()
        loss_of(model(x)).backward()
        same(parts.assign(step=1), probe.collect())


def test_gradient_accumulation_gives_the_numbers_of_the_whole_batch() -> None:
    model = seeded(mlp)
    x = vectors(12)
    with SignalProbe(model, signals=("activation", "gradient", "parameter", "parameter_gradient")) as probe:
        for part in x.split(4):
            (loss_of(model(part)) / 3).backward()
        accumulated = probe.collect()
        model.zero_grad()
        loss_of(model(x)).backward()
        same(accumulated.assign(step=1), probe.collect())
    assert set(accumulated.samples) == {12}


def test_forward_of_a_part_of_the_model() -> None:
    model = nn.ModuleDict({"encoder": mlp(), "decoder": nn.Linear(3, 6)})
    with SignalProbe(model) as probe:
        for _ in range(2):
            with torch.no_grad():
                model["encoder"](vectors())
            loss_of(model["decoder"](model["encoder"](vectors()))).backward()
            frame = probe.collect()
    assert list(select(frame, "gradient").layer) == ["encoder.0", "encoder.1", "encoder.2", "decoder"]


@pytest.mark.filterwarnings("ignore:.*no layer ran")
def test_evaluation_is_not_recorded() -> None:
    model = mlp()
    with SignalProbe(model) as probe:
        with torch.no_grad():
            model(vectors())
        with torch.inference_mode():
            model(vectors())
        model.eval()
        loss_of(model(vectors())).backward()
        assert set(probe.collect().signal) == {"parameter"}
        model.train()
        with torch.no_grad():
            model(vectors(seed=7))
        loss_of(model(vectors())).backward()
        frame = probe.collect()
    assert not any("#" in layer for layer in frame.layer)
    same(frame.assign(step=0), one_step(model, vectors()))


def test_every_n_steps() -> None:
    model = mlp()
    lengths = []
    with SignalProbe(model, every_n_steps=3) as probe:
        for _ in range(7):
            loss_of(model(vectors())).backward()
            frame = probe.collect()
            lengths.append(set(frame.step) or None)
        assert list(frame.columns)
        probe.step = 300
        loss_of(model(vectors())).backward()
        assert set(probe.collect().step) == {300}
    assert lengths == [{0}, None, None, {3}, None, None, {6}]


def test_backward_after_the_step_has_ended_is_not_counted() -> None:
    model = mlp()
    with SignalProbe(model) as probe:
        late = loss_of(model(vectors()))
        assert select(probe.collect(), "gradient").empty
        late.backward()
        loss_of(model(vectors(seed=3))).backward()
        frame = probe.collect()
    same(frame.assign(step=0), one_step(model, vectors(seed=3)))


def test_handed_through_input_is_not_hooked_twice() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 4))
    x = vectors().requires_grad_()
    with SignalProbe(model, "all") as probe:
        for _ in range(2):
            loss_of(model(x)).backward()
            frame = probe.collect()
    assert not x._backward_hooks
    same(frame.assign(step=0), one_step(model, x, layers="all"))


def test_exception_in_forward_leaves_the_probe_usable() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.fail = mlp(), True

        def forward(self, x: Tensor) -> Tensor:
            x = self.net[1](self.net[0](x))
            if self.fail:
                raise ArithmeticError
            return self.net[2](x)

    model = Fails()
    with SignalProbe(model) as probe:
        with pytest.raises(ArithmeticError):
            model(vectors())
        probe.collect()
        model.fail = False
        loss_of(model(vectors())).backward()
        frame = probe.collect()
    same(frame.assign(step=0), one_step(model, vectors()))


# -- precision --------------------------------------------------------------------------------------------------------


def test_autocast_bfloat16() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    recorder = Recorder(model)
    with SignalProbe(model) as probe:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(1000 + images(16))
        assert output.dtype == torch.bfloat16
        loss_of(output.float()).backward()
        check(probe.collect(), recorder)


@pytest.mark.parametrize("scale", [2.0**16, torch.tensor(2.0**16), 1000.0])
def test_loss_scale_is_taken_out_of_gradients(scale: Any) -> None:
    model = mlp()
    frames = []
    with SignalProbe(model) as probe:
        for factor in (1.0, scale):
            (loss_of(model(vectors())) * factor).backward()
            frames.append(probe.collect(loss_scale=factor).assign(step=0))
    if float(scale) == 2.0**16:  # a power of two does not even round
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    same(*frames, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "smallest"), [(torch.float16, 2.0**-14), (torch.bfloat16, 2.0**-126)])
def test_what_underflows_in_half_precision_is_seen(dtype: torch.dtype, smallest: float) -> None:
    """Of six numbers two are 0 and one is below the smallest normal one; their gradients are all 1/8, or 0 by ReLU."""
    table = nn.Embedding(2, 3, dtype=dtype)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.0, smallest / 4, -3.0], [2 * smallest, 0.0, 1.0]]))
    model = nn.Sequential(table, nn.ReLU())
    with SignalProbe(model) as probe:
        for part in (torch.tensor([0, 1]), torch.tensor([1, 0])):
            (model(part) / 8).sum().backward()
        frame = probe.collect().set_index(["layer", "signal"])
    found = {key: (row.absmax, row.zeros, row.subnormal) for key, row in frame.iterrows()}
    for signal in ("activation", "parameter"):
        assert found["0", signal] == pytest.approx((3.0, 2 / 6, 1 / 6), rel=1e-12)
    assert found["1", "activation"] == pytest.approx((1.0, 3 / 6, 1 / 6), rel=1e-12)
    assert found["1", "gradient"] == (0.125, 0.0, 0.0)
    assert found["0", "gradient"] == (0.125, 0.5, 0.0)


def test_nonfinite_gradients_are_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Identity())
    with SignalProbe(model, "all") as probe:
        output = model(vectors())
        output.backward(torch.full_like(output, math.inf).index_fill(0, torch.tensor([1]), 1.0))
        frame = probe.collect()
    gradient = select(frame, "gradient", "1")
    assert gradient.nonfinite.item() == 7 * 5
    assert not math.isfinite(gradient.second_moment.item())
    assert select(frame, "activation", "1").nonfinite.item() == 0


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collect_after_step", [False, True])
@pytest.mark.parametrize("with_closure", [False, True])
def test_weights_their_gradients_and_updates(collect_after_step: bool, with_closure: bool) -> None:
    model = seeded(mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model[0].weight.detach().clone()
    with SignalProbe(model, signals=ALL) as probe:

        def closure() -> float:
            optimizer.zero_grad()
            loss = loss_of(model(vectors()))
            loss.backward()
            return float(loss.detach())

        if not with_closure:
            closure()
        if not collect_after_step:
            closure()
            frame = probe.collect()
        else:
            optimizer.step(closure) if with_closure else optimizer.step()
            kept = model[0].weight.grad.clone()
            optimizer.zero_grad()
            frame = probe.collect()
    channels = before.double()
    assert select(frame, "parameter", "0").acsm.item() == pytest.approx(float(channels.mean(1).square().mean()))
    assert select(frame, "parameter", "0").acv.item() == pytest.approx(float(channels.var(1, correction=0).mean()))
    assert set(select(frame, "parameter").layer) == {"0", "2"}
    if collect_after_step:
        gradient = float(kept.double().square().mean())
        assert select(frame, "parameter_gradient", "0").second_moment.item() == pytest.approx(gradient)
        assert select(frame, "update", "0").second_moment.item() == pytest.approx(0.25 * gradient, rel=1e-5)
    else:
        assert len(select(frame, "parameter_gradient")) == 2
        assert set(select(frame, "update").second_moment) == {0.0}


@pytest.mark.parametrize("by_name", [False, True])
def test_closures_that_an_optimizer_repeats_count_once(by_name: bool) -> None:
    model, calls = seeded(mlp), 0
    reference = copy.deepcopy(model)
    optimizers = [torch.optim.LBFGS(one.parameters(), max_iter=5) for one in (model, reference)]

    def closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(model(vectors()))
        loss.backward()
        return float(loss.detach())

    expected = one_step(copy.deepcopy(model), vectors(), signals=ALL[:4])
    with SignalProbe(model, signals=ALL) as probe:
        arguments = {"closure": lambda: closure(model, optimizers[0])}
        optimizers[0].step(**arguments) if by_name else optimizers[0].step(*arguments.values())
        assert calls > 2
        frame = probe.collect()
        loss_of(model(vectors())).backward()
        assert set(probe.collect().samples) == {8}
    assert set(frame.samples) == {8}
    same(frame[frame.signal != "update"], expected)
    optimizers[1].step(lambda: closure(reference, optimizers[1]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_which_parameters_are_weights() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.ones(1, 6))
            self.relative_position_bias_table = nn.Parameter(torch.ones(3, 2))
            self.tied, self.lazy, self.norm = nn.Linear(6, 6), nn.LazyLinear(4), nn.LayerNorm(6)
            self.other = nn.Linear(6, 6)
            self.other.weight = self.tied.weight
            self.logit_scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.other(self.tied(x + self.position))) * self.logit_scale

    frame = one_step(Odd(), vectors())
    assert set(select(frame, "parameter").layer) == {
        *("position", "relative_position_bias_table", "tied", "norm", "logit_scale")
    }
    assert select(frame, "parameter", "logit_scale").acsm.item() == 4.0
    chosen = one_step(Odd(), vectors(), layers="tied")
    assert set(select(chosen, "parameter").layer) == {"tied"}


class Experts(nn.Module):
    """A child, and weights of its own; it is called. In a model with a class token, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(2, 6, 6)), nn.Parameter(torch.full((6,), 2.0))
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.einsum("nc,ecd->nd", x, self.weight)) * self.scale


def test_modules_with_children_and_parameters_of_their_own_are_layers() -> None:
    model = nn.Sequential(
        OrderedDict(stem=nn.Linear(6, 6), experts=Experts(), drop=nn.Dropout(0.0), head=nn.Linear(6, 2))
    )
    model.register_parameter("token", nn.Parameter(torch.full((1, 6), 3.0)))
    recorder = Recorder(model)
    with SignalProbe(model) as probe:
        loss_of(model(vectors())).backward()
        frame = probe.collect()
    check(frame, recorder)
    assert list(select(frame, "gradient").layer) == ["stem", "experts.act", "experts", "head", "Sequential"]
    weights = select(frame, "parameter").set_index("layer")
    assert weights.second_moment[["token", "experts", "experts.scale"]].tolist() == [9.0, 1.0, 4.0]
    # What goes by the name of its module stands where that was called, what does not where that begins.
    assert weights.depth[["token", "stem", "experts", "experts.scale", "head"]].tolist() == [0, 0, 2, 0, 3]
    everything = one_step(model, vectors(), layers="all")
    assert list(select(everything, "gradient").layer) == [
        "stem",
        "experts.act",
        "experts",
        "drop",
        "head",
        "Sequential",
    ]
    assert list(select(everything, "parameter").layer) == list(weights.index)


class Complex(nn.Module):
    """A spectral layer: complex weights, activations and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6, dtype=torch.complex64))
        self.phase = nn.Linear(5, 4, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.phase(x.to(torch.complex64) @ self.weight.T).abs()


def of_complex(x: Tensor, axis: int) -> list[float]:
    """ACSM and ACV with the squares of absolute values."""
    z = x.detach().to(torch.complex128).movedim(axis, 0).flatten(1)
    mean = z.mean(1, keepdim=True)
    return [float(mean.abs().square().mean()), float((z - mean).abs().square().mean())]


@pytest.mark.parametrize("compiled", [False, True])
def test_complex_numbers_count_by_their_absolute_values(compiled: bool) -> None:
    torch.compiler.reset()
    model = seeded(Complex)
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
        seen["activation"] = output
        output.register_hook(lambda gradient: seen.update(gradient=gradient))

    handle = model.phase.register_forward_hook(keep)
    loss_of(model(vectors())).backward()
    handle.remove()
    weight, gradient = model.phase.weight.detach().clone(), model.phase.weight.grad.clone()
    model.zero_grad()
    with SignalProbe(model, signals=ALL) as probe:
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        loss_of(run(vectors())).backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        frame = probe.collect()
    assert set(frame.layer) == {"phase", "Complex"}
    for signal, x, axis in (
        *(("activation", seen["activation"], 1), ("gradient", seen["gradient"], 1)),
        *(("parameter", weight, 0), ("parameter_gradient", gradient, 0), ("update", 0.5 * gradient, 0)),
    ):
        row = select(frame, signal, "phase")
        assert [row.acsm.item(), row.acv.item()] == pytest.approx(of_complex(x, axis), rel=1e-4), signal


def test_sparse_gradients_are_those_of_the_dense_weight() -> None:
    frames = []
    for sparse in (False, True):
        model = seeded(lambda sparse=sparse: nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 2)))
        with SignalProbe(model, signals=ALL) as probe:
            loss_of(model(torch.tensor([[1, 3, 1], [8, 3, 1]]))).backward()
            torch.optim.SGD(model.parameters(), lr=0.5).step()
            frames.append(probe.collect())
    same(*frames)
    assert select(frames[1], "parameter_gradient", "0").second_moment.item() > 0


# -- what is not recorded ---------------------------------------------------------------------------------------------


class Incomplete(nn.Module):
    """A layer for each reason not to be recorded, and two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.frozen, self.unreached, self.unused, self.taken = (nn.Linear(6, 6) for _ in range(4))
        self.again, self.tied = self.stem, nn.Linear(6, 6)
        self.tied.weight = self.head.weight
        self.is_whole = False

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x + self.frozen(x)
        x = self.tied(self.head(nn.functional.linear(self.stem(x), self.taken.weight)))
        other = self.unreached(x)
        return x + other if self.is_whole else x


def test_each_layer_that_is_not_recorded_has_a_true_reason() -> None:
    model = Incomplete()
    with SignalProbe(model) as probe:
        loss_of(model(vectors())).backward()
        frame = probe.collect()
        assert probe.skipped == {
            "again": "it is the same module as stem",
            "tied.weight": "it is the same weight as head.weight",
            "frozen": "its output has no gradient: it ran under torch.no_grad()",
            "unreached": "no gradient reached its output",
            "unused": "never called in training mode",
            "taken": "never called in training mode: its weights are used without it",
        }
        assert {*select(frame, "activation").layer} == {"stem", "head", "tied", "frozen", "unreached"}
        model.is_whole = True
        loss_of(model(vectors()) + model.unused(vectors())).backward()
        probe.collect()
        assert "unreached" not in probe.skipped
        assert "unused" not in probe.skipped
        assert "frozen" in probe.skipped


def test_a_layer_that_only_runs_without_gradients_says_so() -> None:
    model = nn.ModuleDict({"teacher": nn.Linear(6, 5), "student": nn.Linear(6, 5)})
    with SignalProbe(model) as probe:
        for _ in range(2):
            with torch.no_grad():
                target = model["teacher"](vectors())
            probe.start_pass()
            loss_of(model["student"](vectors()) - target).backward()
            probe.collect()
    assert probe.skipped == {"teacher": NO_GRAD}


def test_lazy_modules_have_one_kind() -> None:
    frame = one_step(nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), vectors())
    assert {*zip(frame.layer, frame.kind, strict=True)} == {("0", "Linear"), ("1", "BatchNorm1d")}


# -- training is untouched --------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.flatten(2).transpose(1, 2)[:, :, :1].expand(-1, -1, 16)).mean(1))


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
    "efficientnet": lambda: EfficientNet(num_classes=3, width_mult=0.1, depth_mult=0.1, dropout=0.5),
    "transformer": Transformer,
}


@pytest.mark.parametrize("net", TRAINED)
def test_training_is_bit_identical(net: str) -> None:
    def train(probed: bool) -> tuple[list[float], dict[str, Tensor], Tensor]:
        model = seeded(TRAINED[net])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        probe = SignalProbe(model, signals=ALL, every_n_steps=2) if probed else None
        losses = []
        for step in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images(4, 16, seed=step)), torch.tensor([0, 1, 2, 1]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if probe is not None:
                assert list(model.state_dict()) == keys
                probe.collect()
        return losses, model.state_dict(), torch.get_rng_state()

    keys = list(seeded(TRAINED[net]).state_dict())
    (losses, state, random), (plain_losses, plain_state, plain_random) = train(True), train(False)
    assert losses == plain_losses
    assert torch.equal(random, plain_random)
    assert all(torch.equal(value, plain_state[name]) for name, value in state.items())


def test_close_leaves_nothing_behind() -> None:
    from torch.optim import optimizer as optimizers

    gc.collect()
    gc.collect()
    hooks = len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks)
    model = seeded(Transformer)
    before = {name: {**vars(module)} for name, module in model.named_modules()}
    everything = [
        list(model.state_dict()),
        [n for n, _ in model.named_buffers()],
        [n for n, _ in model.named_parameters()],
    ]
    with SignalProbe(model, signals=ALL) as probe:
        output = loss_of(model(images()))
        assert model.encoder.layers[0].norm1._forward_hooks
    output.backward()  # hooks in the graph that is left are silent
    assert not probe._sums
    assert probe.readings() is None
    assert probe.collect().empty
    assert everything == [
        *(list(model.state_dict()), [n for n, _ in model.named_buffers()]),
        [n for n, _ in model.named_parameters()],
    ]
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    for parameter in model.parameters():
        assert not parameter._backward_hooks
    assert (len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks)) == hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_copies_and_pickles_of_a_probed_model_are_without_probe() -> None:
    model = nn.Sequential(seeded(mlp), nn.BatchNorm1d(3))
    own = model[0].register_forward_hook(print_nothing)
    with SignalProbe(model) as probe, BatchNormProbe(model):
        pickled = pickle.dumps(model)
        assert b"sppbench" not in pickled
        averaged = torch.optim.swa_utils.AveragedModel(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickled), averaged.module):
            hooks = [hook for module in twin.modules() for hook in module._forward_hooks.values()]
            assert hooks == [print_nothing]
            assert not any(module._forward_pre_hooks for module in twin.modules())
            assert type(twin[1]._forward_hooks) is OrderedDict
            loss_of(twin(vectors())).backward()
            twin[0]._forward_hooks.clear()
            torch.jit.script(twin)
        loss_of(copy.copy(model)(vectors())).backward()  # it shares its modules with the model, but is another
        assert not select(probe.collect(), "gradient").empty
    assert not any(vars(module._forward_hooks) or vars(module._forward_pre_hooks) for module in model.modules())
    own.remove()
    assert not any(module._forward_hooks for module in model.modules())


def print_nothing(module: nn.Module, arguments: Any, output: Any) -> None:
    """A hook of somebody else."""


def test_forgotten_probe_is_freed_with_its_model() -> None:
    from torch.optim import optimizer as optimizers

    gc.collect()
    hooks = len(optimizers._global_optimizer_pre_hooks)
    model = mlp()
    forgotten = [weakref.ref(model), weakref.ref(SignalProbe(model))]
    del model
    gc.collect()
    assert [reference() for reference in forgotten] == [None, None]
    assert len(optimizers._global_optimizer_pre_hooks) == hooks


def test_no_activation_is_kept_alive() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 300))
    alive: list[weakref.ref[Tensor]] = []
    for module in model:
        module.register_forward_hook(lambda module, arguments, output: alive.append(weakref.ref(output)))
    with SignalProbe(model) as probe:
        loss_of(model(vectors(1000))).backward()
        gc.collect()
        assert [reference() for reference in alive] == [None] * 3
        # Two signals, three layers: the sums of C channels and seven totals each, and nothing else.
        kept = sum(sums.numel() for sums in probe._sums.values())
        assert kept == 2 * (5 + 5 + 300 + 3 * 7)
        probe.collect()
        assert not probe._sums


def test_nothing_recorded_is_said() -> None:
    model = mlp()
    with SignalProbe(model) as probe, pytest.warns(RuntimeWarning, match="no layer ran in training mode"):
        probe.collect()
