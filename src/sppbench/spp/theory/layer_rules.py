"""How each kind of layer with random weights passes a signal and its gradient on; `chain` applies these rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from sppbench.spp.theory import closed_forms as theory
from sppbench.spp.theory.closed_forms import ACTIVATIONS, Array, Function
from sppbench.spp.theory.state import State


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
class Keep(Rule):
    """Passes its input on; places become channels where the output has fewer (a flatten)."""

    places: int = 1

    def forward(self, *inputs: State) -> State:
        own, place, sample = inputs[0].products
        products = np.array([own, place if self.places > 1 else own, sample])
        return replace(inputs[0], products=products, places=self.places)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, place, sample = gradient.products
        flattened = inputs[0].places > self.places
        return (np.array([own, 0.0, sample / inputs[0].places]) if flattened else np.array([own, place, sample]),)


@dataclass(frozen=True)
class Weights(Rule):
    """Linear layers and convolutions: both gains are factors on the three products; see `weights_of_convolution`."""

    gain: Array
    backward_gain: Array
    bias: float = 0.0  # mean square
    places: int = 1
    freedom: float = math.inf

    @property
    def source(self) -> str:
        return "He et al. 2015"

    def forward(self, *inputs: State) -> State:
        products = self.gain * inputs[0].products + self.bias
        return State(products, inputs[0].samples, self.places, gaussian=True, freedom=self.freedom)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self.backward_gain * gradient.products * gradient.tilt,)


def weights_of_convolution(
    mean_square: float, inputs: int, outputs: int, taps: Array, places: tuple[int, int], bias: float = 0.0
) -> Weights:
    """The rule of a convolution, or of a linear layer with `taps` [1].

    Args:
        mean_square: E[w²].
        inputs: channels that an output sums over, C_in/groups.
        outputs: channels that an input goes to, C_out/groups.
        taps: for each tap at how many places of the output it lies inside the image, any shape.
        places: of the input and of the output.
        bias: its mean square.
    """

    def products(fan: int, count: int) -> Array:
        pairs = taps * (taps - 1) / (count * (count - 1)) if count > 1 else taps
        sums = [float(np.sum(share)) for share in (taps / count, pairs, (taps / count) ** 2)]
        return np.array([theory.weight_gain(mean_square, fan * total) for total in sums])

    freedom = inputs * float(np.sum(taps)) / places[1]
    return Weights(products(inputs, places[1]), products(outputs, places[0]), bias, places[1], freedom)


@dataclass(frozen=True)
class Elementwise(Rule):
    """An activation function of `ACTIVATIONS`; defined for Gaussian signals of mean 0, NaN for others."""

    name: str

    @property
    def source(self) -> str:
        return ACTIVATIONS[self.name].source

    def forward(self, *inputs: State) -> State:
        x, function = inputs[0], ACTIVATIONS[self.name].function
        if not x.gaussian:
            return replace(x, products=np.full(3, np.nan), mean=math.nan)
        logits = x if self.name == "Sigmoid" else None
        return State(x.mapped(function), x.samples, x.places, x.mean_of(function), logits=logits)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (gradient.products * inputs[0].mapped(ACTIVATIONS[self.name].slope),)


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
        products = x.over_channels(lambda t: t * self._centered(x) / self._variance(x, t))
        return State(products * self.scale + self.shift, x.samples, x.places, gaussian=True)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        x = inputs[0]
        normalized = self._centered(x) / self._variance(x, 1.0)
        along = replace(gradient, products=gradient.products * normalized).acsm
        left = (gradient.products - gradient.acsm - along * normalized) * self.scale
        return (left * x.over_channels(lambda t: np.array(1 / self._variance(x, t))),)

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


@dataclass(frozen=True)
class Pool(Rule):
    """The mean over all places."""

    def forward(self, *inputs: State) -> State:
        x = inputs[0]
        own, place, sample = x.products
        within = own / x.places + (1 - 1 / x.places) * place
        return replace(x, products=np.array([within, within, sample]), places=1, logits=None)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        own, _, sample = gradient.products
        return (np.array([own, own, sample]) / inputs[0].places ** 2,)


@dataclass(frozen=True)
class Dropout(Rule):
    """Independent masks with 1/(1 − p)."""

    probability: float

    def forward(self, *inputs: State) -> State:
        own, place, sample = inputs[0].products
        own_now = own / (1 - self.probability)
        products = np.array([own_now, place if inputs[0].places > 1 else own_now, sample])
        return replace(inputs[0], products=products, logits=None)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return (self.forward(gradient).products,)


@dataclass(frozen=True)
class Residual(Rule):
    """Sum of a branch and its skip connection, plain (no weight) or magnitude-preserving; both are uncorrelated."""

    weight: float | None = None

    @property
    def source(self) -> str:
        return "De & Smith 2020" if self.weight is None else "Karras et al. 2024"

    def _shares(self) -> tuple[float, float]:
        if self.weight is None:
            return theory.residual_sum(1, 0), theory.residual_sum(0, 1)
        return theory.mp_sum(1, 0, self.weight), theory.mp_sum(0, 1, self.weight)

    def forward(self, *inputs: State) -> State:
        a, b = self._shares()
        branch, skip = inputs
        gaussian = branch.gaussian and skip.gaussian
        mean = math.sqrt(a) * branch.mean + math.sqrt(b) * skip.mean
        return State(a * branch.products + b * skip.products, skip.samples, skip.places, mean, gaussian)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        return tuple(share * gradient.products for share in self._shares())


@dataclass(frozen=True)
class Gate(Rule):
    """Squeeze-and-excitation's x·σ(z), or x·g(σ(z)), with a logit z for each sample and channel, independent of x."""

    magnitude_preserving: bool

    @property
    def source(self) -> str:
        return "Karras et al. 2024" if self.magnitude_preserving else ""

    def _gate(self, z: Array) -> Array:
        return theory.mp_gate(expit(z)) if self.magnitude_preserving else np.asarray(expit(z))

    def _slope(self, z: Array) -> Array:
        return theory.mp_gate_slope(expit(z)) if self.magnitude_preserving else np.ones_like(z)

    def _products(self, function: Function, gate: State) -> Array:
        """Those of a function of the logits: all places have the same gate."""
        if gate.logits is None:
            return np.full(3, np.nan)
        own, _, sample = gate.logits.mapped(function)
        return np.array([own, own, sample])

    def forward(self, *inputs: State) -> State:
        x, gate = inputs
        factor = self._products(self._gate, gate)
        mean = math.nan
        if gate.logits is not None:
            mean = x.mean * gate.logits.mean_of(self._gate)
        return State(x.products * factor, x.samples, x.places, mean)

    def backward(self, gradient: State, *inputs: State) -> Sequence[Array]:
        x, gate = inputs
        to_x = gradient.products * self._products(self._gate, gate)
        own, place, sample = gradient.products * x.products
        p = x.places
        within = p * own + p * (p - 1) * place
        to_gate = np.array([within, within, p**2 * sample]) * self._products(self._slope, gate)
        return to_x, to_gate
