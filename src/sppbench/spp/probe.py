"""Attaches to any module and gathers, at every layer and every step, the moments of what passes; torch only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sppbench.spp.layers import ChannelAxis, LayerChoice, choose_layers, first_tensor
from sppbench.spp.statistics import TAIL, channel_sums, statistics

if TYPE_CHECKING:
    import pandas as pd

SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")
Hook = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """What is the same at every step for one signal at one layer."""

    depth: int
    layer: str
    kind: str
    signal: str
    ndim: int
    channels: int


@dataclass(frozen=True)
class Readings:
    """The statistics of one step, still on the device: ``values`` (len(rows), 5), float64, see ``Statistics``."""

    step: int
    epoch: int
    rows: tuple[Row, ...]
    values: Tensor


class _Tap(torch.autograd.Function):
    """Identity whose second input receives, as its "gradient", the channel sums of the gradient that passes.

    Inside a compiled graph tensor hooks are not available; this is traced like any other operation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, axis: int) -> Tensor:
        ctx.axis = axis
        return x.clone()  # an alias must not be changed in place by the next module; compilers remove the copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], channel_sums(gradients[0], ctx.axis), None


class SignalProbe:
    """Reads ACSM, ACV and second moment of activations, gradients and parameters of any ``nn.Module`` while it trains.

    ::

        with SignalProbe(model) as probe:
            criterion(model(x), y).backward()
            frame = probe.collect()

    A step is what lies between two calls of :meth:`collect`; several forward and backward passes in it (an accumulated
    batch) count as one batch. Only passes in training mode with gradients enabled are recorded. Training is not touched:
    no random number is drawn, no value changed, nothing is added to the state dict.

    A module that is called more than once in a pass is recorded call by call; from the second on ``#2``, ``#3``, ...
    is appended to its name. Of outputs that are tuples, lists or mappings the first tensor is recorded. What cannot be
    recorded is listed with its reason in :attr:`skipped`.

    With ``torch.compile``, attach the probe before the first call of the compiled module: the statistics then are part of
    its graph, ``fullgraph=True`` included. A gradient can then be read after ``backward()``, not after
    ``torch.autograd.grad``.

    With ``torch.distributed`` running, the sums of all processes are added up before statistics are formed; gradients
    are those of the mean loss over all processes, as DistributedDataParallel averages it.

    Args:
        model: Any module, compiled or not.
        layers: Which modules; see :func:`sppbench.spp.layers.choose_layers`. Leaves by default.
        every_n_steps: Record each n-th step only; the other steps cost nothing but a test.
        signals: Of ``activation``, ``gradient`` (of the loss with respect to the module's output), ``parameter`` (each
            weight, as it was when the gradients were taken; biases are left out), ``parameter_gradient`` and ``update``
            (what the optimizer's step changed).
        channel_axis: ``(name, module, output) -> axis`` where the rules of ``ChannelAxis`` do not fit; None from it
            means that they do.

    Attributes:
        step: Index of the current step, from 0; counted by :meth:`collect`, and free to be set.
        epoch: What is written into the column ``epoch``; to be set by whoever knows it.
        skipped: Layer → reason.

    Raises:
        ValueError: An unknown signal, ``every_n_steps`` below 1, or ``layers`` that match nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: LayerChoice = None,
        every_n_steps: int = 1,
        signals: Iterable[str] = ("activation", "gradient", "parameter"),
        channel_axis: Callable[[str, nn.Module, Tensor], int | None] | None = None,
    ) -> None:
        self.signals = tuple(signals)
        if unknown := set(self.signals) - set(SIGNALS):
            raise ValueError(f"unknown signal {unknown.pop()!r}; there are: {', '.join(SIGNALS)}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.step = self.epoch = 0
        self.skipped: dict[str, str] = {}
        self._model = model
        self._modules = choose_layers(model, layers)
        if not self._modules:
            raise ValueError("no layer was chosen")
        self._weights = _weights(model, self._modules, everything=layers is None)
        self._axis, self._axis_by_user = ChannelAxis(), channel_axis
        self._rows: dict[tuple[str, str], Row] = {}
        self._slots: dict[tuple[str, str], Tensor] = {}
        self._depths: dict[str, int] = {}
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._calls: dict[str, int] = {}
        self._seen: dict[str, bool] = {}
        self._before: dict[str, Tensor] = {}
        self._recording = True
        self._handles = [model.register_forward_pre_hook(self._pass_hook())]
        self._handles += [module.register_forward_hook(self._hook(n, module)) for n, module in self._modules.items()]

    def __enter__(self) -> SignalProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes every hook off the model; what was collected stays valid."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._recording = False
        self._sums, self._slots, self._before = {}, {}, {}

    # -- during the forward and backward pass -------------------------------------------------------------------------

    def start_pass(self) -> None:
        """Says that a forward pass begins; only needed where it does not begin with a call of the model itself."""
        self._calls, self._seen = {}, {}

    def _pass_hook(self) -> Hook:
        # Hooks are closures, not bound methods: a copy of the model (an average of its weights, say) copies hooks, and
        # would copy the probe with a bound method.
        def hook(module: nn.Module, arguments: Any) -> None:
            if self._recording and (torch.compiler.is_compiling() or not _in_backward()):
                self.start_pass()

        return hook

    def _hook(self, name: str, own: nn.Module) -> Hook:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if not self._recording or module is not own or not self._model.training:
                return None
            layer = self._layer(name)
            if layer is None or not torch.is_grad_enabled():
                return None
            x = first_tensor(output)
            if (reason := _why_not(x)) is not None:
                self.skipped[layer] = reason
                return None
            assert x is not None
            return self._record(layer, module, x, output)

        return hook

    def _layer(self, name: str) -> str | None:
        """The name of this call of a module; None for the repetition of a call (activation checkpointing)."""
        if not torch.compiler.is_compiling() and _in_backward():
            labels = [_label(name, call) for call in range(self._calls.get(name, 0))]
            return next((label for label in reversed(labels) if label not in self._seen), None)
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        layer = _label(name, call)
        _remember_depth(self, layer)
        return layer

    def _record(self, layer: str, module: nn.Module, x: Tensor, output: Any) -> Any:
        self._seen[layer] = True
        axis = self._axis_by_user(layer, module, x) if self._axis_by_user is not None else None
        axis = self._axis.of(module, x) if axis is None else axis % x.ndim
        slot = _register(self, layer, type(module).__name__, int(x.ndim), int(x.shape[axis]), str(x.device))
        if "activation" in self.signals:
            self._add(("activation", layer), channel_sums(x, axis))
        if "gradient" not in self.signals:
            return None
        if not x.requires_grad:
            self.skipped[layer] = "its output has no gradient"
            return None
        if not torch.compiler.is_compiling():
            x.register_hook(lambda gradient: self._add(("gradient", layer), channel_sums(gradient, axis)))
            return None
        return _replace(output, x, _Tap.apply(x, slot, axis))

    def _add(self, key: tuple[str, str], sums: Tensor) -> None:
        earlier = self._sums.get(key)
        self._sums[key] = sums if earlier is None else earlier + sums

    # -- after it -----------------------------------------------------------------------------------------------------

    def read_parameters(self) -> None:
        """Reads the weights as they are. :meth:`collect` does it where it was not done; call it before the optimizer's
        step if :meth:`collect` comes after it."""
        if not self._recording or any(signal == "parameter" for signal, _ in self._sums) or self._before:
            return
        if "update" in self.signals:
            self._before = {name: weight.detach().clone() for name, (weight, _, _) in self._weights.items()}
        if "parameter" in self.signals:
            for name, (weight, _, _) in self._weights.items():
                self._add(("parameter", name), channel_sums(weight, 0))

    def readings(self, loss_scale: float | Tensor = 1.0) -> Readings | None:
        """Ends the step and returns its statistics without waiting for the device; None for a step not recorded.

        Args:
            loss_scale: What the loss was multiplied with before ``backward()``, as ``GradScaler.get_scale()`` tells.
        """
        self.read_parameters()
        found = self._take() if self._recording else None
        self.step += 1
        self._recording = bool(self._handles) and self.step % self.every_n_steps == 0
        self._sums, self._before = {}, {}
        self.start_pass()
        return found and Readings(self.step - 1, self.epoch, *self._reduce(found, loss_scale))

    def collect(self, loss_scale: float | Tensor = 1.0) -> pd.DataFrame:
        """Ends the step and returns its tidy frame, one row per (depth, layer, kind, signal); empty if not recorded.

        Columns: step, epoch, samples, depth, layer, kind, signal, ndim, acsm, acv, second_moment, mean (over the channel
        means), nonfinite (number of elements that are NaN or infinite). Call it after ``backward()`` and, unless
        :meth:`read_parameters` was called, before the optimizer's step.
        """
        from sppbench.spp.frame import to_frame

        found = self.readings(loss_scale)
        return to_frame([] if found is None else [found])

    def _take(self) -> dict[tuple[str, str], Tensor]:
        for key, slot in self._slots.items():
            if slot.grad is not None:
                self._add(key, slot.grad)
                slot.grad = None
        for name, (weight, _, _) in self._weights.items():
            if "parameter_gradient" in self.signals and weight.grad is not None:
                self._add(("parameter_gradient", name), channel_sums(weight.grad, 0))
            if name in self._before:
                self._add(("update", name), channel_sums(weight.detach() - self._before[name], 0))
        never = [name for name in self._modules if name not in self._depths]
        self.skipped |= dict.fromkeys(never, "never called in training mode")
        return self._sums

    def _reduce(
        self, sums: dict[tuple[str, str], Tensor], loss_scale: float | Tensor
    ) -> tuple[tuple[Row, ...], Tensor]:
        rows = tuple(sorted(map(self._row, sums), key=lambda row: (row.depth, row.layer, SIGNALS.index(row.signal))))
        if not rows:
            raise RuntimeError("no layer ran in training mode: was the model compiled before the probe was attached?")
        vector = torch.cat([sums[row.signal, row.layer] for row in rows])
        world_size = _add_up_processes(vector, rows)
        channels = torch.tensor([row.channels for row in rows], device=vector.device)
        values = torch.stack(statistics(vector, channels), dim=1)
        is_gradient = torch.tensor([row.signal == "gradient" for row in rows], device=vector.device)
        scale = 1 / (torch.as_tensor(loss_scale, dtype=values.dtype, device=values.device) * world_size)
        factors = torch.stack([scale.square(), scale.square(), scale, torch.ones_like(scale), torch.ones_like(scale)])
        return rows, torch.where(is_gradient[:, None], values * factors, values)

    def _row(self, key: tuple[str, str]) -> Row:
        signal, layer = key
        if key not in self._rows:
            weight, kind, module = self._weights[layer]
            ndim, channels = weight.ndim, weight.shape[0] if weight.ndim else 1
            self._rows[key] = Row(self._depth_of(module), layer, kind, signal, ndim, channels)
        return self._rows[key]

    def _depth_of(self, module: str) -> int:
        """The depth of a module's first call; of one that is not called, that of the last module before it that is."""
        depth = 0
        for name, _ in self._model.named_modules():
            name = name.replace("_orig_mod.", "")
            depth = self._depths.get(name, depth)
            if name == module:
                break
        return depth


# Dynamo calls functions with this decorator while it traces and takes their results as constants: what is registered
# here is registered when the graph is made, and the slots are leaves that outlive it.


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _remember_depth(probe: SignalProbe, layer: str) -> None:
    probe._depths.setdefault(layer, len(probe._depths))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _register(probe: SignalProbe, layer: str, kind: str, ndim: int, channels: int, device: str) -> Tensor | None:
    for signal in ("activation", "gradient"):
        probe._rows[signal, layer] = Row(probe._depths[layer], layer, kind, signal, ndim, channels)
    if not torch.compiler.is_compiling():
        return None
    key, length = ("gradient", layer), channels + len(TAIL)
    if key not in probe._slots or len(probe._slots[key]) != length:
        probe._slots[key] = torch.zeros(length, dtype=torch.float64, device=device, requires_grad=True)
    return probe._slots[key]


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _label(name: str, call: int) -> str:
    return name if call == 0 else f"{name}#{call + 1}"


def _why_not(x: Tensor | None) -> str | None:
    if x is None:
        return "its output holds no tensor"
    if not x.is_floating_point():
        return f"its output is {str(x.dtype).removeprefix('torch.')}"
    if x.layout != torch.strided:
        return f"its output is {str(x.layout).removeprefix('torch.')}"
    if x.ndim == 0 or x.numel() == 0:
        return f"its output has the shape {tuple(x.shape)}"
    return None


def _replace(output: Any, old: Tensor, new: Tensor) -> Any:
    """``output`` with one tensor in it replaced by another."""
    if output is old:
        return new
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_replace(part, old, new) for part in output))
    if isinstance(output, list | tuple):
        return type(output)(_replace(part, old, new) for part in output)
    if isinstance(output, dict):
        return type(output)({key: _replace(part, old, new) for key, part in output.items()})
    return output


def _weights(
    model: nn.Module, modules: dict[str, nn.Module], everything: bool
) -> dict[str, tuple[nn.Parameter, str, str]]:
    """Weights by name: (weight, class of its module, name of its module); the name is the module's where it has but one
    called ``weight``. With ``everything`` also those of modules that are not layers, as a position embedding."""
    found = {}
    for full, weight in model.named_parameters():
        full = full.replace("_orig_mod.", "")
        owner, _, own = full.rpartition(".")
        parents = [".".join(owner.split(".")[:i]) for i in range(owner.count(".") + 2)] if owner else [""]
        if "bias" in own or not (everything or any(parent in modules for parent in parents)):
            continue
        kind = type(model.get_submodule(_original(model, owner))).__name__
        found[owner if own == "weight" and owner else full] = (weight, kind, owner)
    return found


def _original(model: nn.Module, name: str) -> str:
    """The name under which ``model`` knows a module whose label leaves out what torch.compile puts in."""
    return next(full for full, _ in model.named_modules() if full.replace("_orig_mod.", "") == name)


def _add_up_processes(vector: Tensor, rows: tuple[Row, ...]) -> int:
    """Adds the vectors of all processes up, in place, and returns their number.

    Raises:
        RuntimeError: The processes have not seen the same layers.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return 1
    lengths = torch.tensor([len(vector), -len(vector), len(rows), -len(rows)], device=vector.device)
    dist.all_reduce(lengths, op=dist.ReduceOp.MAX)
    if lengths[0] != -lengths[1] or lengths[2] != -lengths[3]:
        raise RuntimeError("the processes have recorded different layers in this step")
    dist.all_reduce(vector)
    return dist.get_world_size()
