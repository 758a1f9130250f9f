"""Rules of normalization: over the batch (BatchNorm), and within a sample (LayerNorm, GroupNorm, RMSNorm)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sppbench.spp.theory.closed_forms import Array
from sppbench.spp.theory.layer_rules import Rule
from sppbench.spp.theory.state import State


@dataclass(frozen=True)
class BatchNorm(Rule):
    """Batch normalization in training, with its mean γ² and β²; exact up to orders of 1/(samples·places)."""

    epsilon: float = 1e-5
    scale: float = 1.0
    shift: float = 0.0

    @property
    def source(self) -> str:
        return "Yang et al. 2019"

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        products = _over_parts(
            x, lambda part: part.over_channels(lambda t: t * self._centered(part) / self._variance(part, t))
        )
        return State(products * self.scale + self.shift, x.samples, x.places, gaussian=True, wobble=x.wobble)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (_over_parts(inputs[0], lambda part: self._backward(gradient, part)),)

    def _backward(self, gradient: State, x: State) -> Array:
        normalized = self._centered(x) / self._variance(x, 1.0)
        along = replace(gradient, products=gradient.products * normalized).acsm
        left = (gradient.products - gradient.acsm - along * normalized) * self.scale
        inverse = x.over_channels(lambda t: np.array(1 / self._variance(x, t)))
        return np.asarray(left * inverse * (1 + 2 * self._spread(x)))

    def _spread(self, x: State) -> float:
        """Half of how much the variances of the channels differ, relative to their square, for the size of the batch.

        A channel is one Gaussian vector of all samples and places with the covariance K, its variance tr K/(n·p) in the
        mean; that of its variance is 2·tr K²/(n·p)². So E[1/σ²] = (1 + 2·tr K²/(tr K)²)/E[σ²], in first order.
        """
        centered = self._centered(x)
        if not centered[0] > 0:
            return 0.0
        _, place, sample = np.square(centered / centered[0])
        n, p = x.samples, x.places
        return float(1 + (p - 1) * place + p * (n - 1) * sample) / (n * p) if math.isfinite(n) else float(sample)

    def tilt(self, *inputs: State) -> float:
        # A channel of small weights has a small variance and so a large gradient, which on the way back through these
        # weights becomes small again.
        x = inputs[0]
        plain, weighted = x.over_channels(lambda t: np.array([1, t]) / self._variance(x, t))
        return float(weighted / plain)

    def _centered(self, x: State) -> Array:
        return x.products - x.acsm

    def _variance(self, x: State, t: float) -> float:
        return (x.second_moment - x.acsm) * t + self.epsilon


def _over_parts(x: State, function: Callable[[State], Array]) -> Array:
    """The mean over the parts of a concatenation: each channel is normalized by its own variance."""
    if not x.parts:
        return function(x)
    return np.asarray(sum(share * function(part) for share, part in x.parts))


@dataclass(frozen=True)
class GroupNorm(Rule):
    """Normalization within a sample, over `channels` channels and, if `with_places`, all places of each.

    LayerNorm over the channels is that without places, RMSNorm the same not `centered`, InstanceNorm that of one
    channel with its places. The second moment of its output is E[γ²] + E[β²] whatever comes in, and gradients are
    divided by what the signal was (Xiong et al. 2020, section 3.3); for wide groups.
    """

    channels: int
    with_places: bool = False
    centered: bool = True
    epsilon: float = 1e-5
    scale: float = 1.0
    shift: float = 0.0

    @property
    def source(self) -> str:
        return "Xiong et al. 2020"

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        factor = self.scale / self._variance(x)
        mean = x.mean if self.centered else 0.0
        return State(
            (x.products - self._taken_out(x)) * factor + self.shift,
            x.samples,
            x.places,
            mean=0.0 if self.centered else x.mean * factor**0.5,
            gaussian=x.gaussian,
            recipe=lambda elements, salt: (x.draw(elements, salt) - mean) * factor**0.5,
            sources=x.sources,
        )

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (gradient.products * self.scale / self._variance(inputs[0]),)

    def _taken_out(self, x: State) -> Array:
        """What the products lose with the mean over the group, which is of all its channels and perhaps places."""
        if not self.centered:
            return np.zeros(3)
        means = np.array([x.within, x.within, x.products[2]]) if self.with_places else x.products
        return np.asarray(means / self.channels + (1 - 1 / self.channels) * x.mean**2)

    def _variance(self, x: State) -> float:
        return float(x.second_moment - self._taken_out(x)[0]) + self.epsilon
