"""Activation functions by name."""

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from sppbench.checks import check_choice

Activation: TypeAlias = str | Callable[[], nn.Module]
"""Name of a `torch.nn` class (one of `ACTIVATIONS`), or a callable without arguments that returns a module."""

# Element-wise, shape-preserving, and constructible without arguments: not GLU (halves), Softmax (mixes), Threshold.
ACTIVATIONS = (
    "CELU",
    "ELU",
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
)


def make_activation(activation: Activation) -> nn.Module:
    """Return a new activation module, which maps a tensor of any shape to one of the same shape.

    `"SELU"` (Klambauer et al. 2017, eq. 2) is λ·x for x > 0 and λ·α·(exp(x) − 1) otherwise; `"SiLU"` is Swish, x·σ(x).

    Raises:
        ValueError: unknown name, or a callable whose module works in place: that would overwrite the output of the
            module before it, which could then no longer be observed.
    """
    if callable(activation):
        module = activation()
    else:
        check_choice("activation", activation, ACTIVATIONS)
        module = getattr(nn, activation)()
    if not isinstance(module, nn.Module):
        raise ValueError(f"activation must give a torch.nn.Module; got {module!r}")
    if any(getattr(part, "inplace", False) for part in module.modules()):
        raise ValueError(f"activation must not work in place; got {module!r}")
    return module
