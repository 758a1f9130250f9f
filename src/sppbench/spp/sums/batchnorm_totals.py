"""What the calls of batch normalizations gave in a step, added up for all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sppbench.spp.sums.batched import Plans, Segments
from sppbench.spp.sums.batchnorm_sums import SUMS, TERMS, terms

# Calls of each layer that wait to be added up.
CALLS = 8


class LayerTotals:
    """Gathers, and adds up when many calls wait, as those of a batch in many parts.

    Args:
        layers: Number of layers.
        plans: What steps share.
    """

    def __init__(self, layers: int, plans: Plans[Any]) -> None:
        self._layers, self._plans = layers, plans
        self.calls: list[tuple[int, float, Tensor, Tensor]] = []
        self._graphs: list[tuple[int, Tensor, Tensor]] = []
        self._total: Tensor | None = None

    def add(self, layer: int, eps: float, outer: Tensor, inner: Tensor) -> None:
        """A call of a layer, by its index, and its ε: (6, C), the stack of ``measured``, and ``inner_squares``."""
        self.calls.append((layer, eps, outer, inner))
        if len(self.calls) >= CALLS * self._layers:
            self._add_up()

    def add_graph(self, layer: int, outer: Tensor, inner: Tensor) -> None:
        """All calls of a layer in compiled graphs: (5, C) as of ``terms``, and ``inner_squares``."""
        self._graphs.append((layer, outer, inner))

    def total(self) -> Tensor | None:
        """The six sums of each layer, (layers, 6), 0 where it was not called; None if none was."""
        self._add_up()
        return self._total

    def _add_up(self) -> None:
        if not self.calls and not self._graphs:
            return
        calls, graphs = [one[2:] for one in self.calls], [one[1:] for one in self._graphs]
        sizes = [outer.shape[1] for outer, _ in (*calls, *graphs)], [len(inner) for _, inner in (*calls, *graphs)]
        layers = [one[0] for one in self.calls] + [one[0] for one in self._graphs]
        eps, device = [one[1] for one in self.calls], (calls or graphs)[0][0].device
        key = (tuple(layers), tuple(eps), *map(tuple, sizes), device)
        if key not in self._plans:
            self._plans[key] = _Plan(self._layers, layers, eps, *sizes, device)
        found = self._plans[key](
            [outer.to(device, non_blocking=True) for outer, _ in calls],
            [outer.to(device, non_blocking=True) for outer, _ in graphs],
            [inner.to(device, non_blocking=True) for _, inner in (*calls, *graphs)],
        )
        self._total = found if self._total is None else self._total.to(device, non_blocking=True) + found
        self.calls, self._graphs = [], []


class _Plan:
    """Where the values of some calls belong.

    Args:
        number: Of all layers.
        layers: The layer of each call, first of those outside of graphs.
        eps: ε of each call outside of graphs.
        channels: Of each call.
        inner: Number of the squares of g_in of each call.
        device: Where they are.
    """

    def __init__(
        self,
        number: int,
        layers: Sequence[int],
        eps: Sequence[float],
        channels: Sequence[int],
        inner: Sequence[int],
        device: torch.device,
    ) -> None:
        self._number = number
        by_channel = [torch.full((n,), one, dtype=torch.float64) for one, n in zip(eps, channels, strict=False)]
        self._eps = torch.cat(by_channel).to(device) if eps else None
        self._over_channels = Segments([*TERMS * list(channels), *inner], device)
        places = [layer * SUMS + term for term in range(SUMS) for layer in layers]
        self._places = torch.tensor(places, device=device)

    def __call__(self, calls: Sequence[Tensor], graphs: Sequence[Tensor], inner: Sequence[Tensor]) -> Tensor:
        """What was measured outside of graphs and in them, and squares of g_in → (layers, 6)."""
        outer = list(graphs)
        if self._eps is not None:
            outer.insert(0, terms(torch.cat(list(calls), dim=1).unbind(), self._eps))
        found = self._over_channels(torch.cat([torch.cat(outer, dim=1).reshape(-1), *inner]))
        return found.new_zeros(self._number * SUMS).index_add_(0, self._places, found).view(self._number, SUMS)
