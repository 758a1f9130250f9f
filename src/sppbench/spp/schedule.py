"""Which steps of a training are recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sppbench.checks import check_integer

#: Each n-th step; or whether a step is recorded, by its number.
EveryNSteps: TypeAlias = "int | Callable[[int], bool]"


@dataclass(frozen=True)
class Schedule:
    """Says of a step whether it is recorded.

    Args:
        every_n_steps: Those whose number is a multiple of it; or those of which a function ``step -> bool`` says so.
        start, stop: Only those from ``start`` on, and before ``stop``; None: without an end.

    Raises:
        ValueError: ``every_n_steps`` is neither a function nor an integer of at least 1, or ``start`` or ``stop`` is
            no integer of at least 0.

    Example:
        >>> dense_then_sparse = Schedule(lambda step: step < 100 or step % 50 == 0, stop=10_000)
        >>> [dense_then_sparse(step) for step in (99, 101, 150, 10_000)]
        [True, False, True, False]
    """

    every_n_steps: EveryNSteps = 1
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.every_n_steps):
            check_integer("every_n_steps", self.every_n_steps, 1)
        check_integer("start", self.start, 0)
        if self.stop is not None:
            check_integer("stop", self.stop, 0)

    def __call__(self, step: int) -> bool:
        """Whether a step, counted from 0, is recorded."""
        if step < self.start or (self.stop is not None and step >= self.stop):
            return False
        if callable(self.every_n_steps):
            return bool(self.every_n_steps(step))
        return step % self.every_n_steps == 0

    def first(self, begin: int, end: int) -> int | None:
        """The first step from ``begin`` until before ``end`` that is recorded; None if none is."""
        begin, end = max(begin, self.start), end if self.stop is None else min(end, self.stop)
        if callable(self.every_n_steps):
            return next((step for step in range(begin, end) if self(step)), None)
        step = -(-begin // self.every_n_steps) * self.every_n_steps
        return step if step < end else None
