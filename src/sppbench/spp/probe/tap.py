"""How gradients are read inside a compiled graph, where tensor hooks are not available: taps, and their slots."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sppbench.spp.probe.outputs import as_real
from sppbench.spp.sums.statistics import channel_rows


class Tap(torch.autograd.Function):
    """Identity whose second input receives, as its "gradient", the channel sums of the gradient that passes.

    It is traced like any other operation. The slot is a leaf, one of `Slots`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, axis: int | None) -> Tensor:
        """``x``, of any shape; ``slot``: float64 (8, C) that requires a gradient."""
        ctx.axis = axis
        return x.clone()  # an alias must not be changed in place by the next module; compilers remove the copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradient as it is, its channel sums, and nothing for the axis."""
        return gradients[0], channel_rows(*as_real(gradients[0], ctx.axis)), None


class Slots:
    """Leaves that outlive the graphs and receive, as their "gradient", the sums of the gradients that pass a module.

    Attributes, as Dynamo looks them up one by one when it comes to them, which makes each an input of its graph.

    Args:
        join: What becomes of the sums of two backward passes, as those of an accumulated batch.
    """

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> None:
        #: Within a call: what the module is given.
        self.given: Tensor | None = None
        self._join = join
        self._all: dict[str, tuple[str, Tensor]] = {}
        self._received: dict[str, Tensor] = {}

    # Dynamo calls this while it traces, and takes its result as a constant; see `sppbench.spp.probe.order`.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def add(self, attribute: str, layer: str, shape: tuple[int, ...], device: str) -> None:
        """Makes the slot of a layer, float64 of a shape, if there is none with this name."""
        if attribute not in self._all:
            slot = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
            torch._dynamo.mark_static_address(slot, guard=True)
            # Left alone, a leaf would add up in its `grad` whatever it receives.
            hook = functools.partial(self._receive, attribute)
            slot.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._all[attribute] = layer, slot
            setattr(self, attribute, slot)

    def _receive(self, attribute: str, slot: Tensor) -> None:
        if (sums := slot.grad) is None:
            return
        slot.grad = None
        earlier = self._received.get(attribute)
        with torch.no_grad():
            self._received[attribute] = sums if earlier is None else self._join(earlier, sums)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Layers and what their slots have received."""
        return ((self._all[attribute][0], sums) for attribute, sums in self._received.items())

    def clear(self) -> None:
        """Forgets what the slots have received."""
        self.given = None
        self._received.clear()
