"""What is known of the layers that ran: order, shape, and in compiled graphs the slots for their gradients.

Dynamo calls what is decorated with ``assume_constant_result`` while it traces and takes the results as constants: what
is registered here is registered when a graph is made. These are methods that return nothing, as not all versions of
torch take objects as arguments of such a function, or tensors as results of several calls.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sppbench.spp.names import OF_BATCH
from sppbench.spp.probe.readings import Row


class Slots:
    """Leaves that outlive the graphs and receive, as their "gradient", the sums of the gradients that pass a module.

    Attributes, as Dynamo looks them up one by one when it comes to them, which makes each an input of its graph.
    """

    def __init__(self) -> None:
        self._all: dict[str, tuple[str, Tensor]] = {}

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def add(self, attribute: str, layer: str, shape: tuple[int, ...], device: str) -> None:
        """Makes the slot of a layer, float64 of a shape, if there is none with this name."""
        if attribute not in self._all:
            slot = torch.zeros(shape, dtype=torch.float64, device=device, requires_grad=True)
            torch._dynamo.mark_static_address(slot, guard=True)
            self._all[attribute] = layer, slot
            setattr(self, attribute, slot)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Layers and what their slots have received."""
        return ((layer, slot.grad) for layer, slot in self._all.values() if slot.grad is not None)

    def clear(self) -> None:
        """Forgets what the slots have received."""
        for _, slot in self._all.values():
            slot.grad = None


class Registry:
    """The layers in order of first execution.

    Attributes:
        state: A hash of what is known of the layers that are recorded.
    """

    def __init__(self) -> None:
        self.state = 0
        self.depths: dict[str, int] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.shapes: dict[str, tuple[str, int, int]] = {}
        self.skipped: dict[str, str] = {}

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def skip(self, layer: str, reason: str) -> None:
        """Notes why a call is not recorded."""
        self.depths.setdefault(layer, len(self.depths))
        self.skipped[layer] = reason

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def register(self, layer: str, kind: str, ndim: int, channels: int) -> None:
        """Notes what a call returned."""
        shape = (kind, ndim, channels)
        if self.shapes.get(layer) == shape:
            return  # as in nearly all steps
        self.shapes[layer] = shape
        self.state = hash(tuple(self.shapes.items()))
        if layer not in self.depths:
            self.depths[layer] = len(self.depths)
            # Depths of weights follow from those of modules.
            self.rows = {key: row for key, row in self.rows.items() if row.signal in OF_BATCH}
        for signal in OF_BATCH:
            self.rows[signal, layer] = Row(self.depths[layer], layer, kind, signal, ndim, channels)
