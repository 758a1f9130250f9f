"""What all probes have in common: counting steps, recording some of them, and hooks that are removed again."""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from sppbench.spp.probe.order import LayerOrder
from sppbench.spp.probe.processes import Processes, ProcessGroup
from sppbench.spp.probe.spread import Spread
from sppbench.spp.schedule import Schedule

Probe = TypeVar("Probe", bound="SteppingProbe")
Owner = TypeVar("Owner")
Hook = Callable[..., Any]


class Handle(Protocol):
    """Of something that was registered."""

    def remove(self) -> None:
        """Takes it back."""


class SteppingProbe(ABC):
    """A context manager over hooks that record some steps.

    Args:
        model: As it is called: the wrapper, where there is one.
        schedule: Which.
        order: Of the layers that the probe looks at; the hooks fill it.
        process_group: The processes that share the batch; see ``SignalProbe``.

    Attributes:
        epoch: What is written into the column ``epoch``; set it when an epoch begins.

    Raises:
        TypeError: ``model`` is not a module.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, order: LayerOrder, process_group: ProcessGroup = "auto"
    ) -> None:
        check_module(model)
        self._spread = Spread(model, process_group)
        self._first = True  # no step has been recorded yet
        self._schedule = schedule
        self.epoch = 0
        self._order = order
        self._handles: list[Handle] = []
        self.step = 0

    @property
    def skipped(self) -> dict[str, str]:
        """What is not recorded: layer → reason."""
        return self._order.skipped

    @property
    def step(self) -> int:
        """Index of the current step."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        # A plain attribute: compiled graphs are guarded by it.
        self._recording = bool(self._handles) and self._schedule(step)

    def _processes(self) -> Processes:
        """Those that train the model, at the end of a step: it may have been wrapped or spread since the probe came."""
        if self._first:
            self._spread.find()
            self._first = False
        return self._spread.processes

    def _attach(self, handles: Iterable[Handle]) -> None:
        """Begins to record; `handles` are the probe's hooks, which `close` removes. If one of them cannot be made,
        those before it are removed."""
        try:
            for handle in handles:
                self._handles.append(handle)
        except BaseException:
            self.close()
            raise
        self.step = self._step

    def __enter__(self: Probe) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes every hook from the model; what was collected stays valid."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._recording = [], False
        self._clear()

    @abstractmethod
    def _clear(self) -> None:
        """Discards what was recorded in the current step."""


def check_module(model: object) -> None:
    """Raises TypeError for what is not a module."""
    if not isinstance(model, torch.nn.Module):
        hint = ""
        if type(model).__name__.startswith("PipelineStage"):
            hint = (
                "; give each stage's submod a probe of its own, with the process_group of its data-parallel processes"
            )
        raise TypeError(f"a probe looks into an nn.Module, not into a {type(model).__name__}{hint}")


class ModuleHook:
    """A hook of a module that copies and pickles of the module come without."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(self, *arguments: Any) -> Any:
        """As the hook itself."""
        return self.hook(*arguments)

    @property
    def __name__(self) -> str:
        """Asked for by ``torch.jit.script``, which compiles hooks, too."""
        raise AttributeError("torch.jit.script cannot compile a model while a probe is attached to it: close the probe")


class ModuleHookHandle:
    """Registers a hook of a module, in the module's dictionary of such hooks, and removes it again.

    The dictionary itself says how it is copied and pickled while hooks of probes are in it.
    """

    def __init__(self, hooks: dict[int, Any], register: Callable[[Hook], RemovableHandle], hook: Hook) -> None:
        self._hooks = weakref.ref(hooks)
        self._handle = register(ModuleHook(hook))
        reference = self._hooks  # a dictionary that refers to itself would wait for the garbage collector
        vars(hooks)["__reduce_ex__"] = lambda protocol: _reduced(reference())

    def remove(self) -> None:
        """Leaves the dictionary as it was, but for hooks of others."""
        self._handle.remove()
        hooks = self._hooks()
        if hooks is not None and not any(isinstance(hook, ModuleHook) for hook in hooks.values()):
            vars(hooks).pop("__reduce_ex__", None)


def _reduced(hooks: dict[int, Any] | None) -> tuple[Any, ...]:
    others = [] if hooks is None else [item for item in hooks.items() if not isinstance(item[1], ModuleHook)]
    return OrderedDict, (), None, None, iter(others)


def before_forward(module: nn.Module, hook: Hook) -> Handle:
    """Calls ``hook(module, arguments)`` before each call of a module."""
    return ModuleHookHandle(module._forward_pre_hooks, module.register_forward_pre_hook, hook)


def after_forward(module: nn.Module, hook: Hook) -> Handle:
    """Calls ``hook(module, arguments, output)`` after each call of a module."""
    return ModuleHookHandle(module._forward_hooks, module.register_forward_hook, hook)


def after_any_forward(module: nn.Module, hook: Hook) -> Iterator[Handle]:
    """As :func:`after_forward`, also of calls that end with an error, whose output is None."""
    yield after_forward(module, hook)
    always: dict[int, Any] = module._forward_hooks_always_called
    key = next(reversed(module._forward_hooks))

    # What torch's always_call=True would add there goes along with copies.
    def register(marker: Hook) -> RemovableHandle:
        always[key] = marker  # only the key is looked at
        handle = RemovableHandle(always)
        handle.id = key
        return handle

    yield ModuleHookHandle(always, register, hook)


Act = Callable[[Owner, torch.optim.Optimizer], None]


def on_optimizer_step(
    owner: Owner, before: Act[Owner], after: Act[Owner] | None = None, again: Act[Owner] | None = None
) -> list[RemovableHandle]:
    """Calls functions of ``owner`` before and after each step of any ``torch.optim`` optimizer, as long as it lives;
    ``again`` each time that the step evaluates its closure once more, as LBFGS does.

    These hooks are global: they must not keep a forgotten owner, and with it a model, alive.
    """
    reference = weakref.ref(owner)

    def hook_of(function: Act[Owner], again: Act[Owner] | None = None) -> Hook:
        def hook(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if torch.compiler.is_compiling() or (alive := reference()) is None:
                return None
            function(alive, optimizer)
            return None if again is None else _counting(args, kwargs, lambda: again(alive, optimizer))

        return hook

    handles = [register_optimizer_step_pre_hook(hook_of(before, again))]
    if after is not None:
        handles.append(register_optimizer_step_post_hook(hook_of(after)))
    for handle in handles:
        weakref.finalize(owner, handle.remove).atexit = False
    return handles


def _counting(
    args: tuple[Any, ...], kwargs: dict[str, Any], again: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of an optimizer's step, with a closure that calls a function before each run but its first; None
    if there is no closure."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if not callable(closure):
        return None
    runs = itertools.count()

    def counted() -> Any:
        if next(runs):
            again()
        return closure()

    return (args, kwargs | {"closure": counted}) if "closure" in kwargs else ((args[0], counted, *args[2:]), kwargs)
