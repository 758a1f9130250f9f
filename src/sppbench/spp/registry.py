"""What is known of the layers that ran: order, shape, and in compiled graphs the slot for the gradient.

Dynamo calls functions decorated with ``assume_constant_result`` while it traces and takes their results as constants:
what is registered here is registered when a graph is made, and the slots are leaves that outlive it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppbench.spp.readings import OF_BATCH, Row
from sppbench.spp.statistics import TAIL


class Registry:
    """The layers in order of first execution."""

    def __init__(self) -> None:
        self.depths: dict[str, int] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.slots: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[str, int, int]] = {}
        self.skipped: dict[str, str] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def skip(registry: Registry, layer: str, reason: str) -> None:
    """Notes why a call is not recorded."""
    registry.depths.setdefault(layer, len(registry.depths))
    registry.skipped[layer] = reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def register(registry: Registry, layer: str, kind: str, ndim: int, channels: int, device: str) -> Tensor | None:
    """Notes what a call returned; in a graph, the slot that receives the channel sums of its gradient."""
    shape = (kind, ndim, channels)
    if registry.shapes.get(layer) == shape and not torch.compiler.is_compiling():
        return None  # as in nearly all steps
    registry.shapes[layer] = shape
    if layer not in registry.depths:
        registry.depths[layer] = len(registry.depths)
        # Depths of weights follow from those of modules.
        registry.rows = {key: row for key, row in registry.rows.items() if row.signal in OF_BATCH}
    for signal in OF_BATCH:
        row = Row(registry.depths[layer], layer, kind, signal, ndim, channels)
        if registry.rows.get((signal, layer)) != row:
            registry.rows[signal, layer] = row
    if not torch.compiler.is_compiling():
        return None
    length = channels + len(TAIL)
    if layer not in registry.slots or len(registry.slots[layer]) != length:
        registry.slots[layer] = torch.zeros(length, dtype=torch.float64, device=device, requires_grad=True)
    return registry.slots[layer]
