"""Expected curves of a net that is at hand: its layers, and which feeds which, found by calling a copy without data."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sppbench.spp.probe.layers import choose_layers, unwrapped
from sppbench.spp.theory.chain import Node, propagate, recorded_gradient
from sppbench.spp.theory.closed_forms import ACTIVATIONS, Array, taps_inside
from sppbench.spp.theory.layer_rules import (
    BatchNorm,
    Dropout,
    Elementwise,
    Gate,
    Keep,
    Pool,
    Residual,
    Rule,
    Weights,
    weights_of_convolution,
)
from sppbench.spp.theory.state import State


def expected_of_net(net: nn.Module, inputs: Tensor, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Expected values for every layer of a net with the weights that it has, which should be its initial ones.

    Of each weight only its mean square enters, with what its shape says of the number of inputs and outputs. The net
    itself is not called: a copy of it on the device "meta" is, which has no values.

    Theory is known for linear layers, convolutions (also grouped), batch normalization, the activations in
    `ACTIVATIONS`, flatten, dropout, the mean over all places, and modules named Sum, MPSum, Scale and MPScale that take
    (main, skip) or (x, gate). What comes after other modules, or after a sum in `forward` that is no module, is NaN,
    and so are the gradients of what comes before.

    It is exact for wide layers, homogeneous images and gradients at the output that have nothing to do with how alike
    two samples are, as at logits near 0; a gradient's ACSM suffers most where this is not so. Many layers of batch
    normalization in a net of few channels add up: at EfficientNet-B0's stem it is too low by a factor of 8.

    Args:
        net: any module whose leaves call each other with tensors.
        inputs: a batch, shape (N, C, *places) or (N, features); its second moment and covariances are the start.
        frame: a history of the net; the gradient that its earliest step has at the net's last layer is where gradients
            start. None is activations only.

    Returns:
        the table of `sppbench.spp.theory.chain`.

    Example:
        >>> x, y = batches[0]
        >>> table = expected_of_net(model, x)  # before the first step of training
        >>> figure = plot_spp(read_history("run/spp.parquet"), expected=table)
    """
    nodes = _trace(net, inputs)
    x = inputs.detach()
    if len(nodes) > 1 and nodes[1].inputs == (0,) and isinstance(nodes[1].rule, Keep):
        x = x.flatten(1)  # pixels become features: products of the same pixel of two samples, not of any two pixels
    last = recorded_gradient(frame, nodes[-1].layer) if frame is not None else None
    table = propagate(nodes, _measured(x), last)
    return table[table["layer"] != ""].reset_index(drop=True)


def _measured(x: Tensor) -> State:
    """The products of a batch as it is."""
    values = x.double().reshape(x.shape[0], x.shape[1], -1)
    n, _, p = values.shape
    own = float(values.square().mean())
    within = float(values.mean(2).square().mean())
    everything = float(values.mean((0, 2)).square().mean())
    place = (within - own / p) / (1 - 1 / p) if p > 1 else own
    sample = (everything - within / n) / (1 - 1 / n) if n > 1 else 0.0
    return State(np.array([own, place, sample]), float(n), int(p), float(values.mean()))


def _trace(net: nn.Module, inputs: Tensor) -> list[Node]:
    """The calls of the leaves as nodes; node 0 is the net's input, and those of views are named "" ."""
    original = unwrapped(net)
    modules = choose_layers(original)
    model = copy.deepcopy(original).to("meta").train()
    calls = _Calls(torch.empty_like(inputs, device="meta"))
    for name, module in choose_layers(model).items():
        module.register_forward_pre_hook(calls.before)
        module.register_forward_hook(calls.hook(name, modules[name]))
    with torch.no_grad():
        model(calls.kept[0])
    return calls.nodes


class _Calls:
    """Gathers nodes; knows tensors by their identity, so that it keeps all of them alive."""

    def __init__(self, batch: Tensor) -> None:
        self.nodes = [Node("", Keep(_places(batch)), ())]
        self.kept = [batch]
        self._numbers = {_key(batch): 0}
        self._called: dict[str, int] = {}
        self._given: tuple[list[Tensor], list[int]] = [], []

    def before(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Looks for the inputs of a layer before it works on them, perhaps in place."""
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        self._given = tensors, [number for number in map(self._find, tensors) if number is not None]

    def hook(self, name: str, own: nn.Module) -> Any:
        """For the layer of this name; `own` is the module that has its weights."""

        def add(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            call = self._called[name] = self._called.get(name, 0) + 1
            layer = name if call == 1 else f"{name}#{call}"
            tensors, numbers = self._given
            rule = None
            if isinstance(output, Tensor) and tensors and len(numbers) == len(tensors):
                rule = _rule(own, tensors, output)
                why = f"nothing is known of {type(own).__name__} as it is used here"
            else:
                why = "it takes what is not the output of a layer (is there a sum in forward?)"
            if rule is None:
                warnings.warn(f"no expected values from {layer} on: {why}", stacklevel=2)
                # Whatever came before may have a part in its gradient.
                rule, numbers = _Unknown(), list(range(len(self.nodes)))
            self._add(layer, rule, numbers, output)

        return add

    def _add(self, layer: str, rule: Rule, inputs: list[int], output: Any) -> None:
        self.nodes.append(Node(layer, rule, tuple(inputs)))
        if isinstance(output, Tensor):
            self.kept.append(output)
            self._numbers[_key(output)] = len(self.nodes) - 1

    def _find(self, x: Tensor) -> int | None:
        """The number of the node that gave x, or that x is a flat view of."""
        base = x._base
        if _key(x) not in self._numbers and base is not None and x.shape == (base.shape[0], base.shape[1:].numel()):
            number = self._find(base)
            if number is not None:
                self._add("", Keep(), [number], x)
        return self._numbers.get(_key(x))


def _key(x: Tensor) -> tuple[int, int]:
    """A tensor as it is now: one that was changed in place is another."""
    return id(x), x._version


class _Unknown(Rule):
    def forward(self, *inputs: State) -> State:
        return State(np.full(3, math.nan), inputs[0].samples, mean=math.nan)

    def backward(self, gradient: State, *inputs: State) -> list[Array]:
        return [np.full(3, math.nan)] * len(inputs)


def _places(x: Tensor) -> int:
    return math.prod(x.shape[2:])


def _rule(module: nn.Module, inputs: list[Tensor], output: Tensor) -> Rule | None:
    """The rule of a layer with these inputs, or None if there is none."""
    name = type(module).__name__
    places = _places(inputs[0]), _places(output)
    if isinstance(module, nn.Linear):
        return _linear(module) if output.ndim == 2 else None
    if isinstance(module, _ConvNd):
        return None if module.transposed else _convolution(module, inputs[0], output)
    if isinstance(module, _BatchNorm):
        return BatchNorm(module.eps, _mean_square(module.weight, 1.0), _mean_square(module.bias, 0.0))
    if name in ACTIVATIONS:
        return Elementwise(name)
    if name in ("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d"):
        return Pool() if places[1] == 1 else None
    if type(module) is nn.Dropout:
        return Dropout(module.p)
    if isinstance(module, nn.Flatten | nn.Identity):
        return Keep(places[1])
    if name in ("Sum", "MPSum") and len(inputs) == 2:
        return Residual(float(getattr(module, "weight", 0.5)) if name == "MPSum" else None)
    if name in ("Scale", "MPScale") and len(inputs) == 2:
        return Gate(name == "MPScale")
    return None


def _mean_square(weight: Tensor | None, absent: float) -> float:
    return absent if weight is None else float(weight.detach().double().square().mean())


def _linear(module: nn.Linear) -> Weights:
    m, bias = _mean_square(module.weight, 0.0), _mean_square(module.bias, 0.0)
    return weights_of_convolution(m, module.in_features, module.out_features, np.ones(1), (1, 1), bias)


def _convolution(module: _ConvNd, x: Tensor, output: Tensor) -> Weights | None:
    axes = range(len(module.kernel_size))
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    taps = np.ones(1)
    for axis in axes:
        size = int(x.shape[2 + axis])
        arguments = (module.kernel_size[axis], module.stride[axis], module.padding[axis], module.dilation[axis])
        taps = np.outer(taps, taps_inside(size, *arguments)).ravel()
    m, bias = _mean_square(module.weight, 0.0), _mean_square(module.bias, 0.0)
    fans = module.in_channels // module.groups, module.out_channels // module.groups
    return weights_of_convolution(m, *fans, taps, (_places(x), _places(output)), bias)
