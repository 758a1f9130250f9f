"""Rules of attention at initialization: weights that are nearly uniform, Σ_j w_ij·v_j with w = softmax(q·k)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import Array
from sppbench.spp.theory.layer_rules import Rule
from sppbench.spp.theory.state import State

MOST_VARIANCE = 30.0  # of logits, beyond which attention looks at one key


@dataclass(frozen=True)
class Logits(Rule):
    """q·k over `width` channels. Its products are of a pair with itself, of one query and two keys, and of two queries.

    E[(q·k)²] = width·E[q²]·E[k²] for independent q and k (Noci et al. 2022, appendix A).
    """

    width: int
    places: int
    factor: float = 1.0

    def forward(self, *inputs: State) -> State:
        q, k = inputs
        queries = np.array([q.products[0], q.products[0], q.products[1]])
        keys = np.array([k.products[0], k.products[1], k.products[0]])
        products = self.width * (queries * keys + (self.width - 1) * (q.mean * k.mean) ** 2)
        mean = self.factor * self.width * q.mean * k.mean
        return State(products * self.factor**2, q.samples, self.places, mean, gaussian=mean == 0)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        q, k = inputs
        scale = self.factor**2 * gradient.products[0]
        return [np.asarray(scale * k.places * k.products), np.asarray(scale * q.places * q.products)]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which keys a query sees: uniform weights (patterns, queries, keys), rows of sum 1; a mean over the patterns."""

    uniform: Array

    def sharpness(self, logits: State) -> tuple[Array, Array]:
        """E[Σ_j w_ij²] for each query i, and E[Σ_a w_ia·w_ja] for each two queries.

        The logits of a query are Gaussian around what they have in common, see `softmax_squares`.
        """
        own, of_keys, of_queries = (float(value) for value in logits.products)
        variance = min(max(own - of_keys, 0.0), MOST_VARIANCE)
        alike = of_queries / own if own > 0 else 0.0
        keys = 1 / np.square(self.uniform).sum(2)
        counts, which = np.unique(keys.round(6), return_inverse=True)
        squares = theory.softmax_squares(counts, variance)[which].reshape(keys.shape)
        across = np.minimum(self.uniform @ self.uniform.swapaxes(1, 2) * math.exp(variance * alike), 1.0)
        return squares, across


@dataclass(frozen=True)
class AttentionWeights(Rule):
    """softmax(logits): the second moment is E[Σ_j w_j²]/keys."""

    pattern: Pattern

    @property
    def source(self) -> str:
        return "Noci et al. 2022"

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        keys = self.pattern.uniform.shape[2]
        own = float(self.pattern.sharpness(x)[0].mean()) / keys
        return State(np.array([own, 1 / keys**2, 1 / keys**2]), x.samples, x.places, 1 / keys)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (np.zeros(3),)


@dataclass(frozen=True)
class Attend(Rule):
    """Σ_j w_ij·v_j, from the logits' state and the values'; `dropout` is E[mask²] of the weights' dropout.

    With uniform weights it is the mean of the values that a query sees: of their second moment 1/keys remains, of what
    they have in common all (Noci et al. 2022, section 3). Logits that vary leave more, see `Pattern.sharpness`. Of
    gradients only the way through the values is followed: that through uniform weights is smaller by the order of
    the number of keys.
    """

    pattern: Pattern
    places: int
    dropout: float = 1.0

    @property
    def source(self) -> str:
        return "Noci et al. 2022"

    def forward(self, *inputs: State) -> State:
        logits, values = inputs
        own, place, sample = (float(value) for value in values.products)
        squares, across = self.pattern.sharpness(logits)
        square = float(squares.mean())
        queries = squares.shape[1]
        pair = _pairs(across) / (queries * (queries - 1)) if queries > 1 else square
        pair *= (queries - 1) / max(self.places - 1, 1)  # of windows, only the queries of one see the same keys
        now = square * self.dropout * own + (1 - square) * place
        products = np.array([now, pair * own + (1 - pair) * place if self.places > 1 else now, sample])
        return State(products, values.samples, self.places, values.mean, values.gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, place, sample = (float(value) for value in gradient.products)
        uniform = self.pattern.uniform
        squares, _ = self.pattern.sharpness(inputs[0])
        sums, keys = uniform.sum(1), uniform.shape[2]
        square = float(squares.sum(1).mean()) / keys * self.dropout
        now = square * (own - place) + float(np.square(sums).mean()) * place
        if keys > 1:
            both = _pairs(uniform.swapaxes(1, 2) @ uniform)
            all_keys = float((np.square(sums.sum(1)) - np.square(sums).sum(1)).mean())
            pair = (both * (own - place) + all_keys * place) / (keys * (keys - 1))
        else:
            pair = now
        return np.zeros(3), np.array([now, pair, sample * float(sums.mean()) ** 2])


def _pairs(products: Array) -> float:
    """The sum over two different rows and columns, a mean over the first axis."""
    return float((products.sum((1, 2)) - np.trace(products, axis1=1, axis2=2)).mean())
