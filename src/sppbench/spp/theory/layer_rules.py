"""How each kind of layer with random weights passes a signal and its gradient on; `chain` applies these rules.

Here are the layers with weights, and what hands a signal on; see `pointwise_rules`, `norm_rules`, `place_rules` and
`attention_rules` for the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import Array
from sppbench.spp.theory.state import State, unknown


class Rule(ABC):
    """A layer: from the states of its inputs to that of its output, and back from the output's gradient to theirs."""

    @property
    def source(self) -> str:
        """The paper behind the rule; empty where none is needed."""
        return ""

    @abstractmethod
    def forward(self, *inputs: State) -> State: ...

    @abstractmethod
    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        """The products of the gradients of the inputs."""

    def tilt(self, *inputs: State) -> float:
        """The `tilt` of the gradient of the first input."""
        return 1.0


@dataclass(frozen=True)
class Known(Rule):
    """Where a signal begins: what is known of a batch, or of a parameter that is added to one."""

    state: State
    paper: str = ""

    @property
    def source(self) -> str:
        return self.paper

    def forward(self, *inputs: State) -> State:
        return self.state

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return ()


@dataclass(frozen=True)
class Unknown(Rule):
    """Something of which the theory says nothing."""

    samples: float
    places: int

    def forward(self, *inputs: State) -> State:
        return unknown(self.samples, self.places)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return [np.full(3, math.nan)] * len(inputs)


@dataclass(frozen=True)
class Keep(Rule):
    """Passes its input on; places become channels where the output has fewer (a flatten)."""

    places: int = 1

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        own, place, sample = x.products
        products = np.array([own, place if self.places > 1 else own, sample])
        return replace(x, products=products, places=self.places, recipe=x.draw, sources=x.sources)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, place, sample = gradient.products
        flattened = inputs[0].places > self.places
        return (np.array([own, 0.0, sample / inputs[0].places]) if flattened else np.array([own, place, sample]),)


@dataclass(frozen=True)
class Weights(Rule):
    """Linear layers and convolutions: both gains are factors on the three products; see `weights_of_convolution`.

    What all channels have in common, the square of the input's mean, reaches an output through the sum of its weights.
    `of_mean` is the mean square of these sums by what it is on average for random weights, fan·E[w²]: 1 for wide
    layers, and for the few outputs of squeeze-and-excitation whatever its weights happen to be. `overlap` is the
    variance over the channels of the correlation of two places of the output, where those of the input have none: they
    see the same pixels with other weights.
    """

    gain: Array
    backward_gain: Array
    bias: float = 0.0  # mean square
    places: int = 1
    freedom: float = math.inf
    of_mean: float = 1.0
    overlap: float = 0.0

    @property
    def source(self) -> str:
        return "He et al. 2015"

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        products = self.gain * (x.products + (self.of_mean - 1) * x.mean**2) + self.bias
        free = max(1 - float(x.products[1]) / x.second_moment, 0.0) if x.second_moment > 0 else 0.0
        wobble = self.overlap * free**2
        return State(products, x.samples, self.places, gaussian=True, freedom=self.freedom, wobble=wobble)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self.backward_gain * gradient.products * gradient.tilt,)


def weights_of_convolution(
    mean_square: float,
    inputs: int,
    outputs: int,
    taps: Array,
    places: tuple[int, int],
    bias: float = 0.0,
    of_mean: float = 1.0,
) -> Weights:
    """The rule of a convolution, or of a linear layer with `taps` [places].

    Args:
        mean_square: E[w²].
        inputs: channels that an output sums over, C_in/groups.
        outputs: channels that an input goes to, C_out/groups.
        taps: for each tap at how many places of the output it lies inside the image, any shape.
        places: of the input and of the output.
        bias: its mean square.
        of_mean: as in `Weights`.
    """

    def products(fan: int, count: int) -> Array:
        pairs = taps * (taps - 1) / (count * (count - 1)) if count > 1 else taps
        sums = [float(np.sum(share)) for share in (taps / count, pairs, (taps / count) ** 2)]
        return np.array([theory.weight_gain(mean_square, fan * total) for total in sums])

    freedom = inputs * float(np.sum(taps)) / places[1]
    return Weights(products(inputs, places[1]), products(outputs, places[0]), bias, places[1], freedom, of_mean)


@dataclass(frozen=True)
class MixPlaces(Rule):
    """A linear layer over the places, the same for all channels: from `inputs` to `outputs` places, weights E[w²]."""

    mean_square: float
    inputs: int
    outputs: int
    places: int
    bias: float = 0.0

    @property
    def source(self) -> str:
        return "He et al. 2015"

    def _gain(self, x: State, inputs: int, outputs: int, places: int) -> Array:
        own, _, sample = x.products
        gain = theory.weight_gain(self.mean_square, inputs)
        # Two places have different weights; of two samples, only the same place has the same ones.
        return np.array([gain * own, 0.0 if places > 1 else gain * own, gain * sample / outputs])

    def forward(self, *inputs: State) -> State:
        products = self._gain(inputs[0], self.inputs, self.outputs, self.places)
        own, place, sample = self.bias, 0.0 if self.places > 1 else self.bias, self.bias / self.outputs
        return State(products + np.array([own, place, sample]), inputs[0].samples, self.places, gaussian=True)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self._gain(gradient, self.outputs, self.inputs, inputs[0].places),)
