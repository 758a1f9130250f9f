"""What a comparison of two runs finds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sppbench.spp.comparison.pairing import Cell, Pairing
from sppbench.spp.comparison.yardsticks import Differences

Verdict = Literal["identical", "the same", "depart"]


@dataclass(frozen=True)
class Departure:
    """A value that departs.

    Attributes:
        step, epoch: When.
        cell: Which signal of which layer.
        statistic: ``second_moment``, or ``acsm``, ``acv`` or ``mean`` if that differs more.
        a, b: Its values.
        distance, allowed: How far they differ, and how far they may; see `Differences`.
    """

    step: int
    epoch: int
    cell: Cell
    statistic: str
    a: float
    b: float
    distance: float
    allowed: float


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two runs side by side; ``str()`` of it is the answer in words.

    Attributes:
        verdict: ``"identical"``, where every number is the same, bit for bit; ``"the same"``, up to rounding or the
            spread between seeds; or ``"depart"``.
        departures: The first of each (layer, signal) that departs, in the order in which they are computed.
        pairing: The values, and what is not compared.
        differences: How far each is, and may be.
        departs: Shape (S, C): which values depart.
        alone: How many values are further away than allowed and yet do not depart, because they are so in a single step
            only.
        text: The answer in words.

    Example:
        >>> found = compare(read_history("run/spp.parquet"), read_history("run/spp.parquet"))
        >>> found.verdict
        'identical'
        >>> assert found
    """

    verdict: Verdict
    departures: tuple[Departure, ...]
    pairing: Pairing
    differences: Differences
    departs: NDArray[np.bool_]
    alone: int
    text: str = ""

    def __bool__(self) -> bool:
        """Whether they do not depart: ``assert compare(a, b)``."""
        return self.verdict != "depart"

    def __repr__(self) -> str:
        return self.text

    @cached_property
    def place(self) -> int:
        """The place of the step of the first departure among the common steps; of the last step if there is none."""
        steps = self.pairing.steps
        return int(np.searchsorted(steps, self.departures[0].step)) if self.departures else len(steps) - 1
