"""Checks of arguments that come from configurations, before anything is done with them: ValueErrors of one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any


def at_least(name: str, value: Any, least: int) -> int:
    """The value, which must be an integer of that size.

    >>> at_least("every_n_steps", 0, 1)
    Traceback (most recent call last):
    ValueError: every_n_steps must be an integer of at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def one_of(name: str, value: Any, known: Collection[str]) -> Any:
    """The value, which must be one of the texts that are known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
    return value


def of_type(name: str, value: Any, *types: type) -> Any:
    """The value, which must be of one of these types."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be of type {' or '.join(one.__name__ for one in types)}, got {value!r}")
    return value


def several(name: str, values: Any) -> tuple[Any, ...]:
    """The values, of which a single text is one."""
    if isinstance(values, str):
        return (values,)
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list, got {values!r}")
    return tuple(values)


def layer_choice(layers: Any) -> Any:
    """The layers as of `sppbench.spp.probe.layers.choose_layers`, several of them as a tuple."""
    if layers is None or isinstance(layers, str | type) or callable(layers):
        return layers
    chosen = several("layers", layers)
    for layer in chosen:
        of_type("layers", layer, str, type)
    if not chosen:
        raise ValueError("layers names none; null (None) stands for all leaves")
    return chosen
