"""Rules of what brings places, channels or samples together or apart: pooling, concatenation, slices, broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from sppbench.spp.theory.closed_forms import Array
from sppbench.spp.theory.layer_rules import Rule
from sppbench.spp.theory.pointwise_rules import mixture
from sppbench.spp.theory.state import Elements, Salt, State, moments


def _share_of_pairs(part: int, whole: int) -> float:
    """Of the pairs of two of `whole`, how many are within one of the sets of `part`."""
    return (part - 1) / (whole - 1) if whole > 1 else 1.0


@dataclass(frozen=True)
class MeanOfPlaces(Rule):
    """The mean over `window` places at a time, all of them by default; `places` are those of the output."""

    window: int
    places: int = 1

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        own, place, sample = x.products
        within = own / self.window + (1 - 1 / self.window) * place
        products = np.array([within, place if self.places > 1 else within, sample])
        # A mean of Gaussian signals is one, but no longer that of which the input's other uses are made.
        return State(products, x.samples, self.places, x.mean, x.gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, place, sample = gradient.products
        cover = self.window * self.places / inputs[0].places  # in how many windows a place lies
        same = _share_of_pairs(self.window, inputs[0].places)
        pair = same * own + (1 - same) * place
        return (np.array([own * cover, pair * cover**2, sample * cover**2]) / self.window**2,)


@dataclass(frozen=True)
class MaxOfPlaces(Rule):
    """The largest of `window` places at a time, by a draw; `places` are those of the output.

    All places of an image are taken to be equally alike: true of noise, while in a photograph neighbours are more so.
    """

    window: int
    places: int

    def forward(self, *inputs: State) -> State:
        x = inputs[0]

        def recipe(elements: Elements, salt: Salt) -> Tensor:
            windows = tuple((sample, place * self.window + i) for sample, place in elements for i in range(self.window))
            values: Tensor = x.draw(windows, salt).reshape(-1, len(elements), self.window).amax(2)
            return values

        drawn = State(x.products, x.samples, self.places, recipe=recipe, sources=x.sources)
        products, mean = moments(drawn.draw(), self.places)
        return replace(drawn, products=products, mean=mean)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        share = self.places / inputs[0].places  # of the places that are the largest of a window
        return (gradient.products * np.array([share, share**2, share**2]),)


@dataclass(frozen=True)
class Select(Rule):
    """A part of the places, or zeros around them: the output has `places`, of which `kept` hold the input's."""

    places: int
    kept: int

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        share = self.kept / self.places
        own, place, sample = x.products * np.array([share, share**2, share**2])
        products = np.array([own, place if self.places > 1 else own, sample])
        gaussian = x.gaussian and self.kept == self.places
        if self.kept < self.places:
            return State(products, x.samples, self.places, x.mean * share, gaussian)
        return replace(x, products=products, places=self.places, recipe=x.draw, sources=x.sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        share = self.kept / inputs[0].places
        return (gradient.products * np.array([share, share**2, share**2]),)


@dataclass(frozen=True)
class Spread(Rule):
    """Broadcasting: one place or sample becomes several that are the same."""

    samples: float
    places: int

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        own, place, sample = x.products
        copies = _share_of_pairs(self.places // max(x.places, 1), self.places)
        of_places = copies * own + (1 - copies) * place if self.places > x.places else place
        if self.samples > x.samples == 1:
            within = own / self.places + (1 - 1 / self.places) * of_places
            sample = within
        one_place, one_sample = x.places == 1 < self.places, x.samples == 1 < self.samples

        def recipe(elements: Elements, salt: Salt) -> Tensor:
            return x.draw(tuple((0 if one_sample else s, 0 if one_place else p) for s, p in elements), salt)

        products = np.array([own, of_places, sample])
        return replace(x, products=products, samples=self.samples, places=self.places, recipe=recipe, sources=x.sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, place, sample = gradient.products
        p = self.places // max(inputs[0].places, 1)
        within = p * own + p * (p - 1) * place
        if self.samples > inputs[0].samples:
            n = self.samples
            within = n * within + n * (n - 1) * p**2 * sample
        between = within if inputs[0].places == 1 else p**2 * place
        return (np.array([within, between, p**2 * sample]),)


@dataclass(frozen=True)
class SomeChannels(Rule):
    """A part of the channels, of this share; `number` says which, so that two parts are independent."""

    share: float
    number: int

    def forward(self, *inputs: State) -> State:
        x = inputs[0]

        def recipe(elements: Elements, salt: Salt) -> Tensor:
            return x.draw(elements, (*salt, self.number))

        sources = frozenset((*source, self.number) for source in x.sources)
        return replace(x, parts=(), recipe=recipe, sources=sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (gradient.products * self.share,)


@dataclass(frozen=True)
class JoinChannels(Rule):
    """A concatenation of channels, with the share of each."""

    shares: tuple[float, ...]

    def forward(self, *inputs: State) -> State:
        return mixture(self.shares, inputs)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return [gradient.products] * len(inputs)


@dataclass(frozen=True)
class JoinPlaces(Rule):
    """A concatenation along places, as of a class token and patches; they have no weights in common."""

    def forward(self, *inputs: State) -> State:
        places = sum(x.places for x in inputs)
        shares = [x.places / places for x in inputs]
        own = sum(share * x.second_moment for share, x in zip(shares, inputs, strict=True))
        mean = sum(share * x.mean for share, x in zip(shares, inputs, strict=True))
        across = mean**2 - sum((share * x.mean) ** 2 for share, x in zip(shares, inputs, strict=True))
        within = sum(x.places * (x.places - 1) * float(x.products[1]) for x in inputs)
        place = (within + across * places**2) / (places * (places - 1))
        sample = sum(share**2 * float(x.products[2]) for share, x in zip(shares, inputs, strict=True)) + across
        samples = max(x.samples for x in inputs)
        gaussian = all(x.gaussian for x in inputs)
        return State(np.array([own, place, sample]), samples, places, mean, gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return [gradient.products] * len(inputs)


@dataclass(frozen=True)
class MeanOfChannels(Rule):
    """The mean over `count` channels, which for many is that over the weights: a number."""

    count: int
    all_of_them: bool = True

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        if self.all_of_them:
            return State(np.full(3, x.mean**2), x.samples, x.places, x.mean)
        products = (x.products - x.mean**2) / self.count + x.mean**2
        return State(products, x.samples, x.places, x.mean, x.gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (gradient.products / self.count**2,)
