"""What all probes have in common: counting steps, recording each n-th of them, and hooks that are removed again."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from sppbench.spp.probe.order import LayerOrder

Probe = TypeVar("Probe", bound="SteppingProbe")
Owner = TypeVar("Owner")
Hook = Callable[..., Any]


class SteppingProbe(ABC):
    """A context manager over hooks that record each n-th step.

    Args:
        every_n_steps: Record each n-th step only.
        order: Of the layers that the probe looks at; the hooks fill it.

    Attributes:
        epoch: What is written into the column ``epoch``; set it when an epoch begins.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int, order: LayerOrder) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.epoch = 0
        self._order = order
        self._handles: list[RemovableHandle] = []
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
        self._recording = bool(self._handles) and step % self.every_n_steps == 0

    def _attached(self, handles: list[RemovableHandle]) -> None:
        """Begins to record; `handles` are the probe's hooks, which `close` removes."""
        self._handles = handles
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
            hint = "; give the submod of each stage a probe, with the process_group of its data-parallel processes"
        raise TypeError(f"a probe looks into an nn.Module, not into a {type(model).__name__}{hint}")


class ModuleHook:
    """A hook that a copy or a pickle of its module does without."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def __call__(self, *arguments: Any) -> Any:
        """As the hook itself."""
        return self.hook(*arguments)

    def __reduce__(self) -> tuple[Callable[[], Hook], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Hook:
    return _do_nothing


def _do_nothing(*arguments: Any) -> None:
    return None


def on_optimizer_step(
    owner: Owner,
    before: Callable[[Owner, torch.optim.Optimizer], None],
    after: Callable[[Owner, torch.optim.Optimizer], None],
) -> list[RemovableHandle]:
    """Calls functions of ``owner`` before and after each step of any ``torch.optim`` optimizer, as long as it lives.

    These hooks are global: they must not keep a forgotten owner, and with it a model, alive.
    """
    reference = weakref.ref(owner)

    def hook_of(function: Callable[[Owner, torch.optim.Optimizer], None]) -> Hook:
        def hook(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
            if not torch.compiler.is_compiling() and (alive := reference()) is not None:
                function(alive, optimizer)

        return hook

    handles = [
        register_optimizer_step_pre_hook(hook_of(before)),
        register_optimizer_step_post_hook(hook_of(after)),
    ]
    for handle in handles:
        weakref.finalize(owner, handle.remove).atexit = False
    return handles
