"""What is summed up of the logits of one attention, head by head, and the statistics that follow.

With w = softmax(z) the weights of a query over its keys, the statistics are the mean of z², the maximum of abs(z), and
the mean over the queries of the attention entropy -Σ w ln w, in nats, of which
`Zhai et al. 2023 <https://arxiv.org/abs/2303.06296>`_ (section 3) show that it collapses where training is unstable.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Number of logits, Σz², max abs(z), Σ over queries of the entropy, number of queries.
SUMS: Final = 5
LARGEST: Final = 2
#: A logit of at most this is that of a key that a query may not see: −inf, the smallest number of any type, -1e9.
MASKED: Final = torch.finfo(torch.float16).min / 2


def head_sums(logits: Tensor) -> Tensor:
    """The sums of each head, float64 (H, 5).

    Masked logits are left out, and have no weight; so are queries that have no other.

    Args:
        logits: The input of the softmax over the keys, masks included, (N, H, L, S).
    """
    z = logits.detach()
    z = z if z.dtype == torch.float64 else z.float()
    masked = z <= MASKED
    sees = ~masked.all(3)
    # In double precision only from here on: a query has few keys, but a batch many queries.
    entropies = torch.special.entr(torch.softmax(z, 3)).sum(3).masked_fill(~sees, 0)
    z = z.masked_fill(masked, 0)
    one = [(~masked).sum((0, 2, 3)), z.square().sum((0, 2, 3), dtype=torch.float64), z.abs().amax((0, 2, 3))]
    one += [entropies.sum((0, 2), dtype=torch.float64), sees.sum((0, 2))]
    return torch.stack([part.double() for part in one], 1)


def with_more(total: Tensor, sums: Tensor) -> Tensor:
    """The sums of two calls, or of two parts of a batch."""
    both = total + sums
    both[..., LARGEST] = torch.maximum(total[..., LARGEST], sums[..., LARGEST])
    return both


def statistics(sums: Tensor) -> Tensor:
    """Second moment and largest magnitude of the logits, and entropy, (..., 3); NaN where there was no logit."""
    logits, squares, largest, entropies, queries = sums.unbind(-1)
    nothing = torch.full_like(largest, torch.nan)
    return torch.stack([squares / logits, torch.where(logits > 0, largest, nothing), entropies / queries], -1)
