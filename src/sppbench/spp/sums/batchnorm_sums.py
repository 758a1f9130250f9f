"""What batch normalization does to the gradients that pass it backward: their gain, and the factors that it is made of.

For one channel with batch mean μ, batch variance v (biased), σ² = v + ε and x̂ = (x − μ)/σ, the output is y = γ·x̂ + β.
With the gradient g at y, its mean ḡ and k = mean(g·x̂), the gradient at x is (Ioffe & Szegedy 2015, section 3)

    g_in = γ/σ · (g − ḡ − k·x̂),

and because mean(x̂) = 0 and mean(x̂²) = r = v/σ²,

    mean(g_in²) = γ²/σ² · (m − ḡ² − (2 − r)·k²),    m = mean(g²).

The gain G = mean(g_in²)/mean(g²), over all channels c, is thus a product of three factors, each of which is measured
without looking at g_in:

- ``gamma_squared``     Σ_c γ²·m / Σ_c m;
- ``inverse_variance``  Σ_c γ²·m/σ² / Σ_c γ²·m, a mean of 1/(v + ε);
- ``projection``        Σ_c γ²/σ²·(m − ḡ² − (2 − r)·k²) / Σ_c γ²·m/σ² ≤ 1: what is left when the mean and the part along
  x̂, which BN's own normalization makes ineffective, are taken out of g.

Numerators and denominators are sums over the elements of a batch. Summed over the parts of an accumulated batch, over
calls of a shared layer and over processes, each part with its own μ and v, they give factors whose product still is G.
All are ratios: neither a loss scale nor the averaging over processes shows in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sppbench.spp.sums.batched import ROWS, TAIL, Plans, Segments
from sppbench.spp.sums.statistics import channel_rows, sums_of

# What is summed, over all elements: their number, g², γ²·g², γ²/σ²·g², γ²/σ²·(what the projection leaves); and g_in².
TERMS = 5
SUMS = TERMS + 1
_PIECE = 1 << 18
# Calls of each layer that wait to be added up.
CALLS = 8
# A mean square below this has lost digits to the range of float32.
_SMALLEST_SQUARE = 1e-36


def factors(sums: Tensor) -> Tensor:
    """(R, 6) sums → (R, 5): number of elements, gain, gamma_squared, inverse_variance, projection."""
    count, outer, gamma, variance, kept, inner = sums.unbind(1)
    outer = torch.where(outer > _SMALLEST_SQUARE * count, outer, torch.nan)
    return torch.stack([count, inner / outer, gamma / outer, variance / gamma, kept / variance], dim=1)


def measured(
    g: Tensor, total: Tensor, product: Tensor, invstd: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the terms are made of: number of elements, Σg², Σg, Σg·x̂, 1/σ and γ of each channel, float64 (C,)."""
    count, squares = _count_and_squares(g)
    gamma = torch.ones_like(squares) if weight is None else weight.detach().double()
    return count, squares, total.double(), product.double(), invstd.double(), gamma


def terms(measured: Sequence[Tensor], eps: Tensor | float) -> Tensor:
    """What :func:`measured` gives, for any number of layers side by side, and ε → the first five sums, by channels:
    (5, C). They add up."""
    count, squares, total, product, invstd, gamma = measured
    precision, gamma = invstd.square(), gamma.square()
    removed = (total.square() + (1 + eps * precision) * product.square()) / count  # 1 + ε/σ² = 2 − r
    scale = gamma * precision
    return torch.stack([count, squares, gamma * squares, scale * squares, scale * (squares - removed)])


def inner_squares(g_in: Tensor) -> Tensor:
    """The last of the sums, by channels or as a whole, (C,) or (1,)."""
    sums = sums_of(g_in, 1)
    return sums[1] if sums.ndim == 2 else sums[-len(TAIL)][None]


def outer_totals(
    g: Tensor, of_parameters: Sequence[Tensor | None], x: Tensor | None, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Σg and Σg·x̂ of each channel; None if they are neither known as gradients of β and γ nor x is there any more."""
    product, total = of_parameters
    if product is not None and total is not None and product.dtype in (torch.float32, torch.float64):
        return total.detach(), product.detach()
    return None if x is None else totals_from(g, x.detach(), mean, invstd)


def totals_from(g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Σg and Σg·x̂ of each channel: (C,), float64."""
    others, shape = _others(g), (-1, *[1] * (g.ndim - 2))
    normalized = (x - mean.view(shape)) * invstd.view(shape)
    return g.sum(others, dtype=torch.float64), (g * normalized).sum(others, dtype=torch.float64)


def _count_and_squares(g: Tensor) -> tuple[Tensor, Tensor]:
    """Number of elements and Σg² of each channel of g (N, C, ...): (C,), float64; right to 1e-6."""
    g = g.detach()
    in_graph = torch.compiler.is_compiling()
    if not in_graph and not g.is_cpu:
        rows = sums_of(g, 1)
        rows = rows if rows.ndim == 2 else channel_rows(g, 1)
        return rows[ROWS.index("count")], rows[ROWS.index("squares")]
    if in_graph or g.dtype == torch.float64:
        squares = g.double().square().sum(_others(g))
    else:
        pieces = torch.tensor_split(g, -(-g.numel() // _PIECE))  # which stay in the cache
        parts = [sums_of(piece.float().square(), 1)[: g.shape[1]] for piece in pieces if piece.numel()]
        squares = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return torch.full_like(squares, g.numel() // len(squares)), squares


def mean_and_invstd(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """μ and 1/σ of each channel: (C,), at least single precision."""
    x = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(x, _others(x), correction=0)
    return mean, (variance + eps).rsqrt()


def _others(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


class InputTap(torch.autograd.Function):
    """Identity at a layer's input; its slot receives, as its "gradient", the last of the sums, of g_in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor) -> Tensor:
        """``x`` (N, C, ...); ``slot``: float64 (C,) that requires a gradient."""
        return x.clone()  # not an alias of its input; compilers remove the copy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient as it is, and the sums."""
        return gradients[0], inner_squares(gradients[0])


class OutputTap(torch.autograd.Function):
    """Identity at a layer's output; its slot receives the other sums. The layer has saved x: it costs no memory."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, slot: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, eps: float
    ) -> Tensor:
        """``y`` (N, C, ...); ``slot``: float64 (5, C) that requires a gradient; the layer's input, μ and 1/σ (C,), γ
        and ε."""
        ctx.save_for_backward(x, mean, invstd, weight)
        ctx.eps = eps
        return y.clone()  # an alias must not be changed in place by the next module

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as it is, the sums, and nothing for the others."""
        x, mean, invstd, weight = ctx.saved_tensors
        g = gradients[0]
        sums = terms(measured(g, *totals_from(g, x, mean, invstd), invstd, weight), ctx.eps)
        return g, sums, None, None, None, None, None


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
        """All calls of a layer in compiled graphs: (5, C) as in ``terms``, and ``inner_squares``."""
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
        layers: The layer of each call, first of those outside graphs.
        eps: ε of each call outside graphs.
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
        """What was measured outside graphs and in them, and squares of g_in → (layers, 6)."""
        outer = list(graphs)
        if self._eps is not None:
            outer.insert(0, terms(torch.cat(list(calls), dim=1).unbind(), self._eps))
        found = self._over_channels(torch.cat([torch.cat(outer, dim=1).reshape(-1), *inner]))
        return found.new_zeros(self._number * SUMS).index_add_(0, self._places, found).view(self._number, SUMS)
