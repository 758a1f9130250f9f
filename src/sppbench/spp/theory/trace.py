"""Which operation of a net feeds which, found by calling it: the nodes that `sppbench.spp.theory.chain` propagates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from sppbench.spp.theory.chain import Node
from sppbench.spp.theory.layer_rules import Known, Rule, Unknown
from sppbench.spp.theory.layout import (
    Axes,
    as_samples_places_channels,
    assigned,
    axis,
    broadcast,
    count,
    is_open,
    of_shape,
)
from sppbench.spp.theory.place_rules import Spread
from sppbench.spp.theory.state import State
from sppbench.spp.theory.view_axes import axes_of_view

#: Operations that take from a tensor only its shape.
NEW = {f"{name}_like" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")}
NEW |= {f"new_{name}" for name in ("empty", "zeros", "ones", "full", "empty_strided")}

NEVER = -1  # the version of a constant of which a part was overwritten with a signal

#: A function of one tensor.
Function: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor.

    A *signal* has a node. *Data* are what is computed of a batch without weights, and *weights* what is computed of
    them without a batch: both are there, and are measured where they meet a signal. A *mask* is drawn at random.

    `paths` are the nodes that a signal is an element-wise function of, with the function.
    """

    axes: Axes
    node: int | None = None
    is_data: bool = False
    version: int = 0
    paths: dict[int, Function] = field(default_factory=dict)
    mask: tuple[float, float] | None = None  # E[m²], E[m]
    allowed: Tensor | None = None  # of logits, which keys a query sees: (patterns, queries, keys)
    attention: Any = None


class Stopped(Exception):
    """The theory has no rule for what is done here; the message says what it is."""


@dataclass(frozen=True)
class Call:
    """A call of an operation: its arguments by the names in its schema, and the shapes of the tensors that it returns.

    `shapes` has an entry for each tensor of the result.
    """

    trace: Trace
    name: str
    arguments: dict[str, Any]
    shapes: list[torch.Size]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    @property
    def tensors(self) -> list[Tensor]:
        return list(_tensors(self.arguments.values()))

    def value(self, x: Any) -> Value | None:
        return self.trace.value(x) if isinstance(x, Tensor) else None

    def is_signal(self, x: Any) -> bool:
        """Whether a tensor changes with the batch."""
        value = self.value(x)
        return value is not None and (value.node is not None or value.is_data)

    def signal(self, x: Tensor, channel: int = -1) -> Value:
        """A tensor as a signal; data, whose channels are on this axis if that is still open, are measured."""
        value = self.value(x)
        if value is None:
            raise Stopped("a constant where a signal is expected")
        return self.trace.as_signal(x, value, channel)

    def parameter(self, x: Tensor, axes: Axes) -> Value:
        """A tensor that does not change with the batch, as what it is next to a signal with these axes."""
        axes = ((),) * (x.ndim - len(axes)) + axes
        own = tuple(one if size > 1 else () for one, size in zip(axes[len(axes) - x.ndim :], x.shape, strict=True))
        return self.trace.add(Known(measured(x, own)), (), own)

    def spread(self, x: Value, axes: Axes) -> int:
        """The node of a signal that is broadcast to these axes."""
        assert x.node is not None
        here, there = ((count(one, "n"), count(one, "p")) for one in (x.axes, broadcast([x.axes, axes])))
        if here == there:
            return x.node
        return self.trace.add_node(Spread(float(there[0]), there[1]), (x.node,))

    def add(self, rule: Rule, inputs: Sequence[int | None], axes: Axes, **more: Any) -> Value:
        return self.trace.add(rule, inputs, axes, **more)


#: From a call to what its tensors are.
Handler: TypeAlias = Callable[[Call], Value | Sequence[Value]]
HANDLERS: dict[str, Handler] = {}


def follows(*names: str) -> Callable[[Handler], Handler]:
    """Makes a function the handler of these operations of aten."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, every operation on a tensor that comes from a batch becomes a node.

    Attributes:
        nodes: in the order of the calls.
        stopped: where the theory ends: of each first operation without a rule its layer, name and reason.
        layer: which module is being called, by name; set from outside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.stopped: list[tuple[str, str, str]] = []
        self.layer = ""
        self._values = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        arguments |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        name = schema.name.removeprefix("aten::")
        if changes := name.endswith("_") and not name.endswith("__"):
            # The tensor is what it was only until the call.
            values = self._follow(name[:-1], arguments, [args[0]])
            base = args[0]._base
            if base is not None and base not in self._values and any(value.node is not None for value in values):
                self._values[base] = Value(of_shape(base.shape), version=NEVER)
        out = func(*args, **kwargs)
        outputs = list(_tensors([out]))
        if not changes:
            values = self._follow(name, arguments, outputs)
        # As autograd will count them: a view shares the counter of what it is a view of, a change adds 1.
        shared = next(_tensors(args))._version if func.is_view else int(changes)
        for x, value in zip(outputs, values, strict=False):
            self._keep(x, value, shared)
        return out

    def value(self, x: Tensor) -> Value | None:
        """What is known of a tensor; None of one that has to do with neither a batch nor weights."""
        value: Value | None = self._values.get(x)  # type: ignore[no-untyped-call]
        if value is not None and value.version != x._version:
            return self._unknown([value], x, "a tensor is changed through a view of it")
        return value

    def begin(self, x: Tensor, value: Value) -> None:
        """Makes a tensor known: of a batch, or a parameter."""
        self._keep(x, value, 0)

    def node_of(self, x: Tensor) -> int:
        """The node of a tensor, which is measured if the theory knows it as it is."""
        value = self.value(x)
        if value is None or (value.node is None and not value.is_data):
            axes = tuple(axis("n" if i == 0 else "c" if i == x.ndim - 1 else "p", n) for i, n in enumerate(x.shape))
            value = Value(axes, is_data=True)
        signal = self.as_signal(x, value, 1 if x.ndim == 4 else -1)
        assert signal.node is not None
        self._keep(x, signal, 0)
        return signal.node

    def add(self, rule: Rule, inputs: Sequence[int | None], axes: Axes, **more: Any) -> Value:
        """A new node, as the value of a tensor."""
        return self.value_of(self.add_node(rule, [i for i in inputs if i is not None]), axes, **more)

    def add_node(self, rule: Rule, inputs: Sequence[int]) -> int:
        self.nodes.append(Node(rule, tuple(inputs)))
        return len(self.nodes) - 1

    def value_of(self, node: int, axes: Axes, **more: Any) -> Value:
        paths = more.pop("paths", {})
        return Value(axes, node, paths={**paths, node: _same}, **more)

    def as_signal(self, x: Tensor, value: Value, channel: int = -1) -> Value:
        """A value with a node: what is known of a tensor is measured."""
        if value.node is not None:
            return value
        axes = assigned(value.axes, channel) if is_open(value.axes) else value.axes
        return self.add(Known(measured(x, axes)), (), axes)

    def _follow(self, name: str, arguments: dict[str, Any], outputs: list[Tensor]) -> Sequence[Value]:
        given = list(_tensors(arguments.values()))
        values = [value for value in map(self.value, given) if value is not None]
        floating = any(x.is_floating_point() for x in outputs)
        call = Call(self, name, arguments, [x.shape for x in outputs])
        if name == "bernoulli":
            p = float(arguments.get("p") or 0.5)
            return [Value((), mask=(p, p))]
        if not values or name in NEW:
            return []
        of_batch = any(value.node is not None or value.is_data for value in values)
        if not of_batch and not any(value.mask for value in values):
            return [Value(()) for _ in outputs]  # weights, or of weights
        if all(value.is_data for value in values):
            return self._of_data(call, given)
        if not floating:
            return []
        try:
            if name not in HANDLERS:
                raise Stopped("no rule")
            result = HANDLERS[name](call)
        except Stopped as stop:
            return [self._unknown(values, x, str(stop), name) for x in outputs]
        return [result] if isinstance(result, Value) else result

    def _of_data(self, call: Call, given: list[Tensor]) -> Sequence[Value]:
        """What is computed of a batch alone is there to be measured; only its axes have to be known."""
        values = [value.axes for value in map(self.value, given) if value is not None]
        result = []
        for shape in call.shapes:
            axes = axes_of_view(call.name, call.arguments, values[0], shape) or broadcast(values)
            if [math.prod(size for _, size in one) for one in axes] != list(shape):
                axes = of_shape(shape)
            result.append(Value(axes, is_data=True))
        return result

    def _unknown(self, values: Sequence[Value | None], x: Tensor, reason: str, name: str = "") -> Value:
        nodes = [value.node for value in values if value is not None and value.node is not None]
        if not any(isinstance(self.nodes[i].rule, Unknown) for i in nodes):
            self.stopped.append((self.layer, name, reason))
        axes = tuple(axis("n" if i == 0 else "c" if i == x.ndim - 1 else "p", n) for i, n in enumerate(x.shape))
        return self.add(Unknown(float(count(axes, "n")), count(axes, "p")), nodes, axes)

    def _keep(self, x: Tensor, value: Value, more: int) -> None:
        self._values[x] = replace(value, version=x._version + more)


def measured(x: Tensor, axes: Axes) -> State:
    """The products of a tensor as it is."""
    values = as_samples_places_channels(x.detach().double().cpu(), axes)
    n, p, _ = values.shape
    own = float(values.square().mean())
    within = float(values.mean(1).square().mean())
    everything = float(values.mean((0, 1)).square().mean())
    place = (within - own / p) / (1 - 1 / p) if p > 1 else own
    sample = (everything - within / n) / (1 - 1 / n) if n > 1 else within
    mean = float(values.mean())
    return State(np.array([own, place, sample]), float(n), int(p), mean, gaussian=mean**2 < 1e-3 * own)


def _tensors(several: Any) -> Iterator[Tensor]:
    for one in several:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _tensors(one)


def _same(x: Tensor) -> Tensor:
    return x
