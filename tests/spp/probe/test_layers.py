"""Which modules are layers, in what order, and where their channels are."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sppbench.spp.probe.channel_axis import ChannelAxis, KnownAxes, is_second, is_second_inside
from sppbench.spp.probe.layers import choose_layers, unwrapped


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(), nn.Linear(4, 2), nn.ReLU()
    )


ALL = ["0.0", "0.1", "0.2", "1", "2", "3"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ALL),
        ("0.1", ["0.1"]),
        ("0", ["0"]),
        ("0.*", ["0.0", "0.1", "0.2"]),
        ("*", ["Sequential", "0", *ALL]),
        ("Sequential", ["Sequential"]),
        (nn.ReLU, ["0.2", "3"]),
        (["2", "0.[01]", nn.Flatten], ["0.0", "0.1", "1", "2"]),
        ((nn.Linear,), ["2"]),
        (lambda name, module: hasattr(module, "weight"), ["0.0", "0.1", "2"]),
    ],
)
def test_choice(layers: object, expected: list[str]) -> None:
    assert list(choose_layers(net(), layers)) == expected  # type: ignore[arg-type]


def test_what_hands_on_its_input_is_no_layer_unless_all_are_asked_for() -> None:
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2), nn.Dropout(0.0), nn.Dropout(0.1), nn.AlphaDropout(0.0))
    assert list(choose_layers(model)) == ["1", "3"]
    assert list(choose_layers(model, "all")) == ["0", "1", "2", "3", "4"]
    assert list(choose_layers(model, nn.Identity)) == ["0"]


@pytest.mark.parametrize("layers", ["0.7", "conv*", nn.LSTM, ["0.0", "nothing"]])
def test_what_matches_nothing_is_an_error_that_names_it(layers: object) -> None:
    with pytest.raises(ValueError, match=r"0\.7|conv|LSTM|nothing"):
        choose_layers(net(), layers)  # type: ignore[arg-type]


def test_a_model_that_is_a_leaf_goes_by_its_class() -> None:
    assert list(choose_layers(nn.LSTM(2, 3))) == ["LSTM"]


def test_parametrizations_are_no_layers() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.ReLU())
    assert list(choose_layers(model)) == ["0", "1"]


def test_attention_is_one_layer() -> None:
    layers = choose_layers(nn.TransformerEncoderLayer(8, 2))
    assert "self_attn" in layers
    assert not any(name.startswith("self_attn.") for name in layers)
    kinds = {type(layer).__name__ for layer in choose_layers(torchvision.models.swin_t()).values()}
    assert "ShiftedWindowAttention" in kinds


def test_wrappers_leave_no_trace_in_the_names() -> None:
    model = net()
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model  # type: ignore[arg-type]
    model[0] = torch.compile(model[0])
    assert list(choose_layers(model)) == ALL


class LayerNorm2d(nn.LayerNorm):
    """As in torchvision and timm."""


def axes(*calls: tuple[nn.Module, tuple[int, ...]]) -> list[int | None]:
    """Of modules that are given tensors that no module before them has returned."""
    rule, found = ChannelAxis(), []
    for module, shape in calls:
        x = torch.zeros(shape)
        found.append(rule.of(is_second(module), (), x))
        rule.note(x, found[-1])
    return found


def test_channel_axis() -> None:
    act = nn.ReLU()
    assert axes((act, (2, 3))) == [1]
    assert axes((act, (2,)), (nn.Linear(1, 3), (3,))) == [None, 0]
    assert axes((act, (2, 3, 4)), (act, (2, 3, 4, 5))) == [2, 3]  # nothing told: (N, L, C), and then inherited
    assert axes((act, (2, 3, 4, 5))) == [1]
    assert axes((nn.Conv1d(1, 3, 1), (2, 3, 9)), (act, (2, 3, 9))) == [1, 1]
    assert axes((nn.Linear(1, 3), (2, 9, 3)), (act, (2, 9, 3)), (nn.Dropout(), (2, 9, 3))) == [2, 2, 2]
    # A permutation in between shows in the number of channels, in both directions.
    assert axes((nn.Conv2d(1, 8, 1), (2, 8, 5, 5)), (nn.Identity(), (2, 5, 5, 8))) == [1, 3]
    assert axes((nn.Linear(1, 8), (2, 5, 5, 8)), (nn.Identity(), (2, 8, 5, 5))) == [3, 1]
    assert axes((nn.Conv2d(1, 8, 1), (2, 8, 5, 5)), (nn.Dropout(), (2, 25, 8))) == [1, 2]  # patches
    # A sequence that is as long as there were channels: the tokens of a mixer, half of which a gate has taken.
    assert axes((nn.Linear(1, 8), (2, 5, 8)), (nn.Dropout(), (2, 8, 4))) == [2, 2]
    assert axes((nn.LayerNorm(8), (2, 5, 5, 8)), (LayerNorm2d(8), (2, 8, 5, 5))) == [3, 1]
    assert axes((nn.LayerNorm([8, 5, 5]), (2, 8, 5, 5))) == [1]
    assert axes((nn.Conv3d(1, 8, 1), (2, 8, 5, 5, 5)), (act, (2, 8, 5, 5, 5))) == [1, 1]


def test_a_tensor_that_a_module_returned_tells_where_its_channels_are() -> None:
    rule = ChannelAxis()

    def call(module: nn.Module, given: tuple[Tensor, ...], x: Tensor) -> tuple[int | None, bool]:
        axis = rule.of(is_second(module), given, x)
        rule.note(x, axis)
        return axis, rule.guessed

    second, last = torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)
    call(nn.Conv1d(1, 8, 1), (), second)
    call(nn.Linear(1, 8), (), last)
    assert call(nn.ReLU(), (second,), torch.zeros(2, 8, 8)) == (1, False)
    assert call(nn.ReLU(), (last,), torch.zeros(2, 8, 8)) == (2, False)
    assert call(nn.ReLU(inplace=True), (second,), second) == (1, False)
    assert call(nn.GLU(1), (second,), torch.zeros(2, 4, 8)) == (1, False)  # another number of channels
    assert call(nn.Identity(), (torch.zeros(2, 8, 8), second), torch.zeros(2, 8, 3)) == (1, False)  # a shorter sequence
    assert call(nn.ReLU(), (torch.zeros(2, 8, 8),), torch.zeros(2, 8, 8)) == (1, True)
    wide = torch.zeros(2, 5, 8)
    call(nn.Linear(1, 8), (), wide)
    assert call(nn.Identity(), (wide,), torch.zeros(2, 8, 5)) == (2, True)  # a permutation: neither of both is kept


def test_what_is_inside_of_a_block_tells_where_its_channels_are() -> None:
    transformer = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
    convolutional = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    mixed = nn.Sequential(nn.Conv2d(8, 8, 1), nn.LayerNorm(8))

    def after(before: nn.Module | None, block: nn.Module, shape: tuple[int, ...]) -> tuple[int | None, bool]:
        """Of a block that is given a tensor that no module has returned, behind a module with 8 channels."""
        rule = ChannelAxis()
        if before is not None:
            known = torch.zeros(2, *(8, 5, 5) if is_second(before) else (5, 8))
            rule.note(known, rule.of(is_second(before), (), known))
        return rule.of(is_second(block), (), torch.zeros(shape), is_second_inside(block)), rule.guessed

    # Before any other: the blocks alone are recorded.
    assert after(None, transformer, (2, 5, 8)) == (2, False)
    assert after(None, transformer, (2, 5, 5, 8)) == (3, False)
    assert after(None, convolutional, (2, 8, 5, 5)) == (1, False)
    assert after(None, convolutional, (2, 25, 8)) == (2, True)  # patches, flattened
    assert after(None, mixed, (2, 8, 5, 5)) == (1, True)
    # Where the number of channels fits at both ends, or at none.
    linear, convolution = nn.Linear(8, 8), nn.Conv2d(8, 8, 1)
    assert after(linear, transformer, (2, 8, 8)) == (2, False)
    assert after(linear, transformer, (2, 5, 3)) == (2, False)
    assert after(linear, mixed, (2, 8, 8)) == (2, True)
    assert after(convolution, convolutional, (2, 8, 8, 8)) == (1, False)
    assert after(convolution, transformer, (2, 8, 8, 8)) == (1, True)
    assert after(linear, transformer, (2, 8, 5, 5)) == (
        1,
        True,
    )  # at the other one: permuted


def test_a_tensor_that_is_gone_tells_nothing() -> None:
    known = KnownAxes()
    x = torch.zeros(2, 8, 8)
    known.add(x, 1)
    assert known.find([x]) == 1
    other = torch.zeros(2, 8, 8)
    known._axes[id(other)] = known._axes.pop(id(x))  # as if it had come to lie where x was
    del x
    assert known.find([other]) is None
