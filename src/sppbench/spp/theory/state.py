"""What a signal is to the theory of wide layers: a few means over its channels; see `sppbench.spp.theory.layer_rules`.

A signal is described by three means of products over the channels, an array of shape (3,):

- of an element with itself: the second moment q;
- of two places of one sample;
- of one place of a sample and one of another sample.

Tensors without places (N, C) have a single one, and the second entry is the first. A mean over all pairs of elements of
a channel is its squared mean, so these give ACSM. Correlations are taken as equal for all pairs of a sort, and borders
as spread over the image; both are exact for homogeneous images only.

Behind a layer of many random weights the three products are all there is to know: its output is Gaussian. Where such
signals meet in a nonlinear function (ReLU of a sum of two, the largest of nine) there is no closed form; the mean is
then taken over `DRAWS` made-up channels, see `State.draw`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from scipy.special import gammaincinv, roots_genlaguerre  # scipy.stats takes a second longer to import
from torch import Tensor

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import Array, Function

MANY_WEIGHTS = 200  # from here on all channels are taken to have one second moment
DRAWS = 8192  # means over them are right to one percent

#: A signal's elements as pairs (sample, place), in the order of the columns of a draw.
Elements: TypeAlias = tuple[tuple[int, int], ...]
#: Which of several disjoint sets of channels is meant; () is the first one.
Salt: TypeAlias = tuple[int, ...]
PAIRS: Elements = ((0, 0), (0, 1), (1, 2))  # the first with itself, the second and the third: the three products

_latents = itertools.count()


@lru_cache(maxsize=1024)
def _chi_square(freedom: float, nodes: int) -> list[tuple[float, float]]:
    """Nodes and weights of a mean over χ²/freedom, by generalized Gauss–Laguerre quadrature."""
    x, weights = roots_genlaguerre(nodes, freedom / 2 - 1)
    return list(zip((2 * x / freedom).tolist(), (weights / weights.sum()).tolist(), strict=True))


@lru_cache(maxsize=64)
def _chi_square_quantiles(freedom: float) -> Tensor:
    t = torch.from_numpy(gammaincinv(freedom / 2, (np.arange(DRAWS) + 0.5) / DRAWS))
    return t / t.mean()


@lru_cache(maxsize=1)
def _normal_quantiles() -> Tensor:
    z = torch.special.ndtri((torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS)
    scaled: Tensor = z / z.square().mean().sqrt()
    return scaled


def generator(latent: int, salt: Salt) -> torch.Generator:
    """One whose numbers are the same each time for a latent variable and its salt."""
    seed = 0
    for number in (latent, *salt):
        seed = (seed * 1_000_003 + number + 1) % (2**62)
    return torch.Generator().manual_seed(seed)


def _normals(count: int, source: torch.Generator) -> Tensor:
    """Uncorrelated standard normal columns (DRAWS, count): a Latin hypercube (McKay et al. 1979), made orthogonal."""
    z = torch.stack([_normal_quantiles()[torch.randperm(DRAWS, generator=source)] for _ in range(count)], dim=1)
    factor = torch.linalg.cholesky(z.T @ z / DRAWS)
    orthogonal: Tensor = torch.linalg.solve_triangular(factor, z.T, upper=False).T
    return orthogonal


@dataclass(frozen=True, eq=False)
class State:
    """A signal, or a gradient: its products, shape (3,), its mean over everything, and the sizes of its tensor.

    `gaussian` says whether it is Gaussian of mean 0 over the weights, and `freedom` how many weights a channel has:
    with few (a depthwise convolution) the channels' second moments differ, as χ² of so many degrees of freedom. Then
    the correlation of two places differs as well, from channel to channel with the variance `wobble`.
    `tilt` is of gradients: by how much the mean over the channels is larger if each counts by the square of its
    weights. `parts` are those of a concatenation of channels, each with its share of them.

    `recipe` draws a signal from those that it is made of, and `sources` are the Gaussian signals behind it: signals
    without a common one are independent. Without a recipe a state is a source itself, `latent` its number.
    """

    products: Array
    samples: float
    places: int = 1
    mean: float = 0.0
    gaussian: bool = False
    freedom: float = math.inf
    wobble: float = 0.0
    tilt: float = 1.0
    parts: tuple[tuple[float, State], ...] = ()
    recipe: Callable[[Elements, Salt], Tensor] | None = None
    sources: frozenset[tuple[int, ...]] = frozenset()
    latent: int = field(default_factory=lambda: next(_latents))
    _drawn: dict[tuple[Elements, Salt], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.recipe is None:
            object.__setattr__(self, "sources", frozenset([(self.latent,)]))

    def over_channels(self, function: Callable[[float], Array], nodes: int = 24) -> Array:
        """The mean of a function of t over the channels, whose products are t times the mean ones."""
        if not self.freedom < MANY_WEIGHTS:
            return function(1.0)
        return np.asarray(sum(weight * function(t) for t, weight in _chi_square(self.freedom, nodes)))

    def mapped(self, function: Function) -> Array:
        """The products of an element-wise function of a Gaussian signal."""
        q, (own, place, sample) = self.second_moment, self.products
        apart = q * math.sqrt(self.wobble)
        k = np.array([own, place - apart, place + apart, sample])
        own, low, high, sample = self.over_channels(
            lambda t: theory.gaussian_covariance(function, q * t, k * t), nodes=8
        )
        return np.array([own, (low + high) / 2, sample])

    def mean_of(self, function: Function) -> float:
        """The mean of an element-wise function of a Gaussian signal."""
        q = self.second_moment
        return float(self.over_channels(lambda t: np.array(theory.gaussian_mean(function, q * t)), nodes=8))

    @property
    def second_moment(self) -> float:
        return float(self.products[0])

    @property
    def within(self) -> float:
        """The mean over all pairs of places of a sample, a place with itself among them."""
        own, place = float(self.products[0]), float(self.products[1])
        return own / self.places + (1 - 1 / self.places) * place if self.places > 1 else own

    @property
    def acsm(self) -> float:
        """The mean over all pairs of samples and places, (n·p)² in number: n·p, n·p·(p − 1) and the others."""
        n = self.samples
        return self.within / n + (1 - 1 / n) * float(self.products[2])

    @property
    def is_number(self) -> bool:
        """Whether all elements are the same, as what is a mean over many channels."""
        return math.isfinite(self.mean) and abs(self.second_moment - self.mean**2) <= 1e-9 * self.second_moment

    def draw(self, elements: Elements = PAIRS, salt: Salt = ()) -> Tensor:
        """Values of these elements in `DRAWS` made-up channels, shape (DRAWS, len(elements)).

        The same each time, so that two signals that come from one source are drawn as they belong together; another
        `salt` is other channels.
        """
        if (elements, salt) not in self._drawn:
            drawn = self.recipe(elements, salt) if self.recipe is not None else self._draw(elements, salt)
            self._drawn[elements, salt] = drawn
        return self._drawn[elements, salt]

    def _draw(self, elements: Elements, salt: Salt) -> Tensor:
        own, place, sample = (float(value) - self.mean**2 for value in self.products)
        if not math.isfinite(own + place + sample):
            return torch.full((DRAWS, len(elements)), math.nan, dtype=torch.float64)
        covariance = torch.tensor(
            [[own if a == b else place if a[0] == b[0] else sample for b in elements] for a in elements],
            dtype=torch.float64,
        )
        source = generator(self.latent, salt)
        values = _normals(len(elements), source) @ _root(covariance)
        if self.freedom < MANY_WEIGHTS:
            scale = _chi_square_quantiles(self.freedom)[torch.randperm(DRAWS, generator=source)]
            values = values * scale.sqrt()[:, None]
        return values + self.mean


def _root(covariance: Tensor) -> Tensor:
    """R with RᵀR = covariance; what makes it no covariance, negative eigenvalues, is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def moments(values: Tensor, places: int) -> tuple[Array, float]:
    """The products and the mean of a draw of `PAIRS`."""
    own = float(values.square().mean())
    place = float((values[:, 0] * values[:, 1]).mean()) if places > 1 else own
    sample = float((values[:, 0] * values[:, 2]).mean())
    return np.array([own, place, sample]), float(values.mean())


def unknown(samples: float, places: int) -> State:
    """A signal of which nothing is known."""
    return State(np.full(3, math.nan), samples, places, mean=math.nan)
