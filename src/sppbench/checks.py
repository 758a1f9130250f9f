"""Checks of arguments; each raises a `ValueError` of one line, with what is allowed and what was given."""

from collections.abc import Collection


def check_choice(name: str, value: object, choices: Collection[str | bool | None]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_integer(name: str, value: int, minimum: int) -> None:
    """Raises `ValueError` unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}")


def check_number(name: str, allowed: str, value: float, is_allowed: bool) -> None:
    """Raises `ValueError` unless `is_allowed`; `allowed` says in words or as an interval which numbers are."""
    if not is_allowed:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
