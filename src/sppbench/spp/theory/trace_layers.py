"""Operations with weights, of normalization and of pooling, as rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sppbench.spp.theory.attention_rules import Attend, AttentionWeights, Logits, Pattern
from sppbench.spp.theory.closed_forms import taps_inside, taps_overlap
from sppbench.spp.theory.layer_rules import Keep, Known, MixPlaces, Rule, weights_of_convolution
from sppbench.spp.theory.layout import Axes, Axis, axis, count, roles
from sppbench.spp.theory.norm_rules import BatchNorm, GroupNorm
from sppbench.spp.theory.place_rules import MaxOfPlaces, MeanOfPlaces, Spread
from sppbench.spp.theory.pointwise_rules import Affine
from sppbench.spp.theory.state import State
from sppbench.spp.theory.trace import Call, Stopped, Value, follows

MOST_PATTERNS = 16
NEVER_SEEN = -50.0  # what is added to a logit, or less, so that its key has no weight


def mean_square(weight: Tensor | None, absent: float = 0.0) -> float:
    if weight is None:
        return absent
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)) ** 2 / weight.numel()


def _of_mean(weight: Tensor, outputs: int = 0) -> float:
    """`Weights.of_mean` of a weight whose outputs are on this axis."""
    square = mean_square(weight) * (weight.numel() // weight.shape[outputs])
    others = [i for i in range(weight.ndim) if i != outputs % weight.ndim]
    sums = weight.detach().sum(others, dtype=torch.float64)
    return float(sums.square().mean()) / square if square else 1.0


# -- weights -----------------------------------------------------------------------------------------------------------


@follows("mm", "bmm", "addmm", "matmul", "linear", "_addmm_activation")
def _matrix(call: Call) -> Value:
    if call.name == "linear":
        return _linear(call, call["input"], call["weight"].t(), call.get("bias"))
    first, second = (call["mat1"], call["mat2"]) if call.name == "addmm" else call.tensors[:2]
    bias = call.get("input", call.get("self")) if call.name == "addmm" else None
    if call.is_signal(bias):
        raise Stopped("a matrix product that adds a signal")
    if call.is_signal(first) and call.is_signal(second):
        return _attention(call, call.signal(first), call.signal(second), first.shape[-1])
    if call.is_signal(first):
        return _linear(call, first, second, bias)
    x = call.signal(second, -2)
    own, rule = _contraction(x, x.axes[-2], first, -2, bias)
    return call.add(rule, (x.node,), (*x.axes[:-2], own, x.axes[-1]))


def _linear(call: Call, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Value:
    x = call.signal(inputs)
    own, rule = _contraction(x, x.axes[-1], weight, -1, bias)
    return call.add(rule, (x.node,), (*x.axes[:-1], own))


def _contraction(x: Value, over: Axis, weight: Tensor, outputs: int, bias: Tensor | None) -> tuple[Axis, Rule]:
    """The axis that comes out of a product with a matrix, which has its outputs on this axis, and the rule."""
    square, shift = mean_square(weight), mean_square(bias)
    fan_in, fan_out = weight.shape[-3 - outputs], weight.shape[outputs]
    kind = roles(over)
    if kind <= {"c"}:
        places = count(x.axes, "p")
        taps, of_mean = np.full(1, places), _of_mean(weight, outputs)
        rule = weights_of_convolution(square, fan_in, fan_out, taps, (places, places), shift, of_mean)
        return axis("c", fan_out), rule
    if kind == {"p"}:
        places = count(x.axes, "p") // fan_in * fan_out
        return axis("p", fan_out), MixPlaces(square, fan_in, fan_out, places, shift)
    raise Stopped("a matrix product over samples")


@follows("convolution", "conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Value:
    weight: Tensor = call["weight"]
    if call.is_signal(weight):
        raise Stopped("a convolution whose weights depend on the batch")
    x = call.signal(call["input"], 1)
    if roles(x.axes[1]) - {"c"} or not call.shapes:
        raise Stopped("a convolution over something other than channels")
    shape = call.shapes[0]
    axes = (x.axes[0], axis("c", shape[1]), *(axis("p", size) for size in shape[2:]))
    places = math.prod(call["input"].shape[2:]), math.prod(shape[2:])
    groups, overlap = int(call.get("groups", 1)), 0.0
    if call.get("transposed"):
        fans = weight.shape[0] // groups, weight.shape[1]
        taps = np.full(math.prod(weight.shape[2:]), float(places[0]))
    else:
        fans = weight.shape[1], weight.shape[0] // groups
        taps, pairs = np.ones(1), np.ones(2)
        for i, (size, kernel) in enumerate(zip(call["input"].shape[2:], weight.shape[2:], strict=True)):
            arguments = [int(call[name][i % len(call[name])]) for name in ("stride", "padding", "dilation")]
            taps = np.outer(taps, taps_inside(size, kernel, *arguments)).ravel()
            pairs = pairs * taps_overlap(size, kernel, *arguments)
        if places[1] > 1:
            overlap = fans[0] * float(pairs[0] - pairs[1]) / (places[1] * (places[1] - 1))
            overlap /= (fans[0] * float(taps.sum()) / places[1]) ** 2
    of_mean = 1.0 if call.get("transposed") else _of_mean(weight)
    rule = weights_of_convolution(mean_square(weight), *fans, taps, places, mean_square(call.get("bias")), of_mean)
    return call.add(replace(rule, overlap=overlap), (x.node,), axes)


@follows("embedding")
def _embedding(call: Call) -> Value:
    """Rows of random weights: two tokens have the row in common if they are equal, else nothing."""
    weight, tokens = call["weight"], call["indices"]
    axes = tuple(axis("n" if i == 0 else "p", size) for i, size in enumerate(tokens.shape))
    rows = tokens.reshape(len(tokens), -1)
    samples, places = rows.shape

    def pairs(x: Tensor) -> float:
        return float(torch.bincount(x.flatten()).double().square().sum())

    within = sum(pairs(row) for row in rows)
    place = (within / samples - places) / (places * (places - 1)) if places > 1 else 1.0
    between = pairs(rows) - within
    sample = between / (samples * (samples - 1) * places**2) if samples > 1 else 0.0
    state = State(np.array([1.0, place, sample]) * mean_square(weight), float(samples), places, gaussian=True)
    return call.add(Known(state), (), (*axes, axis("c", weight.shape[1])))


# -- normalization -----------------------------------------------------------------------------------------------------


def _affine(call: Call) -> tuple[float, float]:
    return mean_square(call.get("weight"), 1.0), mean_square(call.get("bias"))


@follows(
    *("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "batch_norm_with_update"),
    *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_native_batch_norm_legit_no_training"),
)
def _batch_norm(call: Call) -> list[Value]:
    x = call.signal(call["input"], 1)
    scale, shift = _affine(call)
    epsilon = float(call.get("eps", call.get("epsilon", 1e-5)))
    training = call.get("training", call.name in ("_batch_norm_with_update", "batch_norm_with_update"))
    if "n" in roles(x.axes[1]):  # instance normalization is called that way
        rule: Rule = GroupNorm(1, True, True, epsilon, scale, shift)
    elif training or call.get("running_var") is None:
        rule = BatchNorm(epsilon, scale, shift)
    else:
        rule = Affine(math.sqrt(scale * float((call["running_var"].double() + epsilon).reciprocal().mean())))
    return [call.add(rule, (x.node,), x.axes)]


@follows("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(call: Call) -> list[Value]:
    last = len(call["normalized_shape"])
    x = call.signal(call["input"], -1 if last == 1 else 1)
    kinds = set().union(*(roles(one) for one in x.axes[-last:]))
    if "n" in kinds:
        raise Stopped("it normalizes over samples")
    epsilon = call.get("eps")
    epsilon = torch.finfo(call["input"].dtype).eps if epsilon is None else float(epsilon)
    channels = count(x.axes[-last:], "c")
    rule = GroupNorm(channels, "p" in kinds, "layer" in call.name, epsilon, *_affine(call))
    return [call.add(rule, (x.node,), x.axes)]


@follows("native_group_norm", "group_norm")
def _group_norm(call: Call) -> list[Value]:
    x = call.signal(call["input"], 1)
    groups = int(call.get("group", call.get("num_groups", 1)))
    rule = GroupNorm(count(x.axes, "c") // groups, True, True, float(call.get("eps", 1e-5)), *_affine(call))
    return [call.add(rule, (x.node,), x.axes)]


# -- pooling -----------------------------------------------------------------------------------------------------------


def _pooled(call: Call, x: Value) -> tuple[Axes, int]:
    shape = call.shapes[0]
    axes = tuple(
        one if math.prod(n for _, n in one) == size else axis("p", size)
        for one, size in zip(x.axes, shape, strict=True)
    )
    return axes, count(axes, "p")


@follows("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool1d")
def _max_pool(call: Call) -> list[Value]:
    x = call.signal(call["self"], 1)
    axes, places = _pooled(call, x)
    inside = 1.0  # the mean number of pixels in a window, which has fewer at the borders
    for i, size in enumerate(call["self"].shape[2:]):
        kernel, padding, dilation = (_along(call[name], i) for name in ("kernel_size", "padding", "dilation"))
        stride = _along(call.get("stride") or call["kernel_size"], i)
        taps = taps_inside(size, kernel, stride, padding, dilation)
        inside *= float(taps.sum()) / ((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
    window = max(round(inside), 1)
    if window == 1:
        return [call.add(Keep(places), (x.node,), axes)]
    return [call.add(MaxOfPlaces(window, places), (x.node,), axes)]


def _along(several: Sequence[int], axis: int) -> int:
    """Of a pooling's argument, which is one number or one for each axis."""
    return int(several[axis % len(several)])


@follows(
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d"
)
def _average_pool(call: Call) -> Value:
    x = call.signal(call["self"], 1)
    axes, places = _pooled(call, x)
    kernel = call.get("kernel_size")
    if places > count(x.axes, "p"):
        return call.add(Spread(float(count(axes, "n")), places), (x.node,), axes)
    if kernel is None:
        window = max(count(x.axes, "p") // places, 1)
    else:
        spatial = len(call.shapes[0]) - 2
        window = math.prod(kernel) if len(kernel) > 1 else int(kernel[0]) ** spatial
    return call.add(MeanOfPlaces(window, places), (x.node,), axes)


# -- attention ---------------------------------------------------------------------------------------------------------


def _attention(call: Call, a: Value, b: Value, width: int) -> Value:
    """A product of two signals: queries with keys, or weights with values."""
    axes = (*a.axes[:-1], b.axes[-1])
    places = count(axes, "p")
    if isinstance(a.attention, tuple) and roles(b.axes[-2]) <= {"p"}:
        logits, pattern, dropout = a.attention
        return call.add(Attend(pattern, places, dropout), (logits, b.node), axes)
    if a.node == b.node:
        raise Stopped("a product of a signal with itself")
    if roles(a.axes[-1]) <= {"c"} and roles(b.axes[-2]) <= {"c"} and a.attention is None and b.attention is None:
        return call.add(Logits(width, places), (a.node, b.node), axes, attention="logits")
    raise Stopped("a product of two signals that is not attention")


def pattern_of(queries: int, keys: int, allowed: Tensor | None) -> Pattern:
    """Uniform weights over the allowed keys, (patterns, queries or 1, keys); all where none is."""
    seen = np.ones((1, queries, keys))
    if allowed is not None:
        seen = seen * allowed.cpu().numpy()
    seen[seen.sum(2) == 0] = 1.0
    return Pattern(seen / seen.sum(2, keepdims=True))


def seen_keys(mask: Tensor) -> Tensor:
    """Of a mask, boolean or added to logits, which keys each query sees, (patterns, queries or 1, keys).

    Masks differ from sample to sample, or from window to window: of many, some are taken, evenly.
    """
    patterns = mask.reshape(-1, *mask.shape[-2:]) if mask.ndim > 1 else mask[None, None]
    patterns = patterns[:: max(len(patterns) // MOST_PATTERNS, 1)]
    return patterns if patterns.dtype == torch.bool else patterns > NEVER_SEEN


@follows("_softmax", "_safe_softmax", "softmax")
def _softmax(call: Call) -> Value:
    x = call.value(call["self"])
    assert x is not None
    dim = int(call["dim"]) % call["self"].ndim
    if x.attention != "logits" or dim != call["self"].ndim - 1:
        raise Stopped("a softmax of something other than attention logits")
    pattern = pattern_of(call["self"].shape[-2], call["self"].shape[-1], x.allowed)
    return call.add(AttentionWeights(pattern), (x.node,), x.axes, attention=(x.node, pattern, 1.0))


@follows(
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention"),
)
def _scaled_dot_product(call: Call) -> list[Value]:
    q, k, v = (call.signal(call[name]) for name in ("query", "key", "value"))
    width = call["query"].shape[-1]
    queries, keys = call["query"].shape[-2], call["key"].shape[-2]
    if any("c" not in roles(x.axes[-1]) or roles(x.axes[-2]) - {"p"} for x in (q, k, v)):
        raise Stopped("attention over something other than positions")
    mask = call.get("attn_mask", call.get("attn_bias"))
    allowed = seen_keys(mask) if mask is not None else None
    if call.get("is_causal"):
        allowed = torch.ones(1, queries, keys, dtype=torch.bool).tril()
    scale = call.get("scale")
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    logits = call.add(Logits(width, count(q.axes, "p") * keys, factor), (q.node, k.node), q.axes)
    axes = (*q.axes[:-1], v.axes[-1])
    dropout = 1 / (1 - float(call.get("dropout_p") or 0.0))
    rule = Attend(pattern_of(queries, keys, allowed), count(axes, "p"), dropout)
    return [call.add(rule, (logits.node, v.node), axes)]
