"""Names of the calls of modules in one forward pass, also where activation checkpointing repeats them."""

from __future__ import annotations

import torch
from torch import Tensor

from sppbench.spp.probe.channel_axis import ChannelAxis


class Pass:
    """What is known of one forward pass.

    A plain object that is made anew for each pass, inside a compiled graph as well: a graph then does not depend on
    what earlier passes left behind, and need not be compiled again for an accumulated batch.

    Args:
        previous: The pass before; only those of compiled graphs are kept, and only until the end of the step.
        with_gradient: Whether the pass began with gradients enabled.
    """

    def __init__(self, previous: Pass | None, with_gradient: bool) -> None:
        self.previous = previous
        self.with_gradient = with_gradient
        self.axis = ChannelAxis()
        self.sums: dict[str, Tensor] = {}
        # Calls with no gradient in a pass with gradients: the first run of reentrant checkpointing.
        self.silent: dict[str, list[tuple[str, int | None]]] = {}
        self._calls: dict[str, int] = {}
        self._part: _Part | None = None
        self._left: dict[str, int] = {}

    def call(self, module: str) -> int:
        """The number of the next call of a module, from 1."""
        self._calls[module] = self._calls.get(module, 0) + 1
        return self._calls[module]

    def replay(self, module: str) -> Replayed | None:
        """The call of a module during backward, in activation checkpointing; None if what it repeats was recorded."""
        if module in self._calls and module not in self.silent:
            return None
        # Each checkpoint runs its part of the forward pass again in a node of its own: the parts in reverse order, but
        # each in forward order. How often it calls a shared module is known only when it has run to its end.
        node = id(torch._C._current_autograd_node())
        if self._part is None or self._part.node != node:
            self._part = _Part(node)
        self._part.calls[module] = self._part.calls.get(module, 0) + 1
        return Replayed(self, self._part, module, self._part.calls[module] - 1)

    def take_from_end(self, module: str, calls: int) -> int:
        """Index of the first of the last silent calls that were not taken yet; another backward takes them all."""
        total = len(self.silent[module])
        self._left[module] = (self._left.get(module, total) - calls) % total
        return self._left[module]


class _Part:
    """What one checkpoint runs again: the number of calls of each module, and their place among the silent ones."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.calls: dict[str, int] = {}
        self.first: dict[str, int] = {}


class Replayed:
    """A call that repeats one that ran without gradients."""

    def __init__(self, owner: Pass, part: _Part, module: str, index: int) -> None:
        self._owner, self._part, self._module, self._index = owner, part, module, index

    def axis(self) -> int | None:
        """The channel axis that the first run found (the same in all calls of a module)."""
        return self._owner.silent[self._module][0][1]

    def label(self) -> str:
        """The name of the call; to be asked for when gradients arrive, as the checkpoint then has run to its end."""
        part, module = self._part, self._module
        if module not in part.first:
            part.first[module] = self._owner.take_from_end(module, part.calls[module])
        silent = self._owner.silent[module]
        return silent[(part.first[module] + self._index) % len(silent)][0]


def label(module: str, call: int) -> str:
    """The name of a call: the second of ``fc`` is ``fc#2``."""
    return module if call == 1 else f"{module}#{call}"


def in_backward() -> bool:
    """Whether this runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)
