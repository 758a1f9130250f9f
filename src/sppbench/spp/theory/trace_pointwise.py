"""Operations element by element and means over axes, as rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sppbench.spp.theory.layer_rules import Keep, Rule, weights_of_convolution
from sppbench.spp.theory.layout import Axes, broadcast, count, has_one_value, roles
from sppbench.spp.theory.place_rules import MeanOfChannels, MeanOfPlaces
from sppbench.spp.theory.pointwise_rules import Affine, Elementwise, Joint, Mask, Product, Sum, activation_of
from sppbench.spp.theory.trace import Call, Function, Stopped, Value, follows
from sppbench.spp.theory.trace_layers import NEVER_SEEN, mean_square, seen_keys

SOURCES = {"relu": "He et al. 2015", "elu": "Klambauer et al. 2017"}
UNARY = (
    *("relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu"),
    *("softplus", "mish", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "abs", "reciprocal", "erf", "sin", "cos"),
    *("square", "clamp", "clamp_min", "clamp_max", "log_sigmoid", "threshold", "celu", "selu", "relu6", "pow", "neg"),
    *("sign", "floor", "round", "softshrink", "hardshrink"),
)


@follows(*UNARY)
def _unary(call: Call) -> Value:
    signals = [x for x in call.tensors if call.is_signal(x)]
    arguments = {name: value for name, value in call.arguments.items() if name != "self"}
    if len(call.tensors) > 1 or len(signals) != 1 or call.tensors[0] is not call["self"]:
        raise Stopped("an exponent or bound that is a tensor")
    function = getattr(torch.ops.aten, call.name)
    return _elementwise(call, call["self"], lambda x: cast(Tensor, function(x, **arguments)))


def _elementwise(call: Call, x: Tensor, function: Function) -> Value:
    value = call.signal(x)
    source = SOURCES.get(call.name, "Poole et al. 2016")
    rule = Elementwise(activation_of(function, source))
    return call.add(rule, (value.node,), value.axes, paths=_through(value, function))


def _through(value: Value, function: Function) -> dict[int, Function]:
    def after(path: Function) -> Function:
        return lambda x: function(path(x))

    return {node: after(path) for node, path in value.paths.items()}


@follows("add", "sub", "rsub", "mul", "div", "maximum", "minimum")
def _binary(call: Call) -> Value:
    x, y, alpha = call["self"], call["other"], call.get("alpha", 1)
    if call.get("rounding_mode"):
        raise Stopped("a division that rounds its result")
    functions: dict[str, Callable[[Any, Any], Any]] = {
        "add": lambda u, v: u + alpha * v,
        "sub": lambda u, v: u - alpha * v,
        "rsub": lambda u, v: v - alpha * u,
        "mul": lambda u, v: u * v,
        "div": lambda u, v: u / v,
        "maximum": torch.maximum,
        "minimum": torch.minimum,
    }
    function = functions[call.name]
    masks = [value for value in (call.value(x), call.value(y)) if value is not None and value.mask is not None]
    if masks:
        return _random(call, x, y, masks[0], function)
    if not call.is_signal(x):
        return _with_constant(call, y, x, lambda v, u: function(u, v))
    if not call.is_signal(y):
        return _with_constant(call, x, y, function)
    return _two_signals(call, x, y, function, float(alpha))


def _two_signals(call: Call, x: Tensor, y: Tensor, function: Callable[[Any, Any], Any], alpha: float) -> Value:
    channel = 1 if x.ndim == 4 else -1
    a, b = call.signal(x, channel), call.signal(y, channel)
    if a.axes == b.axes and (common := a.paths.keys() & b.paths.keys()):
        paths = {node: _both(function, a.paths[node], b.paths[node]) for node in common}
        nearest = max(common)
        rule = Elementwise(activation_of(paths[nearest], "Poole et al. 2016"))
        return call.add(rule, (nearest,), a.axes, paths=paths)
    axes = broadcast([a.axes, b.axes])
    nodes = call.spread(a, axes), call.spread(b, axes)
    rules: dict[str, Rule] = {
        "add": Sum(1.0, alpha),
        "sub": Sum(1.0, -alpha),
        "rsub": Sum(-alpha, 1.0),
        "mul": Product(),
        "div": Product(quotient=True),
    }
    return call.add(rules.get(call.name, Joint(function)), nodes, axes)


def _both(function: Callable[[Any, Any], Any], first: Function, second: Function) -> Function:
    return lambda x: function(first(x), second(x))


def _with_constant(call: Call, x: Tensor, constant: Any, function: Callable[[Any, Any], Any]) -> Value:
    """A signal and what does not depend on the batch: a number, or a parameter."""
    value = call.signal(x, 1 if x.ndim == 4 else -1)
    if isinstance(constant, Tensor) and not has_one_value(constant):
        return _with_parameter(call, value, constant, function)
    number = float(constant.flatten()[0] if isinstance(constant, Tensor) else constant)
    axes = value.axes
    if isinstance(constant, Tensor) and constant.ndim > len(axes):
        axes = ((),) * (constant.ndim - len(axes)) + axes

    def apply(v: Tensor) -> Tensor:
        return cast(Tensor, function(v, torch.tensor(number, dtype=v.dtype)))

    zero, one = (float(apply(torch.tensor(v, dtype=torch.float64))) for v in (0.0, 1.0))
    more = {"paths": _through(value, apply), "attention": value.attention, "allowed": value.allowed}
    if call.name in ("maximum", "minimum") or not math.isfinite(zero + one) or _is_reciprocal(call, x):
        return call.add(Elementwise(activation_of(apply, "Poole et al. 2016")), (value.node,), axes, **more)
    return call.add(Affine(one - zero, zero), (value.node,), axes, **more)


def _is_reciprocal(call: Call, x: Tensor) -> bool:
    return call.name == "div" and x is not call["self"]


def _with_parameter(call: Call, x: Value, constant: Tensor, function: Callable[[Any, Any], Any]) -> Value:
    if x.attention == "logits" and call.name == "add":
        if bool((constant <= NEVER_SEEN).any()):
            return replace(x, allowed=seen_keys(constant), paths={})
        kept: dict[str, Any] = {"attention": x.attention, "allowed": x.allowed}
    else:
        kept = {}
    inverse = call.name == "div" and not _is_reciprocal(call, constant)
    parameter = call.parameter(constant.reciprocal() if inverse else constant, x.axes)
    axes = broadcast([x.axes, parameter.axes])
    nodes = call.spread(x, axes), call.spread(parameter, axes)
    if call.name in ("add", "sub", "rsub"):
        a, b = (float(function(*pair)) for pair in ((1.0, 0.0), (0.0, 1.0)))
        return call.add(Sum(a, b), nodes, axes, **kept)
    if call.name == "mul" and _is_random_by_channel(constant, parameter.axes):
        # A depthwise convolution of a single tap is computed as such a product.
        places = count(axes, "p")
        rule = weights_of_convolution(mean_square(constant), 1, 1, np.full(1, places), (places, places))
        return call.add(rule, nodes[:1], axes)
    if call.name == "mul" or inverse:
        return call.add(Product(), nodes, axes, **kept)
    return call.add(Joint(function), nodes, axes)


def _is_random_by_channel(constant: Tensor, axes: Axes) -> bool:
    """Whether a parameter has one number for each channel, of both signs: weights, which a scale is not."""
    by_channel = set().union(*(roles(one) for one in axes)) == {"c"}
    return by_channel and float(constant.double().mean()) ** 2 < 0.5 * mean_square(constant)


def _random(call: Call, x: Any, y: Any, mask: Value, function: Callable[[Any, Any], Any]) -> Value:
    """A mask with a number, or a signal with its mask."""
    assert mask.mask is not None
    moment, mean = mask.mask
    first = x if call.value(x) is mask or (call.value(x) or mask).mask else y
    other = y if first is x else x
    if not call.is_signal(other):
        number = float(other)
        shift, slope = (float(function(v, number)) for v in (0.0, 1.0))
        slope -= shift
        square = slope**2 * moment + 2 * slope * shift * mean + shift**2
        return Value((), mask=(square, slope * mean + shift))
    if call.name != "mul":
        raise Stopped("a random number that is not a factor")
    signal = call.signal(other, 1 if other.ndim == 4 else -1)
    if isinstance(signal.attention, tuple):
        logits, pattern, dropout = signal.attention
        attention: Any = (logits, pattern, dropout * moment)
    else:
        attention = None
    beside = signal.axes[len(signal.axes) - first.ndim :]
    whole = [one for one, size in zip(beside, first.shape, strict=True) if size > 1]
    shared = True, not count(whole, "p") > 1, not count(whole, "n") > 1
    return call.add(Mask(moment, mean, shared), (signal.node,), signal.axes, attention=attention)


@follows("where", "masked_fill")
def _where(call: Call) -> Value:
    """Keys that are masked out of logits."""
    x, mask = call["self"], call["mask"] if call.name == "masked_fill" else call["condition"]
    other = call.get("value", call.get("other"))
    value = call.value(x)
    if value is None or value.attention != "logits" or not float(torch.as_tensor(other).flatten()[0]) <= NEVER_SEEN:
        raise Stopped("a choice between elements")
    return replace(value, allowed=seen_keys(~mask if call.name == "masked_fill" else mask))


@follows("mean", "sum")
def _mean(call: Call) -> Value:
    tensor: Tensor = call["self"]
    x = call.signal(tensor, 1 if tensor.ndim == 4 else -1)
    dims = call.get("dim")
    over = {int(i) % tensor.ndim for i in (range(tensor.ndim) if dims is None or len(dims) == 0 else dims)}
    removed = [x.axes[i] for i in over]
    keep = bool(call.get("keepdim"))
    axes: Axes = tuple(() if i in over else one for i, one in enumerate(x.axes) if keep or i not in over)
    kinds = set().union(*(roles(one) for one in removed)) if removed else set()
    if "n" in kinds:
        raise Stopped("a mean over samples")
    number = math.prod(size for one in removed for _, size in one)
    node = x.node if kinds else call.add(Keep(count(x.axes, "p")), (x.node,), axes).node
    if "p" in kinds:
        window = count(removed, "p")
        places = count(x.axes, "p") // window
        node = call.add(MeanOfPlaces(window, places), (node,), axes).node
    if "c" in kinds:
        channels = count(removed, "c")
        node = call.add(MeanOfChannels(channels, channels == count(x.axes, "c")), (node,), axes).node
    if call.name == "sum":
        node = call.add(Affine(float(number)), (node,), axes).node
    assert node is not None
    return call.trace.value_of(node, axes)


@follows("linalg_vector_norm")
def _norm(call: Call) -> Value:
    x = call.signal(call["self"])
    dims = [int(i) % len(x.axes) for i in call["dim"] or ()]
    if float(call.get("ord", 2)) != 2 or not dims or any(roles(x.axes[i]) - {"c"} for i in dims):
        raise Stopped("a norm that is not over channels")
    square = call.add(Elementwise(activation_of(torch.square, "")), (x.node,), x.axes)
    channels = count([x.axes[i] for i in dims], "c")
    keep = bool(call.get("keepdim"))
    axes = tuple(() if i in dims else one for i, one in enumerate(x.axes) if keep or i not in dims)
    mean = call.add(MeanOfChannels(channels), (square.node,), axes)
    total = call.add(Affine(float(channels)), (mean.node,), axes)
    return call.add(Elementwise(activation_of(torch.sqrt, "")), (total.node,), axes)
