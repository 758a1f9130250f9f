"""Where two signals meet: sums of a branch and its skip connection, and gates; plain and magnitude-preserving (MP).

They are modules without parameters: hooks see their outputs, and state dicts do not contain them.
"""

import math

import torch
from torch import Tensor, nn

from sppbench.checks import check_number


def mp_sum(main: Tensor, skip: Tensor, weight: float = 0.5) -> Tensor:
    """Magnitude-preserving sum (Karras et al. 2024, EDM2, eq. 88): ((1−w)·main + w·skip) / sqrt((1−w)² + w²).

    Two uncorrelated inputs of equal variance give an output of that variance. With variances v_m, v_s and correlation ρ
    the output's variance is [(1−w)²·v_m + w²·v_s + 2·w·(1−w)·ρ·sqrt(v_m·v_s)] / [(1−w)² + w²].

    Args:
        main: output of the residual branch, any shape.
        skip: input of the residual branch, same shape.
        weight: w, share of the skip connection: 0 gives `main`, 1 gives `skip`.

    Example:
        >>> main, skip = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
        >>> round(mp_sum(main, skip, weight=0.3).var().item(), 1)
        1.0
    """
    norm = math.hypot(1 - weight, weight)
    return main * ((1 - weight) / norm) + skip * (weight / norm)


def mp_scale(x: Tensor, gate: Tensor) -> Tensor:
    """Magnitude-preserving gate: x·s / sqrt((1−s)² + s²).

    It is `mp_sum` (Karras et al. 2024, EDM2, eq. 88) with weight s on x and nothing on the other side. Its gain
    g(s) = s / sqrt((1−s)² + s²) satisfies g(s)² + g(1−s)² = 1, hence E[g²] = ½ for logits that are symmetric about 0.

    Args:
        x: features, shape (N, C, H, W).
        gate: s in [0, 1], shape (N, C, 1, 1) or any that broadcasts to x.

    Example:
        >>> mp_scale(torch.ones(3), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.7071, 1.0000])
    """
    return x * (gate / torch.sqrt((1 - gate).square() + gate.square()))


class Sum(nn.Module):
    """Plain residual sum, main + skip (He et al. 2016, eq. 1); both of the same shape.

    Example:
        >>> Sum()(torch.tensor([1.0]), torch.tensor([2.0]))
        tensor([3.])
    """

    def forward(self, main: Tensor, skip: Tensor) -> Tensor:
        return main + skip


class MPSum(nn.Module):
    """Magnitude-preserving sum of a branch and its skip connection with a fixed weight; see `mp_sum`.

    Raises:
        ValueError: `weight`, the share of the skip connection, is outside [0, 1].

    Example:
        >>> MPSum()(torch.tensor([1.0]), torch.tensor([2.0]))
        tensor([2.1213])
    """

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        check_number("weight", "in [0, 1]", weight, 0 <= weight <= 1)
        self.weight = weight

    def forward(self, main: Tensor, skip: Tensor) -> Tensor:
        return mp_sum(main, skip, self.weight)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class Scale(nn.Module):
    """Plain gate of squeeze-and-excitation, s·x (Hu et al. 2018, eq. 4): x (N, C, H, W), s (N, C, 1, 1).

    Example:
        >>> Scale()(torch.ones(1, 2, 4, 4), torch.full((1, 2, 1, 1), 0.5)).unique()
        tensor([0.5000])
    """

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gate * x


class MPScale(nn.Module):
    """Magnitude-preserving gate: x (N, C, H, W), s (N, C, 1, 1); see `mp_scale`.

    Example:
        >>> MPScale()(torch.ones(1, 2, 4, 4), torch.full((1, 2, 1, 1), 0.5)).unique()
        tensor([0.7071])
    """

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return mp_scale(x, gate)
