"""What theory expects of signals in a net of random weights: closed forms, each with its source.

The theory is that of wide layers ("mean field"): the outputs of a layer of many random weights are Gaussian, and over
the weights two of them, u for one sample and v for another, have a covariance that depends on the layer before through
its second moment and its covariance alone. So one follows q = E[u²] and k = E[u·v] from layer to layer. Over a batch q
is the second moment, and the mean of k over all pairs of samples is ACSM; see `sppbench.spp.theory.chain`, which
does it.

Pure functions of numbers and NumPy arrays. Variances and second moments are in units of the signal squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, expit

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # λ and α of Klambauer et al. 2017


@dataclass(frozen=True)
class Activation:
    """An activation function, its derivative, and the paper on what it does to a signal."""

    function: Function
    slope: Function
    source: str = "Poole et al. 2016"


def _normal_density(x: Array) -> Array:
    return np.asarray(np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))


def _normal_share(x: Array) -> Array:
    return np.asarray((1 + erf(x / math.sqrt(2))) / 2)


def _sigmoid_slope(x: Array) -> Array:
    return np.asarray(expit(x) * expit(-x))


#: By the name of the class in `torch.nn`.
ACTIVATIONS: dict[str, Activation] = {
    "GELU": Activation(
        lambda x: np.asarray(x * _normal_share(x)), lambda x: np.asarray(_normal_share(x) + x * _normal_density(x))
    ),
    "ReLU": Activation(lambda x: np.maximum(x, 0), lambda x: np.asarray(x > 0, dtype=np.float64), "He et al. 2015"),
    "SELU": Activation(
        lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
        lambda x: SELU_SCALE * np.where(x > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(x, 0))),
        "Klambauer et al. 2017",
    ),
    "SiLU": Activation(lambda x: x * expit(x), lambda x: np.asarray(expit(x) + x * _sigmoid_slope(x))),
    "Sigmoid": Activation(lambda x: np.asarray(expit(x)), _sigmoid_slope),
    "Tanh": Activation(np.tanh, lambda x: np.asarray(1 / np.cosh(np.clip(x, -300, 300)) ** 2)),
}


# -- Gaussian means ----------------------------------------------------------------------------------------------------

_TERMS = 64


def _quadrature() -> tuple[Array, Array]:
    """Nodes and weights of E[f(z)], z ~ N(0, 1): Gauss–Legendre on each side of 0, where ReLU and SELU have kinks."""
    nodes, weights = np.polynomial.legendre.leggauss(120)
    x = 6.0 * (nodes + 1)
    weights = 6.0 * weights * _normal_density(x)
    return np.concatenate([-x[::-1], x]), np.concatenate([weights[::-1], weights])


def _hermite(x: Array) -> Array:
    """The first Hermite polynomials of probability theory, normalized to E[h_n(z)²] = 1; shape (_TERMS, *x.shape)."""
    h = [np.ones_like(x), x]
    for n in range(1, _TERMS - 1):
        h.append((x * h[n] - math.sqrt(n) * h[n - 1]) / math.sqrt(n + 1))
    return np.stack(h)


_NODES, _WEIGHTS = _quadrature()
_POLYNOMIALS = _hermite(_NODES) * _WEIGHTS


def gaussian_mean(function: Function, variance: float) -> float:
    """E[f(z)] for z ~ N(0, variance), by Gauss–Legendre quadrature; NaN for a variance that is not finite."""
    if not 0 <= variance < math.inf:
        return math.nan
    return float(_WEIGHTS @ function(math.sqrt(variance) * _NODES))


def gaussian_covariance(function: Function, variance: float, covariance: ArrayLike) -> Array:
    """E[f(u)·f(v)] for Gaussian u and v of mean 0, one variance and this covariance (Poole et al. 2016, section 2).

    With f an activation it leads from the q and k of pre-activations to those of activations; with f its derivative it
    is the factor on the gradients' way back (Schoenholz et al. 2017, section 4).

    By Mehler's formula it is Σ_n a_n²·ρⁿ, a_n being the coefficients of f in normalized Hermite polynomials, here by
    quadrature. What the even and the odd terms that are left out hold together is known from E[f²], and goes with the
    first of them: so ρ = 1 and −1 are exact.

    Args:
        function: f, element-wise.
        variance: E[u²] = E[v²].
        covariance: E[u·v], any shape; values beyond ± variance are taken as ± variance.

    Returns:
        as `covariance`; NaN if the variance is not finite.
    """
    covariance = np.asarray(covariance, dtype=np.float64)
    if not 0 <= variance < math.inf:
        return np.full_like(covariance, np.nan)
    values = function(math.sqrt(variance) * _NODES)
    correlation = np.clip(covariance / variance, -1, 1) if variance > 0 else np.ones_like(covariance)
    coefficients = (_POLYNOMIALS @ values) ** 2
    even, odd = (values + values[::-1]) / 2, (values - values[::-1]) / 2
    rest = _WEIGHTS @ even**2 - coefficients[::2].sum(), _WEIGHTS @ odd**2 - coefficients[1::2].sum()
    coefficients = np.append(coefficients, np.maximum(rest, 0))
    return np.asarray(np.polynomial.polynomial.polyval(correlation, coefficients))


def gaussian_second_moment(function: Function, variance: float) -> float:
    """E[f(z)²] for z ~ N(0, variance); NaN for a variance that is not finite."""
    return float(gaussian_covariance(function, variance, variance))


# -- weights -----------------------------------------------------------------------------------------------------------


def weight_gain(mean_square: float, fan: float) -> float:
    """Factor on the second moment by a layer of independent weights of mean 0: fan·E[w²] (He et al. 2015, section 2.2).

    Forward the fan is how many inputs an output sums over, backward how many outputs an input goes to: with He's
    fan_out init an h → h layer has 2 both ways, and the one from n inputs has n·(2/h) forward, 2 backward.
    """
    return fan * mean_square


def taps_inside(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> NDArray[np.int64]:
    """For each tap of a kernel along one axis, at how many of the output's places it lies inside the image.

    Returns:
        shape (kernel,). Over places × taps its sum is τ along this axis, and over both axes τ is the product.
    """
    places = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixels = np.arange(places) * stride - padding + dilation * np.arange(kernel)[:, None]
    return np.asarray(((pixels >= 0) & (pixels < size)).sum(axis=1), dtype=np.int64)


def taps_overlap(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> tuple[int, int]:
    """Along one axis, at how many pixels two places of the output meet, summed over pairs; over both axes the product.

    Returns:
        the sum over all pairs of places, and that over each with itself.
    """
    places = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixels = np.arange(places)[:, None] * stride - padding + dilation * np.arange(kernel)
    seen = (pixels[:, :, None] == np.arange(size)).any(axis=1).astype(np.int64)
    return int(np.square(seen.sum(axis=0)).sum()), int(seen.sum())


def tap_share(size: Sequence[int], kernel: int, stride: int = 1, padding: int = 0) -> float:
    """τ: share of a kernel's taps that fall inside an image of `size` pixels, a mean over the places of the output."""
    shares = []
    for length in size:
        places = (length + 2 * padding - kernel) // stride + 1
        shares.append(taps_inside(length, kernel, stride, padding).sum() / (kernel * places))
    return float(np.prod(shares))


def depthwise_fan_out_gain(channels: int, tau: float = 1.0) -> float:
    """Factor on the second moment by a depthwise convolution whose fan_out is taken as k²·C: 2τ/C.

    Each output sums over τ·k² pixels of one channel (see `weight_gain`), and weights have variance 2/(k²·C): with
    the fan_out of `torch.nn.init`, which is not divided by the groups, the signal collapses.
    """
    return 2 * tau / channels


# -- activations and batch normalization -------------------------------------------------------------------------------


def selu_gain(variance: float = 1.0) -> float:
    """E[φ(z)²]/variance: 1 at the fixed point (Klambauer et al. 2017, section 2), λ²·(1 + α²)/2 = 2.10 towards 0."""
    return gaussian_second_moment(ACTIVATIONS["SELU"].function, variance) / variance


def selu_backward_gain(variance: float = 1.0) -> float:
    """E[φ'(z)²], per layer of LeCun init and equal widths: 1.0716 at the fixed point; see `gaussian_covariance`."""
    return gaussian_second_moment(ACTIVATIONS["SELU"].slope, variance)


def batch_norm_relu_growth() -> float:
    """π/(π − 1) = 1.467: growth of the gradient's second moment towards the input, a layer (Yang et al. 2019).

    In the limit of large batches and widths, and far from the input. ReLU leaves ½ to second moment and gradient alike,
    and ACSM 1/(2π); so next to weights of any gain g the variance that batch normalization divides by is
    g·(½ − 1/(2π)), and gradients are multiplied by g·½ over that.
    """
    return math.pi / (math.pi - 1)


# -- where two signals meet --------------------------------------------------------------------------------------------


def residual_sum(branch: float, skip: float, correlation: float = 0.0) -> float:
    """Variance of branch + skip: Var ← Var + Var(f) where they are uncorrelated (De & Smith 2020, section 3).

    They are, in the mean over the weights, where the branch ends with a layer of random weights.
    """
    return branch + skip + 2 * correlation * math.sqrt(branch * skip)


def mp_sum(branch: float, skip: float, weight: float = 0.5, correlation: float = 0.0) -> float:
    """Variance of the magnitude-preserving sum (Karras et al. 2024, eq. 88, with the correlation that they take as 0).

    `weight` is that of the skip connection. At ½ and equal variances it is 1 + ρ times these, at a dead branch half of
    the skip connection's.
    """
    a, b = 1 - weight, weight
    return residual_sum(a**2 * branch, b**2 * skip, correlation) / (a**2 + b**2)


def mp_gate(gate: Array) -> Array:
    """g(s) = s/√((1 − s)² + s²), from Karras et al. 2024, eq. 88: g(s)² + g(1 − s)² = 1."""
    return np.asarray(gate / np.hypot(1 - gate, gate))


def mp_gate_slope(gate: Array) -> Array:
    """The derivative g'(s) = (1 − s)/((1 − s)² + s²)^(3/2)."""
    return np.asarray((1 - gate) / np.hypot(1 - gate, gate) ** 3)


def gate_second_moment(logit_variance: float, magnitude_preserving: bool = False) -> float:
    """E[g²] of a gate whose logits are N(0, logit_variance): the factor on the second moment of what it scales.

    Magnitude-preserving: ½ whatever the variance. Plain, g = σ(z): ¼ towards 0, 0.293 at unit variance, ½ at most.
    """
    gate = (lambda z: mp_gate(expit(z))) if magnitude_preserving else expit
    return gaussian_second_moment(gate, logit_variance)


# -- attention ---------------------------------------------------------------------------------------------------------


def softmax_squares(keys: ArrayLike, variance: float) -> Array:
    """E[Σ_j w_j²] of w = softmax(l) over this many independent logits l_j ~ N(0, variance): 1/keys for variance 0.

    With S = Σ_j exp l_j and 1/S² = ∫ t·exp(−t·S) dt it is keys·∫ t·E[exp(2l − t·exp l)]·E[exp(−t·exp l)]^(keys − 1) dt,
    by quadrature. For many keys it is exp(variance)/keys.

    Args:
        keys: at least 1, any shape; not only integers.
        variance: of the logits.
    """
    n = np.asarray(keys, dtype=np.float64)
    deviation = math.sqrt(variance)
    logits = deviation * _NODES
    u = np.linspace(-math.log(float(n.max())) - variance - 12, 8 * deviation + 6, 800)  # log t
    decay = np.exp(-np.exp(np.minimum(u[:, None] + logits, 700)))
    one, two = decay @ _WEIGHTS, (decay * np.exp(2 * (u[:, None] + logits))) @ _WEIGHTS
    integrand = two[:, None] * np.maximum(one, 1e-300)[:, None] ** (n.ravel() - 1)
    return np.asarray(np.minimum(n * (integrand.sum(0) * (u[1] - u[0])).reshape(n.shape), 1.0))
