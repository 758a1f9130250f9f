"""Records, at every layer of any module and at every step, the statistics of activations, gradients and weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.utils.hooks import RemovableHandle

from sppbench.spp.names import DEFAULT_SIGNALS, OF_BATCH, SIGNALS
from sppbench.spp.places import with_places
from sppbench.spp.probe.blocks import find_blocks
from sppbench.spp.probe.bypass import TRANSFORMED, is_transformed, why_bypassed
from sppbench.spp.probe.calls import Pass, Replayed, in_backward, label
from sppbench.spp.probe.channel_axis import Second, is_second, is_second_inside
from sppbench.spp.probe.layers import (
    LayerChoice,
    choose_layers,
    class_name,
    is_default,
    is_leaf,
    named_modules,
    unwrapped,
    without_hooks,
)
from sppbench.spp.probe.order import LayerRows
from sppbench.spp.probe.outputs import as_real, overwritable, recorded_tensor, replaced, why_not
from sppbench.spp.probe.processes import Held, ProcessGroup, Share, Unknown
from sppbench.spp.probe.readings import DifferentNets, Key, Readings, Reducer, Row, to_frame
from sppbench.spp.probe.reasons import UNREACHED, WITHOUT_GRAPH, NeverCalled, shared
from sppbench.spp.probe.stepping import (
    Handle,
    Hook,
    SteppingProbe,
    after_forward,
    before_forward,
    on_optimizer_step,
)
from sppbench.spp.probe.tap import Slots, Tap
from sppbench.spp.probe.weight_reader import WeightReader
from sppbench.spp.probe.weights import named_weights
from sppbench.spp.schedule import EveryNSteps, Schedule
from sppbench.spp.sums.batched import ROWS, joined
from sppbench.spp.sums.statistics import channel_rows, folded, sums_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class SignalProbe(SteppingProbe):
    """Reads ACSM, ACV and second moment of activations, gradients and parameters of any ``nn.Module`` while it trains.

    A step is what lies between two calls of :meth:`collect`; several forward and backward passes in it (an accumulated
    batch) count as one batch. Only passes that begin in training mode with gradients enabled are recorded. Training is
    not touched: no random number is drawn, no value changed, nothing is added to the state dict; copies and pickles of
    the model come without the probe.

    A module that is called more than once in a pass is recorded call by call; from the second on ``#2``, ``#3``, ...
    is appended to its name. Of outputs that are tuples, lists, mappings or dataclasses the first floating-point tensor
    is recorded. What cannot be recorded is listed with its reason in :attr:`skipped`. A gradient counts once for each
    backward pass through the output, and only in the step of its forward pass.

    With ``torch.compile``, attach the probe before the first call of the compiled module: the statistics then are part
    of its graph, ``fullgraph=True`` included; on a GPU, ``options={"combo_kernels": True}`` spares many kernels.
    Gradients can then be read after ``backward()``, but not after ``torch.autograd.grad`` or ``backward(inputs=...)``.
    A checkpoint inside a graph breaks it, unless ``torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint``
    is set; the numbers are right either way.

    With ``torch.distributed`` running, the sums of all processes are added up before statistics are formed: the numbers
    are those of one process on the whole batch, also of weights that FSDP or tensor parallelism spread over processes.
    Gradients are those of the mean loss over the data-parallel processes, as DistributedDataParallel and FSDP average
    it. Every process must then call :meth:`collect`. The statistics of a layer that only some of them ran cover those
    processes alone. Stages of a pipeline are different nets: give each the ``process_group`` of its data-parallel
    processes.

    Args:
        model: Any module; of one that ``torch.compile`` or DistributedDataParallel has wrapped, what is inside.
        layers: Which modules; see :func:`sppbench.spp.probe.layers.choose_layers`. Leaves by default. ``"blocks"``: the
            repeated blocks of the model, whose outputs are its residual stream.
        every_n_steps: Record only every n-th step; the other steps cost no more than a test. Or a function
            ``step -> bool`` that chooses the steps, the same in all processes.
        start, stop: Record only steps from ``start`` on, and before ``stop``.
        signals: Of ``activation``, ``gradient`` (of the loss with respect to the module's output), ``parameter`` (each
            weight, as it was when the gradients were taken; biases are left out), ``parameter_gradient`` (as the
            optimizer found it: unscaled and clipped if it was) and ``update`` (what the optimizer's step changed; keeps
            a copy of the weights meanwhile). The channels of a weight are its first axis.
        channel_axis: ``(name, module, output) -> axis`` where the rules of ``ChannelAxis`` do not fit; None from it
            means that they do.
        process_group: The processes with which this one shares the batch; None: none, and no process is asked for
            anything. By default what the model says: the processes of DistributedDataParallel or FSDP, else all that
            are not tensor-parallel (with those that are, sums are added up in any case).

    Attributes:
        step: Index of the current step, from 0; counted by :meth:`collect`; it may be set.
        epoch: What is written into the column ``epoch``; set it when an epoch begins.
        skipped: Layer → reason.
        blocks: The repeated blocks of the model, found by its structure: name → number, from 0.

    Raises:
        TypeError: ``model`` is not a module, as a ``PipelineStage`` is not.
        ValueError: An unknown signal, an impossible ``every_n_steps``, ``start`` or ``stop``, or ``layers`` that match
            nothing.

    Example:
        >>> with SignalProbe(model) as probe:
        ...     for x, y in batches:
        ...         optimizer.zero_grad()
        ...         criterion(model(x), y).backward()
        ...         optimizer.step()
        ...         frame = probe.collect()
        >>> frame[["step", "depth", "layer", "kind", "signal"]].head(3)
           step  depth layer    kind      signal
        0     1      0     0  Linear  activation
        1     1      0     0  Linear    gradient
        2     1      0     0  Linear   parameter
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerChoice = None,
        every_n_steps: EveryNSteps = 1,
        signals: Iterable[str] = DEFAULT_SIGNALS,
        channel_axis: Callable[[str, nn.Module, Tensor], int | None] | None = None,
        process_group: ProcessGroup = "auto",
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self.signals = (signals,) if isinstance(signals, str) else tuple(signals)
        if unknown := set(self.signals) - set(SIGNALS):
            raise ValueError(f"unknown signal {unknown.pop()!r}; there are: {', '.join(SIGNALS)}")
        self._layers = LayerRows()
        super().__init__(model, Schedule(every_n_steps, start, stop), self._layers, process_group)
        self._model = unwrapped(model)
        self._modules = choose_layers(self._model, layers)
        if not self._modules:
            raise ValueError("no layer was chosen")
        self.blocks = {name: number for number, name in enumerate(find_blocks(named_modules(self._model)))}
        self._weights = named_weights(self._model, self._modules, everything=is_default(layers))
        self._never_called = NeverCalled(self._model, is_compiled=hasattr(model, "_orig_mod"))
        for name, reason in shared(self._model).items() if is_default(layers) else ():
            self._layers.note(name, reason)
        self._axis_by_user = channel_axis
        self._weight_reader = WeightReader(self._weights, self._spread, self._layers, self.signals)
        self._reduce = Reducer()
        self._slots = {name: Slots(joined) for name in self._modules}
        self._leaf_handles: list[RemovableHandle] = []
        self._clear()
        self._attach(self._hooks())

    def _hooks(self) -> Iterator[Handle]:
        for name, reason in without_hooks(self._model).items():
            if name in self._modules:
                self._layers.note(name, reason)
        if not isinstance(self._model, RecursiveScriptModule):
            yield before_forward(self._model, self._pass_hook())
        for name, module in self._modules.items():
            if name not in self.skipped:
                yield after_forward(module, self._layer_hook(name, module))
        yield from on_optimizer_step(
            self, SignalProbe._before_optimizer, SignalProbe._after_optimizer, SignalProbe._before_closure_again
        )

    def _clear(self) -> None:
        for handle in self._leaf_handles:
            handle.remove()
        for slots in self._slots.values():
            slots.clear()
        self._leaf_handles = []
        self._sums: dict[Key, Tensor] = {}
        self._shares: dict[Key, Share] = {}
        self._weight_reader.clear()
        self._is_paused = False  # while an optimizer's step evaluates its closure once more
        self._pass = Pass(None, with_gradient=False)

    # -- during the forward and backward pass -------------------------------------------------------------------------

    def start_pass(self) -> None:
        """Marks the beginning of a forward pass; only needed where it does not begin with a call of the model itself,
        and there only if a step has several."""
        if not torch.compiler.is_compiling() and self._first:  # in this order: a graph would be guarded by it
            self._spread.find()
        previous = self._pass if torch.compiler.is_compiling() or self._pass.sums else None
        self._pass = Pass(previous, torch.is_grad_enabled())

    # Hooks are closures, which torch.compile traces without a break.

    def _pass_hook(self) -> Hook:
        def hook(module: nn.Module, arguments: Any) -> None:
            if not self._recording or module is not self._model or why_bypassed() is not None:
                return
            if torch.compiler.is_compiling() or not in_backward():
                self.start_pass()

        return hook

    def _layer_hook(self, name: str, own: nn.Module) -> Hook:
        slots, second = self._slots[name], (is_second(own), is_second_inside(own))

        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if not self._recording or module is not own or not self._model.training:
                return None
            if (reason := why_bypassed()) is not None:
                return self._layers.note(name, reason)
            if not torch.compiler.is_compiling() and in_backward():
                return self._repeat(name, output) if torch.is_grad_enabled() else None
            if not torch.is_grad_enabled() and not self._pass.with_gradient:
                return self._layers.note_call_without_gradients(name)
            return self._record(name, slots, module, second, arguments, output)

        return hook

    def _record(self, name: str, slots: Slots, module: nn.Module, second: Second, arguments: Any, output: Any) -> Any:
        call = self._pass.call(name)
        layer = label(name, call)
        x = recorded_tensor(output)
        reason = why_not(x)
        if x is None or reason is not None:
            self._layers.skip(layer, str(reason))
            return None
        axis = None if self._axis_by_user is None else self._axis_by_user(layer, module, x)
        axis = self._axis_of(layer, second, arguments, x) if axis is None else axis % x.ndim
        self._pass.axis.note(x, axis)
        held = Held(x, None) if self._spread.is_whole(x) else self._held(layer, x, axis)
        if held is None:
            return None
        channels = held.share.channels if held.share is not None else 1 if axis is None else int(x.shape[axis])
        channels *= 2 if x.is_complex() else 1
        self._layers.register(layer, class_name(module), int(x.ndim), channels)
        if "activation" in self.signals:
            if torch.compiler.is_compiling():
                self._pass.sums[layer] = channel_rows(*as_real(x, axis))
            else:
                self._read(("activation", layer), held, axis)
        if not torch.is_grad_enabled():
            self._pass.silent.setdefault(name, []).append((layer, axis))
        elif "gradient" not in self.signals:
            pass
        elif not x.requires_grad:
            self._layers.skip(layer, "its output has no gradient")
        elif torch.compiler.is_compiling():
            slot = f"call{call}_channels{channels}"
            slots.add(slot, layer, (len(ROWS), channels), str(x.device))
            tapped = Tap.apply(x, getattr(slots, slot), axis)
            self._pass.axis.note(tapped, axis)
            return replaced(output, x, tapped)
        else:
            self._hook_gradient(module, x, axis, lambda: layer, held.share)
        return None

    def _axis_of(self, layer: str, second: Second, arguments: Any, x: Tensor) -> int | None:
        own, inside = second
        axis = self._pass.axis.of(own, arguments, x, inside)
        if self._pass.axis.guessed:
            self._layers.guess(layer)
        return axis

    def _held(self, layer: str, x: Tensor, axis: int | None) -> Held | None:
        """What this process holds of a tensor of the batch; None if that is not known."""
        try:
            if torch.compiler.is_compiling():
                raise Unknown("in a compiled graph it is not known which part of it each tensor-parallel process holds")
            return self._spread.held(x, axis)
        except Unknown as reason:
            self._layers.skip(layer, str(reason))
            return None

    def _repeat(self, name: str, output: Any) -> None:
        """Hooks the gradient of a call that activation checkpointing repeats."""
        x = recorded_tensor(output)
        call: Replayed | None = self._pass.replay(name)
        if call is not None and x is not None and x.requires_grad and "gradient" in self.signals:
            whole = self._spread.is_whole(x)
            held = Held(x, None) if whole else self._held(name, x, call.axis())
            if held is not None:
                self._hook_gradient(self._modules[name], x, call.axis(), call.label, held.share)

    def _hook_gradient(
        self, module: nn.Module, x: Tensor, axis: int | None, label: Callable[[], str], share: Share | None
    ) -> None:
        sums = self._sums  # of this step; close() and the next step put others in their place
        hooked = overwritable(module, x)
        shape = None if hooked is x else x.shape  # the hook must not keep x itself

        def hook(gradient: Tensor) -> None:
            if is_transformed():
                self._layers.note(label(), TRANSFORMED)
            elif self._sums is sums:
                held: Held | None = Held(gradient if shape is None else gradient.view(shape), share)
                if type(gradient) is not Tensor:  # which may be spread in another way than x
                    held = self._held(label(), gradient, axis)
                if held is not None:
                    self._read(("gradient", label()), held, axis)

        handle: RemovableHandle = hooked.register_hook(hook)  # type: ignore[no-untyped-call]
        if x.is_leaf:  # an input or a parameter that a module handed through: it outlives the graph
            self._leaf_handles.append(handle)

    def _read(self, key: Key, held: Held, axis: int | None) -> None:
        """Adds what is read of a tensor, or a reason: nothing that a tensor cannot do ends a run."""
        try:
            self._add(key, sums_of(*as_real(held.local, axis)), held.share)
        except Exception as error:
            reason = f"its {key[0]} cannot be read: {type(error).__name__}: {error}".partition("\n")[0]
            self._layers.note(key[1], reason)

    def _add(self, key: Key, sums: Tensor, share: Share | None = None) -> None:
        earlier = self._sums.get(key)
        if share is not None and self._shares.setdefault(key, share) is not share:
            self._layers.skipped[key[1]] = "it was spread over processes in different ways within a step"
            return
        if earlier is not None and earlier.shape != sums.shape:  # one of them comes from a graph, or both differ
            earlier, sums = folded(earlier), folded(sums)
        if earlier is not None and earlier.shape != sums.shape:
            self._layers.skipped[key[1]] = "its number of channels changed within a step"
            return
        self._sums[key] = sums if earlier is None else joined(earlier, sums)

    # -- after it -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read_parameters(self) -> None:
        """Reads the weights as they are, once a step; called by itself when a ``torch.optim`` optimizer takes its step
        or by :meth:`collect`, whichever comes first."""
        if self._recording:
            self._weight_reader.read()

    def _before_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self._recording and self._weight_reader.are_trained_by(optimizer):
            self.read_parameters()

    def _before_closure_again(self, optimizer: torch.optim.Optimizer) -> None:
        """A batch that a step evaluates several times, at other weights each time, counts once, as it first was."""
        if self._recording and self._weight_reader.are_trained_by(optimizer):
            self._weight_reader.read_gradients()
            self._recording, self._is_paused = False, True

    def _after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if self._is_paused:
            self._is_paused, self._recording = False, True
        elif self._recording and self._weight_reader.are_trained_by(optimizer):
            self._weight_reader.read_gradients()

    def readings(self, loss_scale: float | Tensor = 1.0) -> Readings | None:
        """Ends the step and returns its statistics without waiting for the device; None for a step not recorded.

        Args:
            loss_scale: What the loss was multiplied by before ``backward()``, as ``GradScaler.get_scale()`` said.
        """
        recorded, processes = self._recording, self._processes()
        if recorded:
            self._take()
        sums, shares = self._sums, self._shares
        self._clear()
        self.step += 1
        if not recorded or not (sums or processes.groups):  # the others wait for one that recorded nothing
            return None
        try:
            rows, values = self._reduce(sums, self._row, self._layers.state, loss_scale, processes, shares)
        except DifferentNets:
            log.warning(
                "the processes have no recorded layer in common, as with the stages of a pipeline, so nothing more "
                "is recorded: give the probe of each stage the process_group of its data-parallel processes"
            )
            self.close()
            return None
        return Readings(self.step - 1, self.epoch, rows, values) if rows else None

    def collect(self, loss_scale: float | Tensor = 1.0) -> pd.DataFrame:
        """Ends the step and returns its tidy frame, one row per (depth, layer, kind, signal); empty if not recorded.

        Call it after ``backward()``, before or after the optimizer's step (for ``update``: after).

        Columns: step, epoch, samples, depth, layer, kind, signal, ndim, acsm, acv, second_moment, mean (over the
        channel means), nonfinite (number of elements that are NaN or infinite), absmax (largest magnitude; NaN if an
        element is), zeros (share of elements that are exactly 0), subnormal (of types of less than 32 bits the share
        of those below the smallest normal number that are not 0; NaN for other types), block and role (see
        :mod:`sppbench.spp.places`: layers with one role have the same place in each of the repeated blocks).

        Args:
            loss_scale: What the loss was multiplied by before ``backward()``, as ``GradScaler.get_scale()`` said:
                gradients are divided by it, but ``zeros`` and ``subnormal`` are of the tensors as they were. Gradients
                of parameters are not divided, because the scaler's ``unscale_`` or ``step`` does that.
        """
        found = self.readings(loss_scale)
        return with_places(to_frame([] if found is None else [found]), self.blocks)

    def _take(self) -> None:
        """Completes the sums of the step."""
        self._complete_weights()
        for slots in self._slots.values():
            for layer, sums in slots.gradients():
                self._add(("gradient", layer), sums)
        compiled: Pass | None = self._pass
        while compiled is not None:
            for layer, sums in compiled.sums.items():
                self._add(("activation", layer), sums)
            compiled = compiled.previous
        called = self._layers.depths
        self._layers.note_what_never_ran(self._modules, lambda layer: self._never_called(layer, called))
        self._note_what_has_no_gradient()
        self._layers.warn_of_guesses()
        self._warn_if_nothing_ran()

    @torch.no_grad()
    def _complete_weights(self) -> None:
        reader = self._weight_reader
        reader.complete()
        self._sums |= reader.sums
        self._shares |= reader.shares

    def _note_what_has_no_gradient(self) -> None:
        read = {layer for signal, layer in self._sums if signal == "activation"}
        reached = {layer for signal, layer in self._sums if signal == "gradient"}
        if not reached:  # no backward pass, or they are not asked for
            return
        silent = {layer for calls in self._pass.silent.values() for layer, _ in calls} if read - reached else set()
        missing = {layer: WITHOUT_GRAPH if layer in silent else UNREACHED for layer in read - reached}
        self._layers.note_what_has_no_gradient(missing)

    def _warn_if_nothing_ran(self) -> None:
        wanted = set(self.signals) & set(OF_BATCH)
        if wanted and not any(signal in wanted for signal, _ in self._sums):
            warnings.warn(
                f"step {self.step}: no layer ran in training mode with gradients enabled. A probe must be attached "
                "before the first call of a compiled model (or call torch.compiler.reset() after attaching it).",
                RuntimeWarning,
                stacklevel=4,
            )

    def _row(self, key: Key, channels: int) -> Row:
        signal, layer = key
        if signal not in OF_BATCH and key not in self._layers.rows:
            weight = self._weights[layer]
            ndim = 0 if weight.parameter is None else self._spread.ndim(weight.parameter)
            depth = self._depth_of(weight.module, layer)
            self._layers.rows[key] = Row(depth, layer, weight.kind, signal, ndim, channels)
        row = self._layers.rows[key]
        return row if row.channels == channels else row._replace(channels=channels)

    def _depth_of(self, module: str, weight: str) -> int:
        """The depth of a module's first call. Of one that is not called, that of the last module before it that is; so
        of one with children, which has run when they have, unless the weight goes by its name."""
        depth = 0
        for name, one in named_modules(self._model).items():
            if name == weight or is_leaf(one):
                depth = self._layers.depths.get(name, depth)
            if name == module:
                break
        return depth
