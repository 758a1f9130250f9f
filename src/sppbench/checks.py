"""Checks of arguments; each raises a `ValueError` of one line, with what is allowed and what was given."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from numbers import Integral
from typing import Any


def check_choice(name: str, value: object, choices: Collection[str | bool | None]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """Raises `ValueError` unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}")


def check_number(name: str, allowed: str, value: float, is_allowed: bool) -> None:
    """Raises `ValueError` unless `is_allowed`; `allowed` says in words or as an interval which numbers are."""
    if not is_allowed:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")


def check_type(name: str, value: object, *types: type) -> None:
    """Raises `ValueError` unless `value` is of one of `types`."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be of type {' or '.join(one.__name__ for one in types)}; got {value!r}")


def several(name: str, values: Any) -> tuple[Any, ...]:
    """The values, of which a single text is one; raises `ValueError` unless they can be iterated over."""
    if isinstance(values, str):
        return (values,)
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list; got {values!r}")
    return tuple(values)
