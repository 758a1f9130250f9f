"""Rules of what is computed element by element: activation functions, sums, products, dropout's masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import ACTIVATIONS, Activation, Array, Function
from sppbench.spp.theory.layer_rules import Rule
from sppbench.spp.theory.state import DRAWS, Elements, Salt, State, generator, moments

Pointwise: TypeAlias = Callable[..., Tensor]


def activation_of(function: Pointwise, source: str) -> Activation:
    """An element-wise function of torch, with its derivative by autograd, as the theory's own are."""

    def value(x: Array) -> Array:
        return np.asarray(function(torch.from_numpy(np.array(x, np.float64))).numpy())

    def slope(x: Array) -> Array:
        with torch.enable_grad():
            at = torch.from_numpy(np.array(x, np.float64)).requires_grad_()
            y = function(at)
            return np.asarray(torch.autograd.grad(y.sum(), at)[0].numpy()) if y.requires_grad else np.zeros_like(x)

    return Activation(value, slope, source)


def _drawn(function: Function, x: State) -> Callable[[Elements, Salt], Tensor]:
    return lambda elements, salt: torch.from_numpy(function(x.draw(elements, salt).numpy()))


@dataclass(frozen=True)
class Elementwise(Rule):
    """An activation function: of a Gaussian signal by its closed form, of others by a draw (see `State.draw`)."""

    activation: Activation

    @staticmethod
    def named(name: str) -> Elementwise:
        """One of `ACTIVATIONS`."""
        return Elementwise(ACTIVATIONS[name])

    @property
    def source(self) -> str:
        return self.activation.source

    def forward(self, *inputs: State) -> State:
        x, function = inputs[0], self.activation.function
        if x.parts:
            return mixture([share for share, _ in x.parts], [self.forward(part) for _, part in x.parts])
        recipe = _drawn(function, x)
        products, mean = self._moments(function, x)
        return State(products, x.samples, x.places, mean, recipe=recipe, sources=x.sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        x, slope = inputs[0], self.activation.slope
        if x.parts:
            return (gradient.products * sum(share * self._moments(slope, part)[0] for share, part in x.parts),)
        return (gradient.products * self._moments(slope, x)[0],)

    def _moments(self, function: Function, x: State) -> tuple[Array, float]:
        if x.gaussian:
            return x.mapped(function), x.mean_of(function)
        return moments(torch.from_numpy(function(x.draw().numpy())), x.places)


@dataclass(frozen=True)
class Affine(Rule):
    """a·x + b with numbers a and b."""

    factor: float
    shift: float = 0.0

    def forward(self, *inputs: State) -> State:
        x, a, b = inputs[0], self.factor, self.shift
        products = a**2 * x.products + 2 * a * b * x.mean + b**2
        return replace(
            x,
            products=products,
            mean=a * x.mean + b,
            gaussian=x.gaussian and b == 0,
            parts=tuple((share, self.forward(part)) for share, part in x.parts),
            recipe=lambda elements, salt: a * x.draw(elements, salt) + b,
            sources=x.sources,
        )

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self.factor**2 * gradient.products,)


@dataclass(frozen=True)
class Joint(Rule):
    """A function of several signals, element by element, by a draw."""

    function: Pointwise

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        products, mean = moments(self.function(*(one.draw() for one in inputs)), x.places)
        return State(products, x.samples, x.places, mean, recipe=self.recipe(*inputs), sources=_sources(*inputs))

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        with torch.enable_grad():
            at = [one.draw().clone().requires_grad_() for one in inputs]
            slopes = torch.autograd.grad(self.function(*at).sum(), at, allow_unused=True)
        return [
            np.zeros(3) if slope is None else gradient.products * moments(slope, gradient.places)[0] for slope in slopes
        ]

    def recipe(self, *inputs: State) -> Callable[[Elements, Salt], Tensor]:
        return lambda elements, salt: self.function(*(one.draw(elements, salt) for one in inputs))


@dataclass(frozen=True)
class Sum(Rule):
    """a·x + b·y, as of a branch and its skip connection; uncorrelated, unless both come from one source.

    They are, in the mean over the weights, where the branch ends with a layer of random weights.
    """

    a: float = 1.0
    b: float = 1.0

    @property
    def source(self) -> str:
        return "De & Smith 2020"

    def forward(self, *inputs: State) -> State:
        x, y = inputs
        joint = Joint(lambda u, v: self.a * u + self.b * v).forward(x, y)
        gaussian = x.gaussian and y.gaussian
        if x.sources & y.sources:
            return replace(joint, gaussian=gaussian)
        products = theory.residual_sum(self.a**2, 0) * x.products + theory.residual_sum(0, self.b**2) * y.products
        products = products + 2 * self.a * self.b * x.mean * y.mean
        mean = self.a * x.mean + self.b * y.mean
        return replace(joint, products=products, mean=mean, gaussian=gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return self.a**2 * gradient.products, self.b**2 * gradient.products


@dataclass(frozen=True)
class Product(Rule):
    """x·y, as of a signal and its gate, or x/y; independent, unless both come from one source."""

    quotient: bool = False

    def forward(self, *inputs: State) -> State:
        x, y = inputs
        joint = Joint(torch.div if self.quotient else torch.mul)
        if y.is_number:
            return Affine(1 / y.mean if self.quotient else y.mean).forward(x)
        if self.quotient or x.sources & y.sources:
            return joint.forward(x, y)
        recipe, sources = joint.recipe(x, y), _sources(x, y)
        return State(x.products * y.products, x.samples, x.places, x.mean * y.mean, recipe=recipe, sources=sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        x, y = inputs
        if self.quotient:
            return Joint(torch.div).backward(gradient, x, y)
        return gradient.products * y.products, gradient.products * x.products


@dataclass(frozen=True)
class Mask(Rule):
    """x times a random mask that is drawn anew for each step: dropout, also of whole channels or samples.

    `moment` and `mean` are the mask's; `shared` says of which of the three pairs it is one number.
    """

    moment: float
    mean: float
    shared: tuple[bool, bool, bool]

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        latent = State(np.zeros(3), x.samples).latent

        def recipe(elements: Elements, salt: Salt) -> Tensor:
            columns: dict[tuple[int, int], Tensor] = {}
            source = generator(latent, salt)
            for sample, place in elements:
                key = (0 if self.shared[2] else sample, 0 if self.shared[1] else place)
                columns.setdefault(key, self._draw(source))
            mask = [columns[0 if self.shared[2] else s, 0 if self.shared[1] else p] for s, p in elements]
            return x.draw(elements, salt) * torch.stack(mask, dim=1)

        sources = x.sources | {(latent,)}
        return replace(
            x,
            products=self._through(x),
            mean=x.mean * self.mean,
            parts=tuple((share, self.forward(part)) for share, part in x.parts),
            recipe=recipe,
            sources=sources,
        )

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self._through(gradient),)

    def _through(self, x: State) -> Array:
        factors = np.array([self.moment if shared else self.mean**2 for shared in self.shared])
        products = x.products * factors
        if x.places == 1:
            products[1] = products[0]
        return np.asarray(products)

    def _draw(self, source: torch.Generator) -> Tensor:
        """Zero or the one value that has this moment and mean."""
        if self.mean == 0:
            return torch.zeros(DRAWS, dtype=torch.float64)
        keep = self.mean**2 / self.moment
        return (torch.rand(DRAWS, generator=source, dtype=torch.float64) < keep) * (self.moment / self.mean)


def mixture(shares: Sequence[float], states: Sequence[State]) -> State:
    """Channels of several kinds side by side, each with its share of them."""
    x = states[0]
    products = sum((share * state.products for share, state in zip(shares, states, strict=True)), np.zeros(3))
    mean = sum(share * state.mean for share, state in zip(shares, states, strict=True))
    bounds = np.round(np.cumsum([0.0, *shares]) * DRAWS).astype(int)
    rows = torch.randperm(DRAWS, generator=torch.Generator().manual_seed(0))

    def recipe(elements: Elements, salt: Salt) -> Tensor:
        values = torch.empty(DRAWS, len(elements), dtype=torch.float64)
        for begin, end, state in zip(bounds[:-1], bounds[1:], states, strict=True):
            own = rows[begin:end]
            values[own] = state.draw(elements, salt)[own]
        return values

    parts = tuple(zip(shares, states, strict=True))
    return State(products, x.samples, x.places, mean, parts=parts, recipe=recipe, sources=_sources(*states))


def _sources(*states: State) -> frozenset[tuple[int, ...]]:
    return frozenset().union(*(state.sources for state in states))
