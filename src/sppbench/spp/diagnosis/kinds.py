"""Kinds of layers by the names of their classes, also those of libraries other than torch."""

from __future__ import annotations

import re

_ACTIVATION = re.compile(r"relu|elu|silu|swish|mish|sigmoid|tanh|softplus|softsign|activation|normact", re.IGNORECASE)
_WEIGHTS = re.compile(r"linear|conv", re.IGNORECASE)


def is_activation(kind: str) -> bool:
    """Whether a layer of this kind gives what a nonlinearity does, as timm's ``BatchNormAct2d`` also does."""
    return _ACTIVATION.search(kind) is not None


def is_weights(kind: str) -> bool:
    """Whether a layer of this kind multiplies with a matrix of weights."""
    return _WEIGHTS.search(kind) is not None


def is_norm(kind: str) -> bool:
    """Whether a layer of this kind sets the scale of its output anew."""
    return "norm" in kind.lower()
