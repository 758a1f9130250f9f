"""Hooks that stay with the module, and with the probe, that they were made for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

Owner = TypeVar("Owner")
Hook = Callable[..., Any]


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
