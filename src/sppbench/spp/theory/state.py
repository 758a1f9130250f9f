"""What a signal is to the theory of wide layers: a few means over its channels; see `sppbench.spp.theory.layer_rules`.

A signal is described by three means of products over the channels, an array of shape (3,):

- of an element with itself: the second moment q;
- of two places of one sample;
- of one place of a sample and one of another sample.

Tensors without places (N, C) have a single one, and the second entry is the first. A mean over all pairs of elements of
a channel is its squared mean, so these give ACSM. Correlations are taken as equal for all pairs of a sort, and borders
as spread over the image; both are exact for homogeneous images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import roots_genlaguerre

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import Array, Function

MANY_WEIGHTS = 200  # from here on all channels are taken to have one second moment


@lru_cache(maxsize=1024)
def _chi_square(freedom: float, nodes: int) -> list[tuple[float, float]]:
    """Nodes and weights of a mean over χ²/freedom, by generalized Gauss–Laguerre quadrature."""
    x, weights = roots_genlaguerre(nodes, freedom / 2 - 1)
    return list(zip((2 * x / freedom).tolist(), (weights / weights.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class State:
    """A signal, or a gradient: its products, shape (3,), its mean over everything, and the sizes of its tensor.

    `gaussian` says whether it is Gaussian of mean 0 over the weights, and `freedom` how many weights a channel has:
    with few (a depthwise convolution) the channels' second moments differ, as χ² of so many degrees of freedom.
    `logits` is what a sigmoid was given. `tilt` is of gradients: by how much the mean over the channels is larger if
    each counts by the square of its weights.
    """

    products: Array
    samples: float
    places: int = 1
    mean: float = 0.0
    gaussian: bool = False
    freedom: float = math.inf
    logits: State | None = None
    tilt: float = 1.0

    def over_channels(self, function: Callable[[float], Array], nodes: int = 24) -> Array:
        """The mean of a function of t over the channels, whose products are t times the mean ones."""
        if not self.freedom < MANY_WEIGHTS:
            return function(1.0)
        return np.asarray(sum(weight * function(t) for t, weight in _chi_square(self.freedom, nodes)))

    def mapped(self, function: Function) -> Array:
        """The products of an element-wise function of a Gaussian signal."""
        q, k = self.second_moment, self.products
        return self.over_channels(lambda t: theory.gaussian_covariance(function, q * t, k * t), nodes=8)

    def mean_of(self, function: Function) -> float:
        """The mean of an element-wise function of a Gaussian signal."""
        q = self.second_moment
        return float(self.over_channels(lambda t: np.array(theory.gaussian_mean(function, q * t)), nodes=8))

    @property
    def second_moment(self) -> float:
        return float(self.products[0])

    @property
    def acsm(self) -> float:
        """The mean over all pairs of samples and places, (n·p)² in number: n·p, n·p·(p − 1) and the others."""
        n, p = self.samples, self.places
        own, place, sample = (float(value) for value in self.products)
        within = own / p + (1 - 1 / p) * place if p > 1 else own
        return within / n + (1 - 1 / n) * sample
