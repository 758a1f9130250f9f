"""What views, copies, slices and concatenations do to the axes of a tensor."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from sppbench.spp.theory.layer_rules import Keep
from sppbench.spp.theory.layout import axis, count, flattened, resized, roles
from sppbench.spp.theory.place_rules import JoinChannels, JoinPlaces, Select, SomeChannels, Spread
from sppbench.spp.theory.trace import Call, Stopped, Value, follows
from sppbench.spp.theory.view_axes import ORDERS, PARTS, SAME, SHAPES, axes_of_view


@follows(*SAME)
def _same(call: Call) -> Value:
    if call.name == "copy" and "src" in call.arguments:
        return call.signal(call["src"])
    return call.signal(call.tensors[0])


@follows(*SHAPES, *ORDERS, "as_strided")
def _view(call: Call) -> Value:
    value = _given(call)
    if value.mask is not None:
        return value
    axes = axes_of_view(call.name, call.arguments, value.axes, call.shapes[0])
    if axes is None:
        raise Stopped("a view that splits an axis differently from how it was merged")
    flat = flattened(axes)
    if flat == axes:
        return replace(value, axes=axes)
    return call.add(Keep(count(flat, "p")), (value.node,), flat)


def _given(call: Call) -> Value:
    value = call.value(call.tensors[0])
    if value is None:
        raise Stopped("it begins with a constant")
    return value


@follows(*PARTS, "select", "unbind")
def _part(call: Call) -> list[Value]:
    x = call.tensors[0]
    value = _given(call)
    dim = int(call.get("dim", 0)) % x.ndim
    result = []
    for number, shape in enumerate(call.shapes):
        axes = axes_of_view(call.name, call.arguments, value.axes, shape)
        if axes is None or value.node is None:
            raise Stopped("a part of an axis that was merged from several")
        size = 1 if call.name in ("select", "unbind") else shape[dim]
        if size == x.shape[dim]:
            result.append(replace(value, axes=axes))
            continue
        begin = int(call.get("start") or call.get("index") or 0) if call.name in ("slice", "select") else number
        kind = roles(value.axes[dim])
        if kind == {"c"}:
            rule = SomeChannels(size / x.shape[dim], begin)
            result.append(call.add(rule, (value.node,), axes))
        elif kind <= {"p"}:
            places = count(axes, "p")
            result.append(call.add(Select(places, places), (value.node,), axes))
        elif kind == {"n"}:
            rest = replace(value, axes=axes)
            result.append(call.add(Spread(count(axes, "n"), count(axes, "p")), (rest.node,), axes))
        else:
            raise Stopped("a part of an axis that was merged from several")
    return result


@follows("constant_pad_nd")
def _pad(call: Call) -> Value:
    x = call.signal(call["self"], 1)
    if call.get("value"):
        raise Stopped("padding that is not zero")
    axes = resized(x.axes, call.shapes[0])
    if axes is None or count(axes, "c") != count(x.axes, "c") or count(axes, "n") != count(x.axes, "n"):
        raise Stopped("padding of channels")
    places = count(axes, "p"), count(x.axes, "p")
    if places[0] < places[1]:
        return call.add(Select(places[0], places[0]), (x.node,), axes)
    return call.add(Select(*places), (x.node,), axes)


@follows("expand", "repeat_interleave", "upsample_nearest2d", "upsample_nearest1d", "upsample_nearest3d")
def _expand(call: Call) -> Value:
    x = call.signal(call.tensors[0], 1)
    shape = call.shapes[0]
    axes = ((),) * (len(shape) - len(x.axes)) + x.axes
    grown = []
    for i, (one, size) in enumerate(zip(axes, shape, strict=True)):
        known = math.prod(length for _, length in one)
        if known == size:
            grown.append(one)
        elif not one:
            grown.append(axis("n" if i == 0 and count(axes, "n") == 1 else "c", size))
        elif roles(one) <= {"p"}:
            grown.append(axis("p", size))
        else:
            raise Stopped("it repeats channels")
    result = tuple(grown)
    return replace(x, axes=result, node=call.spread(x, result), paths={})


@follows("cat", "stack")
def _join(call: Call) -> Value:
    tensors: list[Tensor] = call["tensors"]
    dim = int(call.get("dim", 0)) % len(call.shapes[0])
    signals = [x for x in tensors if call.is_signal(x)]
    first = call.signal(signals[0], -1 if len(call.shapes[0]) == 3 else 1)
    if call.name == "stack":
        nodes = [call.signal(x).node for x in tensors]
        axes = (*first.axes[:dim], axis("c", len(tensors)), *first.axes[dim:])
        return call.add(JoinChannels((1 / len(nodes),) * len(nodes)), nodes, axes)
    like = list(first.axes)
    whole = resized(first.axes, call.shapes[0])
    if whole is None:
        raise Stopped("a concatenation along an axis that was merged from several")
    kind = roles(whole[dim])
    nodes, shares = [], []
    for x in tensors:
        if not x.numel():
            continue
        like[dim] = axis(next(iter(kind), "c"), x.shape[dim])
        part = call.signal(x) if call.is_signal(x) else call.parameter(x, tuple(like))
        nodes.append(call.spread(part, tuple(like)) if kind != {"n"} else part.node)
        shares.append(x.shape[dim] / call.shapes[0][dim])
    if kind == {"c"}:
        return call.add(JoinChannels(tuple(shares)), nodes, whole)
    if kind == {"p"}:
        return call.add(JoinPlaces(), nodes, whole)
    raise Stopped("a concatenation of samples")
