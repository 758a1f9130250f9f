"""Measures, at the batch normalizations of any module, the gain of the gradients that pass them backward.

The factors of this gain are defined in ``sppbench.spp.sums.batchnorm_sums``. Only tables need pandas.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from sppbench.spp.names import BATCHNORM_COLUMNS, GAIN_AND_FACTORS
from sppbench.spp.probe.bypass import why_bypassed
from sppbench.spp.probe.channel_axis import is_normalized
from sppbench.spp.probe.order import LayerOrder
from sppbench.spp.probe.processes import ProcessGroup
from sppbench.spp.probe.stepping import Handle, SteppingProbe, after_forward, before_forward
from sppbench.spp.probe.tap import Slots
from sppbench.spp.schedule import EveryNSteps, Schedule
from sppbench.spp.sums.batched import Plans
from sppbench.spp.sums.batchnorm_sums import (
    SUMS,
    TERMS,
    InputTap,
    LayerTotals,
    OutputTap,
    factors,
    inner_squares,
    mean_and_invstd,
    measured,
    outer_totals,
)

if TYPE_CHECKING:
    import pandas as pd

_NODES = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
_STATISTICS = {"running_mean", "running_var"}
_FAR = 64  # nodes between a module's output and the normalization in it
_IN_GRAPH = "in a compiled graph the normalization inside it cannot be followed"
_OUTER, _INNER = "outer", "inner"  # slots


@dataclass(frozen=True)
class BatchNormReadings:
    """The factors of one step, still on the device: ``values`` (len(layers), 5), float64, the number of elements and
    ``GAIN_AND_FACTORS``. A layer with no element did not run."""

    step: int
    epoch: int
    layers: tuple[str, ...]
    depths: tuple[int, ...]
    values: Tensor


class BatchNormProbe(SteppingProbe):
    """Measures the backward gain of every batch normalization of a model, and its factors, while it trains.

    It looks at every ``nn.BatchNorm1d``, ``2d``, ``3d`` (``SyncBatchNorm`` in a single process) that runs in training
    mode, with gradients enabled and with an input that needs one; also at modules that do more in their forward pass,
    such as those with an activation inside, where the gradient is that at the output of the normalization; and at
    ``nn.InstanceNorm1d``, ``2d``, ``3d``, where each channel of each sample counts as a channel. What cannot be
    measured is listed with its reason in :attr:`skipped`, and named in a warning if the reason is the kind of layer. A
    step is what lies between two calls of :meth:`collect`. Training is not touched; copies of the model come without
    the probe.

    With ``torch.compile``, attach it before the first call of the compiled model; ``fullgraph=True`` included. With
    ``torch.distributed`` running, all processes must call :meth:`collect`, and get the factors over those that share
    the batch.

    Args:
        model: Any module, compiled or not.
        every_n_steps, start, stop: Which steps are measured; as in ``SignalProbe``.
        process_group: The processes that share the batch; as in ``SignalProbe``.

    Attributes:
        step: Index of the current step, from 0; counted by :meth:`collect`; it may be set.
        epoch: What is written into the column ``epoch``; set it when an epoch begins.
        layers: Names of the batch normalizations, in the order in which they are registered.
        skipped: Layer → reason.

    Raises:
        ValueError: ``every_n_steps``, ``start`` or ``stop`` is impossible.

    Example:
        >>> with BatchNormProbe(model) as probe:
        ...     x, y = batches[0]
        ...     criterion(model(x), y).backward()
        ...     frame = probe.collect()
        >>> list(frame.columns)
        ['step', 'epoch', 'depth', 'layer', 'gain', 'gamma_squared', 'inverse_variance', 'projection']
        >>> error = frame["gamma_squared"] * frame["inverse_variance"] * frame["projection"] / frame["gain"] - 1
        >>> bool((error.abs() < 1e-4).all())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        every_n_steps: EveryNSteps = 1,
        process_group: ProcessGroup = "auto",
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(model, Schedule(every_n_steps, start, stop), LayerOrder(), process_group)
        self._model = model
        modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
        self._modules = {name: module for name, module in modules.items() if _normalizes(module)}
        self.layers = tuple(self._modules)
        self._slots = {name: Slots() for name in self._modules}
        self._plans = Plans[Any]()
        self._clear()
        self._attach(self._hooks())

    def _hooks(self) -> Iterator[Handle]:
        for name, module in self._modules.items():
            yield before_forward(module, self._input_hook(name, module))
            yield after_forward(module, self._output_hook(name, module))
            for child in module.children() if _forward_of(module) not in _FORWARDS else ():
                yield before_forward(child, self._inner_hook(name, module))

    def _clear(self) -> None:
        # Others in their place: a hook of an earlier step must see that its step is over.
        self._totals = LayerTotals(len(self.layers), self._plans)
        for slots in self._slots.values():
            slots.clear()

    # -- during the forward and backward pass -------------------------------------------------------------------------

    def _input_hook(self, name: str, own: nn.Module) -> Callable[..., Any]:
        slots, follows = self._slots[name], not isinstance(own, _InstanceNorm)

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            if not torch.compiler.is_compiling() or module is not own or not self._is_measured(module, arguments):
                return None
            if not follows or why_bypassed() is not None:
                return None
            channels, device = int(arguments[0].shape[1]), str(arguments[0].device)
            slots.add(_OUTER, _OUTER, (TERMS, channels), device)
            slots.add(_INNER, _INNER, (channels,), device)
            x = InputTap.apply(arguments[0], getattr(slots, _INNER))
            slots.given = x
            return (x, *arguments[1:])

        return hook

    def _inner_hook(self, name: str, owner: Any) -> Callable[..., Any]:
        """Of a child that is given, in the forward pass of its parent, what that has normalized: in a graph, the one
        place where it is seen."""
        slots = self._slots[name]

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            x = slots.given
            if x is None or not torch.compiler.is_compiling() or len(arguments) != 1:
                return None
            if not is_normalized(arguments[0], x):
                return None
            return (self._tapped(slots, owner, arguments[0]),)

        return hook

    def _output_hook(self, name: str, own: nn.Module) -> Callable[..., Any]:
        slots, plain = self._slots[name], _forward_of(own) in _FORWARDS

        def hook(module: Any, arguments: tuple[Any, ...], output: Tensor) -> Any:
            if module is not own or not self._is_active():
                return None
            if (reason := why_bypassed()) is not None:
                self._order.note(name, reason)
            elif not self._is_measured(module, arguments):
                self._order.skip(name, "its input needs no gradient" if module.training else "it is in evaluation mode")
            elif not torch.compiler.is_compiling():
                self._watch(name, module, arguments[0], output)
            elif slots.given is None:  # a child has seen it, or it is of a kind that cannot be followed here
                if getattr(slots, _OUTER, None) is not None:
                    self._order.enter(name)
                else:
                    self._cannot_follow(name, _IN_GRAPH)
            elif plain:
                self._order.enter(name)
                return self._tapped(slots, module, output)
            else:
                slots.given = None
                self._cannot_follow(name, _IN_GRAPH)
            return None

        return hook

    def _cannot_follow(self, name: str, reason: str) -> None:
        self._order.skip(name, reason)
        self._order.skip_kind(name)

    def _tapped(self, slots: Slots, module: Any, normalized: Tensor) -> Any:
        given: Any = slots.given
        x, slots.given = given.detach(), None
        of_batch = mean_and_invstd(x, module.eps)
        return OutputTap.apply(normalized, getattr(slots, _OUTER), x, *of_batch, module.weight, module.eps)

    def _is_active(self) -> bool:
        return self._recording and self._model.training and torch.is_grad_enabled()

    def _is_measured(self, module: nn.Module, arguments: tuple[Any, ...]) -> bool:
        return self._is_active() and module.training and len(arguments) > 0 and bool(arguments[0].requires_grad)

    def _watch(self, name: str, module: Any, x: Tensor, output: Any) -> None:
        """Hooks the layer's own node of the graph, which is given g and g_in, and Σg·x̂ and Σg as gradients of γ and β.

        A hook of the tensor x would see the gradients of everything else that x goes into as well.
        """
        node = _normalization(output, x)
        if node is None:
            last = getattr(output, "grad_fn", None)
            self._cannot_follow(name, f"its output comes from {last.name() if last is not None else 'no operation'}")
            return
        self._order.enter(name)
        # Under activation checkpointing, to ask for what was saved is to compute it again.
        is_kept = _saved_tensors_are_plain()
        saved = (node._saved_result1, node._saved_result2) if is_kept else None
        if saved is None or saved[1].dtype not in (torch.float32, torch.float64):  # rounded, in a net of half precision
            saved = mean_and_invstd(_as_normalized(x.detach(), module), module.eps)
        mean, invstd = saved
        totals = self._totals  # of this step; close() and the next step put others in their place
        # The layer has saved it: it lives until the hook was called, and not longer. Or a view of it has been saved.
        alive = weakref.ref(x)
        kept = x.detach() if is_kept and isinstance(module, _InstanceNorm) else None

        def hook(inner: Sequence[Tensor | None], outer: Sequence[Tensor | None]) -> None:
            g, g_in = outer[0], inner[0]
            if self._totals is not totals or g is None or g_in is None or why_bypassed() is not None:
                return
            given, weight = alive() if kept is None else kept, module.weight
            given = None if given is None else _as_normalized(given.detach(), module)
            found = outer_totals(g.detach(), inner[1:], given, mean, invstd)
            if found is None:
                self.skipped[name] = "without scale and shift it cannot be measured under activation checkpointing"
                return
            if weight is not None:  # of an instance normalization: once for each sample
                weight = weight.repeat(len(mean) // len(weight))
            one = torch.stack(measured(g, *found, invstd, weight))
            totals.add(self.layers.index(name), module.eps, one, inner_squares(g_in))

        node.register_hook(torch.no_grad()(hook))

    # -- after it -----------------------------------------------------------------------------------------------------

    def readings(self) -> BatchNormReadings | None:
        """Ends the step and returns its factors without waiting for the device; None for a step not measured."""
        found = self._take() if self._recording and self.layers else None
        self._clear()
        self.step += 1
        if found is None:
            return None
        processes = self._processes()
        found = found.to(processes.device([found.device]))
        processes.add_up(found)
        depths = tuple(self._order.depths.get(name, len(self.layers)) for name in self.layers)
        return BatchNormReadings(self.step - 1, self.epoch, self.layers, depths, factors(found))

    def collect(self) -> pd.DataFrame:
        """Ends the step and returns its table, one row per layer that was measured.

        Columns: step, epoch, depth (order of first execution among the batch normalizations, from 0), layer, gain,
        gamma_squared, inverse_variance, projection. All factors of a layer that no gradient reaches are NaN; where all
        γ are 0, the gain is 0 and the factors behind ``gamma_squared`` are NaN.
        """
        found = self.readings()
        return to_frame([] if found is None else [found])

    def _take(self) -> Tensor:
        """The sums of the step (number of layers, 6); the rows of layers that did not run are 0 (in all processes the
        table has the same shape, whatever ran there)."""
        self._order.note_what_never_ran(self.layers)
        self._order.warn_of_kinds()
        for i, slots in enumerate(self._slots.values()):
            received = dict(slots.gradients())
            if received.keys() == {_OUTER, _INNER}:
                self._totals.add_graph(i, received[_OUTER], received[_INNER])
        found = self._totals.total()
        if found is not None:
            return found
        states = (*self._model.parameters(), *self._model.buffers())
        device = next((state.device for state in states), torch.device("cpu"))
        return torch.zeros(len(self.layers), SUMS, dtype=torch.float64, device=device)


def to_frame(readings: Sequence[BatchNormReadings]) -> pd.DataFrame:
    """The factors of some steps, one row per (step, layer), sorted by step and depth; fetched from the device at once.

    The columns are those of :meth:`BatchNormProbe.collect`.
    """
    import pandas as pd

    if not readings:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in BATCHNORM_COLUMNS.items()})
    values = torch.cat([one.values for one in readings]).cpu().numpy()
    keys = [
        (one.step, one.epoch, depth, layer)
        for one in readings
        for layer, depth in zip(one.layers, one.depths, strict=True)
    ]
    frame = pd.DataFrame(keys, columns=["step", "epoch", "depth", "layer"])
    frame[list(GAIN_AND_FACTORS)] = values[:, 1:]
    frame = frame[values[:, 0] > 0].sort_values(["step", "depth"], ignore_index=True)
    return frame.astype(BATCHNORM_COLUMNS)


def _normalizes(module: nn.Module) -> bool:
    """Whether a module is a batch or instance normalization, or keeps the statistics that one has seen."""
    if isinstance(module, _BatchNorm | _InstanceNorm):
        return True
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    # Those of a frozen one, which is an affine map, have its scale among them.
    is_one = buffers >= _STATISTICS and "weight" not in buffers and hasattr(module, "weight")
    return is_one and isinstance(getattr(module, "eps", None), float)


def _forward_of(module: nn.Module) -> Any:
    return type(module).forward


def _normalization(output: Any, x: Tensor) -> Any:
    """The node of the normalization on the way from a module's input to its output, None if there is none."""
    first, waiting, seen = x.grad_fn, [getattr(output, "grad_fn", None)], set[Any]()
    while waiting and len(seen) < _FAR:
        node = waiting.pop(0)
        if node is None or node is first or node in seen:
            continue
        if node.name() in _NODES:
            return node
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return None


def _as_normalized(x: Tensor, module: Any) -> Tensor:
    """What a module normalizes; an instance normalization each channel of each sample, as if it were a channel."""
    if not isinstance(module, _InstanceNorm):
        return x
    of_sample: Any = module
    spatial = of_sample._get_no_batch_dim() - 1
    return x.reshape(1, -1, *x.shape[x.ndim - spatial :])


def _saved_tensors_are_plain() -> bool:
    """Whether no hooks for saved tensors are set, as activation checkpointing does it."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("hooks are set"):
            return True
    except RuntimeError:
        return False
