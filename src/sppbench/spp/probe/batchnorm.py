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

from sppbench.spp.names import BATCHNORM_COLUMNS, GAIN_AND_FACTORS
from sppbench.spp.probe.order import LayerOrder
from sppbench.spp.probe.processes import ProcessGroup
from sppbench.spp.probe.spread import Spread
from sppbench.spp.probe.stepping import Handle, SteppingProbe, after_forward, before_forward, check_module
from sppbench.spp.probe.tap import Slots
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
    mode, with gradients enabled and with an input that needs one. What cannot be measured is listed with its reason in
    :attr:`skipped`. A step is what lies between two calls of :meth:`collect`. Training is not touched; copies of the
    model come without the probe.

    With ``torch.compile``, attach it before the first call of the compiled model; ``fullgraph=True`` included. With
    ``torch.distributed`` running, all processes must call :meth:`collect`, and get the factors over those that share
    the batch.

    Args:
        model: Any module, compiled or not.
        every_n_steps: Measure each n-th step only.
        process_group: The processes that share the batch; as of ``SignalProbe``.

    Attributes:
        step: Index of the current step, from 0; counted by :meth:`collect`; it may be set.
        epoch: What is written into the column ``epoch``; set it when an epoch begins.
        layers: Names of the batch normalizations, in the order in which they are registered.
        skipped: Layer → reason.

    Raises:
        ValueError: ``every_n_steps`` is below 1.

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

    def __init__(self, model: nn.Module, every_n_steps: int = 1, process_group: ProcessGroup = "auto") -> None:
        check_module(model)
        super().__init__(every_n_steps, LayerOrder())
        self._model = model
        self._spread = Spread(model, process_group)
        self._first = True
        modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
        self._modules = {name: module for name, module in modules.items() if isinstance(module, _BatchNorm)}
        self.layers = tuple(self._modules)
        self._slots = {name: Slots() for name in self._modules}
        self._plans = Plans[Any]()
        self._clear()
        self._attach(self._hooks())

    def _hooks(self) -> Iterator[Handle]:
        for name, module in self._modules.items():
            if type(module).forward not in _FORWARDS:
                self.skipped[name] = f"{type(module).__name__} has a forward of its own"
                continue
            yield before_forward(module, self._input_hook(name, module))
            yield after_forward(module, self._output_hook(name, module))

    def _clear(self) -> None:
        # Others in their place: a hook of an earlier step must see that its step is over.
        self._totals = LayerTotals(len(self.layers), self._plans)
        for slots in self._slots.values():
            slots.clear()

    # -- during the forward and backward pass -------------------------------------------------------------------------

    def _input_hook(self, name: str, own: _BatchNorm) -> Callable[..., Any]:
        slots = self._slots[name]

        def hook(module: _BatchNorm, arguments: tuple[Any, ...]) -> Any:
            if not torch.compiler.is_compiling() or module is not own or not self._is_measured(module, arguments):
                return None
            self._order.enter(name)
            channels, device = int(arguments[0].shape[1]), str(arguments[0].device)
            slots.add(_OUTER, _OUTER, (TERMS, channels), device)
            slots.add(_INNER, _INNER, (channels,), device)
            return (InputTap.apply(arguments[0], getattr(slots, _INNER)), *arguments[1:])

        return hook

    def _output_hook(self, name: str, own: _BatchNorm) -> Callable[..., Any]:
        slots = self._slots[name]

        def hook(module: _BatchNorm, arguments: tuple[Any, ...], output: Tensor) -> Any:
            if module is not own or not self._is_active():
                return None
            if not self._is_measured(module, arguments):
                self._order.skip(name, "its input needs no gradient" if module.training else "it is in evaluation mode")
            elif not torch.compiler.is_compiling():
                self._watch(name, module, arguments[0], output)
            else:
                x = arguments[0].detach()
                return OutputTap.apply(
                    output, getattr(slots, _OUTER), x, *mean_and_invstd(x, module.eps), module.weight, module.eps
                )
            return None

        return hook

    def _is_active(self) -> bool:
        return self._recording and self._model.training and torch.is_grad_enabled()

    def _is_measured(self, module: _BatchNorm, arguments: tuple[Any, ...]) -> bool:
        return self._is_active() and module.training and len(arguments) > 0 and bool(arguments[0].requires_grad)

    def _watch(self, name: str, module: _BatchNorm, x: Tensor, output: Tensor) -> None:
        """Hooks the layer's own node of the graph, which is given g and g_in, and Σg·x̂ and Σg as gradients of γ and β.

        A hook of the tensor x would see the gradients of everything else that x goes into as well.
        """
        node: Any = output.grad_fn
        if node is None or node.name() not in _NODES:
            self._order.skip(name, f"its output comes from {node.name() if node is not None else 'no operation'}")
            return
        self._order.enter(name)
        # Under activation checkpointing, to ask for what was saved is to compute it again.
        saved = (node._saved_result1, node._saved_result2) if _saved_tensors_are_plain() else None
        if saved is None or saved[1].dtype not in (torch.float32, torch.float64):  # rounded, in a net of half precision
            saved = mean_and_invstd(x.detach(), module.eps)
        mean, invstd = saved
        totals = self._totals  # of this step; close() and the next step put others in their place
        alive = weakref.ref(x)  # the layer has saved it: it lives until the hook was called, and not longer

        def hook(inner: Sequence[Tensor | None], outer: Sequence[Tensor | None]) -> None:
            g, g_in = outer[0], inner[0]
            if self._totals is not totals or g is None or g_in is None:
                return
            found = outer_totals(g.detach(), inner[1:], alive(), mean, invstd)
            if found is None:
                self.skipped[name] = "without scale and shift it cannot be measured under activation checkpointing"
                return
            one = torch.stack(measured(g, *found, invstd, module.weight))
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
        if self._first:
            self._spread.find()
            self._first = False
        processes = self._spread.processes
        found = found.to(processes.device([found.device]))
        processes.add_up(found)
        depths = tuple(self._order.depths.get(name, len(self.layers)) for name in self.layers)
        return BatchNormReadings(self.step - 1, self.epoch, self.layers, depths, factors(found))

    def collect(self) -> pd.DataFrame:
        """Ends the step and returns its table, one row a layer that was measured.

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
        for i, slots in enumerate(self._slots.values()):
            received = dict(slots.gradients())
            if received:
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


def _saved_tensors_are_plain() -> bool:
    """Whether no hooks for saved tensors are set, as activation checkpointing does it."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("hooks are set"):
            return True
    except RuntimeError:
        return False
