"""Which layer is which: by name, by place, or not at all."""

from __future__ import annotations

import pytest

from sppbench.spp.comparison.layer_matching import Net, match_layers, renamed
from sppbench.spp.history.schema import HistoryError


def net(*layers: str) -> Net:
    """Of "name:kind", or "name:kind:dimensions"."""
    parts = [layer.split(":") for layer in layers]
    return [(name, kind, int(rest[0]) if rest else 2) for name, kind, *rest in parts]


A = net("stem:Conv2d:4", "l.0:ReLU:4", "l.1:ReLU:4", "head:Linear")


def test_namesakes_belong_together_in_any_order() -> None:
    matching = match_layers(A, A[::-1])
    assert matching.pairs == {name: name for name, _, _ in A}
    assert (matching.by_order, matching.only_a, matching.only_b, matching.other_kind) == ({}, [], [], {})


def test_what_only_one_has_and_what_changed_its_kind() -> None:
    b = net("stem:Conv2d:4", "norm:BatchNorm2d:4", "l.0:GELU:4", "l.1:ReLU:4", "head:Linear", "softmax:Softmax")
    matching = match_layers(A, b)
    assert matching.only_a == []
    assert matching.only_b == ["norm", "softmax"]
    assert matching.other_kind == {"l.0": ("ReLU", "GELU")}


def test_between_the_same_namesakes_layers_are_matched_by_kind_and_order() -> None:
    b = net("stem:Conv2d:4", "stages.0:ReLU:4", "stages.1:ReLU:4", "head:Linear")
    matching = match_layers(A, b)
    assert matching.by_order == {"l.0": "stages.0", "l.1": "stages.1"}
    assert [*matching.pairs.items()] == [("stem", "stem"), *matching.by_order.items(), ("head", "head")]


def test_between_namesakes_kinds_that_only_one_has_are_passed_over() -> None:
    a, b = (
        net("conv1:Conv2d", "relu:ReLU", "conv2:Conv2d"),
        net("conv1:Conv2d", "drop:Dropout", "act:ReLU", "conv2:Conv2d"),
    )
    matching = match_layers(a, b)
    assert (matching.by_order, matching.only_a, matching.only_b) == ({"relu": "act"}, [], ["drop"])


def test_a_layer_that_was_taken_out_is_not_the_one_that_was_put_in_elsewhere() -> None:
    matching = match_layers(net("x:A", "old:N", "y:B", "z:C"), net("x:A", "y:B", "new:N", "z:C"))
    assert (matching.by_order, matching.only_a, matching.only_b) == ({}, ["old"], ["new"])


@pytest.mark.parametrize(
    "between",
    [net("p:ReLU", "q:Linear"), net("p:ReLU"), net("p:ReLU:4", "q:ReLU:3")],
    ids=["other kinds", "fewer", "other dimensions"],
)
def test_what_is_not_alike_is_not_matched_by_order(between: Net) -> None:
    matching = match_layers(A, [A[0], *between, A[3]])
    assert matching.only_a == ["l.0", "l.1"]
    assert matching.only_b == [name for name, _, _ in between]


def test_where_namesakes_changed_places_nothing_is_matched_by_order() -> None:
    matching = match_layers(net("x:A", "y:B", "old:N"), net("y:B", "x:A", "new:N"))
    assert (matching.only_a, matching.only_b) == (["old"], ["new"])


def test_a_port_is_matched_as_a_whole_without_the_kinds_that_only_one_has() -> None:
    b = net("m.s:Conv2d:4", "m.d:Dropout:4", "m.a:ReLU:4", "m.b:ReLU:4", "m.g:MyGate", "m.h:Linear")
    matching = match_layers(A, b)
    assert matching.pairs == {"stem": "m.s", "l.0": "m.a", "l.1": "m.b", "head": "m.h"}
    assert matching.by_order == matching.pairs
    assert matching.only_b == ["m.d", "m.g"]


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (["s:Conv2d:4", "h:Linear", "r:ReLU:4", "q:ReLU:4"], r"l\.0 \(ReLU, 4 .*\) of a and h \(Linear, 2 .*\) of b"),
        (["s:Conv2d:4", "r:ReLU:4", "q:ReLU:4", "h:Linear", "more:Linear"], r"more \(Linear, 2 .*\) of b is the first"),
        (["s:Embedding", "h:LayerNorm"], "no kind of layer in common: stem"),
    ],
)
def test_a_port_that_cannot_be_matched_is_an_error_that_names_the_first_layers(b: list[str], words: str) -> None:
    with pytest.raises(HistoryError, match=words):
        match_layers(A, net(*b))


def test_prefixes_are_replaced() -> None:
    b = net("stem:Conv2d:4", "model.b.0:ReLU:4", "model.b.1:ReLU:4", "head:Linear")
    matching = match_layers(A, b, {"l": "model.b"})
    assert matching.pairs["l.1"] == "model.b.1"
    assert matching.by_order == {}
    assert renamed("layers.10.x", {"layers.1": "y"}) == "layers.10.x"
    assert renamed("l#2", {"l": "m"}) == "m#2"


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [({"nowhere": "x"}, "no layer name of a begins with 'nowhere'"), ({"l.0": "l.1"}, "the same")],
)
def test_prefixes_that_make_no_sense(prefixes: dict[str, str], words: str) -> None:
    with pytest.raises(HistoryError, match=words):
        match_layers(A, A, prefixes)
