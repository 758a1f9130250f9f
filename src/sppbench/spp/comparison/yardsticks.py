"""How far two runs may differ without a reason: by rounding, or as far as runs with other seeds do.

**Rounding.** m roundings one after another, of relative size at most u and with mean zero, move a result by no more
than λ·√m·u, but with probability 2·exp(-λ²/2) (Higham & Mary 2019, "A new approach to probabilistic rounding error
analysis", theorem 2.4, to first order; the worst case would be m·u, Higham 2002, section 3.1). With λ = √(2·ln(2N/α))
that holds for all N values that are compared together, with probability 1 - α. Of the roundings:

- u, the unit roundoff of the coarser of the two runs (Higham 2002, table 2.1): 2⁻²⁴ of float32, 2⁻¹¹ of float16 and
  TF32, 2⁻⁸ of bfloat16. That tensors have 16 bits their ``subnormal`` says, which is counted for them alone.
- m = n·K. K is the number of layers that a value has passed since training began: in step t of a net of L layers 2·L·t,
  and in the step itself as many as lie before it, on the way forward and back. n is that of the roundings in a layer:
  1,024 in float32, a sum over so many inputs; 1 in the coarser types, as what they round are the inputs of such sums,
  which are themselves float32, and one rounding in each of a thousand terms moves their sum no more than one does.

Errors also come back through the weights. Adam's steps have about the size of its learning rate, however small the
gradient (Kingma & Ba 2015, section 2.1): where rounding moves gradients by ε of their size, a share ε of all weights,
whose gradients are smaller than that, step anywhere, so that the update as a whole moves by √ε of its size. After t
steps, each of which changes the weights by η = 1 %, that is η·t·√ε, for which ε = λ·u·√(n·2·L) is taken.

All this is an assumption and no bound: training may amplify errors further, the more the longer it is. So rounding
alone may depart after hundreds of steps, and what departs gradually may be nothing else. A second run of a that only
rounds differently (another number of threads, another device), given as a seed, measures it. A difference by a factor
of 2 in the second moment is never taken for rounding.

**Spread between seeds.** Of n runs, a and others that differ by their seed alone, the logarithm of the second moment
has in each (step, layer, signal) the mean ȳ and the standard deviation s. That of b, were it one more such run, would
lie within ȳ ± k·s·√(1 + 1/n). Since s is of few runs, it is taken to be at least its root mean square over the steps
until then, and at least what nine of ten layers stay below in the same signal and step. k is the larger of two
quantiles of level α = 1 %:

- Student's with n - 1 degrees of freedom, as for one test: right where all values move together, as they do when a seed
  happens to train faster; then s is known no better than from n runs, but there is only one chance to be wrong;
- the normal one of as many tests as there are (layer, signal), after Bonferroni: right where these are independent of
  each other; then s, pooled over them, is known well.

And no run departs by less than rounding allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # scipy.stats takes a second longer to import

from sppbench.spp.comparison.pairing import STATISTICS, Grid, Pairing
from sppbench.spp.history.small_start import DEAD

LEVEL: Final = 0.01  # the probability that one of the values departs without a reason
UNIT_ROUNDOFFS: Final = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
MOST_ROUNDING: Final = 0.5  # a factor of 2
_ROUNDINGS_IN_A_LAYER: Final = {"float32": 1024}  # and 1 of the others
_UPDATE: Final = 0.01  # of a step of the optimizer, relative to the weights
_ACCURACY: Final = 2e-6  # of the statistics of two tensors; see sppbench.spp.sums.statistics
_SHARE_BELOW_FLOOR: Final = 0.9


@dataclass(frozen=True)
class Differences:
    """How far b is from a, in a yardstick's own units.

    Attributes:
        distance: Shape (S, C), NaN where one of them has no row, infinite where one alone is not finite.
        allowed: How far it may be, likewise; infinite where nothing can be said.
        yardstick: In words.
    """

    distance: Grid
    allowed: Grid
    yardstick: str


def second_moments(values: Mapping[str, Grid]) -> Grid:
    """The sums of ACSM and ACV."""
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        total: Grid = values["acsm"] + values["acv"]
    return total


def by_statistic(pairing: Pairing) -> dict[str, Grid]:
    """How far a and b differ in each statistic, relative to the size of the tensor.

    In the second moment, ACSM and ACV that is the difference over the larger second moment, in the mean the difference
    over the larger root mean square: a mean of 1e-9 beside values of 1 is rounding, whatever it is in the other run.
    Where both are dead (a second moment below 1e-30) there is no difference.
    """
    a, b = pairing.a, pairing.b
    moments = second_moments(a), second_moments(b)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        size = np.maximum(*moments)
        found = {"second_moment": np.abs(moments[0] - moments[1]) / size}
        for name in STATISTICS:
            found[name] = np.abs(a[name] - b[name]) / (np.sqrt(size) if name == "mean" else size)
    finite = [np.isfinite(one) for one in moments]
    both = (pairing.a["present"] * pairing.b["present"]) > 0
    for values in found.values():
        values[size <= DEAD] = 0.0
        values[~finite[0] & ~finite[1]] = 0.0
        values[finite[0] != finite[1]] = np.inf
        values[~both] = np.nan
    return found


def by_rounding(pairing: Pairing, precision: str | None = None, tolerance: float | None = None) -> Differences:
    """The largest of the differences `by_statistic`, beside what rounding makes of them.

    Args:
        pairing: Two runs.
        precision: One of `UNIT_ROUNDOFFS`; by default what the histories say, see `precision_of`.
        tolerance: How far they may be, instead of all that.
    """
    distance = np.max(list(by_statistic(pairing).values()), axis=0)
    if tolerance is not None:
        return Differences(distance, np.full_like(distance, tolerance), f"the tolerance {tolerance:g}")
    precision = precision or precision_of(pairing)
    return Differences(distance, rounding(pairing, precision), f"rounding to {precision}")


def rounding(pairing: Pairing, precision: str) -> Grid:
    """How far rounding moves each value, relative to the size of its tensor; shape (S, C)."""
    places = np.array([cell.place for cell in pairing.cells], dtype=np.float64)
    signals = np.array([cell.signal for cell in pairing.cells])
    layers = pairing.layers
    within = np.select(
        [signals == "parameter", signals == "activation", signals == "gradient"],
        [np.zeros_like(places), places + 1, 2 * layers - places],
        2.0 * layers,
    )
    passed = 2.0 * layers * pairing.steps[:, None] + within
    likely = math.sqrt(2 * math.log(2 * passed.size / LEVEL))
    in_a_layer, unit = _ROUNDINGS_IN_A_LAYER.get(precision, 1), UNIT_ROUNDOFFS[precision]
    direct = likely * unit * np.sqrt(in_a_layer * passed)
    in_gradients = likely * unit * math.sqrt(in_a_layer * 2 * layers)
    by_updates = _UPDATE * pairing.steps[:, None] * math.sqrt(in_gradients)
    stored = np.array([UNIT_ROUNDOFFS[_type_of(pairing, number)] for number in range(len(places))])
    allowed: Grid = np.minimum(direct + by_updates + likely * stored + _ACCURACY, MOST_ROUNDING)
    return allowed


def _type_of(pairing: Pairing, column: int) -> str:
    """In which type the weights of a cell are; float32 of other cells."""
    is_weight = pairing.cells[column].signal == "parameter"
    return "bfloat16" if is_weight and any(_has_16_bits(run, column) for run in (pairing.a, pairing.b)) else "float32"


def _has_16_bits(run: Mapping[str, Grid], column: int | slice = slice(None)) -> bool:
    return "subnormal" in run and bool(np.isfinite(run["subnormal"][:, column]).any())


def precision_of(pairing: Pairing) -> str:
    """The coarsest type of the tensors of both runs, as far as their histories tell.

    Of 16 bits it is bfloat16, unless numbers were subnormal though of common size: those of float16 begin at 6.1e-5,
    those of bfloat16 at 1.2e-38.
    """
    runs = [run for run in (pairing.a, pairing.b) if _has_16_bits(run)]
    if not runs:
        return "float32"
    halves = [bool(((run["subnormal"] > 0) & (second_moments(run) > DEAD)).any()) for run in runs]
    return "float16" if all(halves) else "bfloat16"


def by_seeds(pairing: Pairing, k: float | None = None, precision: str | None = None) -> Differences:
    """The difference between b and the mean over a and its seeds, in the natural logarithm of the second moment, beside
    the spread of these.

    Args:
        pairing: Two runs, and at least one more of a.
        k: How many standard deviations are allowed; by default the quantile, see above.
        precision: As in `by_rounding`.
    """
    family = np.concatenate([second_moments(pairing.a)[None], pairing.seeds])
    runs = len(family)
    moments = second_moments(pairing.b)
    with np.errstate(invalid="ignore"):
        logs, log_b = (np.log(np.maximum(values, DEAD)) for values in (family, moments))
        distance = np.abs(log_b - logs.mean(axis=0))
        variance = logs.var(axis=0, ddof=1)
    known = np.isfinite(family).all(axis=0)
    distance[known & ~np.isfinite(moments) & (pairing.b["present"] > 0)] = np.inf
    k = quantile(runs, len(pairing.cells)) if k is None else k
    spread = np.sqrt(_at_least_pooled(np.where(known, variance, np.nan), pairing)) * math.sqrt(1 + 1 / runs)
    allowed = np.maximum(k * spread, np.log1p(rounding(pairing, precision or precision_of(pairing))))
    words = f"{k:.3g} times the spread between {runs} seeds"
    return Differences(distance, np.where(known, allowed, np.inf), words)


def quantile(runs: int, series: int) -> float:
    """How many standard deviations b may be away from the mean over some runs.

    Args:
        runs: Of a, with different seeds.
        series: (layer, signal) that are compared.

    Example:
        >>> [round(quantile(runs, 100), 1) for runs in (2, 3, 5, 20)]
        [63.7, 9.9, 4.6, 4.1]
    """
    return float(max(stdtrit(runs - 1, 1 - LEVEL / 2), -ndtri(LEVEL / (2 * series))))


def _at_least_pooled(variance: Grid, pairing: Pairing) -> Grid:
    """The variances, raised to their means over the steps so far and to what most layers of their signal stay below."""
    pooled = np.fmax(variance, _mean(variance))
    for signal in pairing.signals:
        columns = pairing.columns(signal)
        pooled[:, columns] = np.fmax(pooled[:, columns], _high(variance[:, columns]))
    return pooled


def _mean(values: Grid) -> Grid:
    """Over the steps until each of them, of those that there are: the spread of what is yet to come is often larger."""
    there = np.isfinite(values)
    mean: Grid = np.where(there, values, 0).cumsum(axis=0) / np.maximum(there.cumsum(axis=0), 1)
    return mean


def _high(values: Grid) -> NDArray[np.float64]:
    """What nine of ten layers stay below in each step; shape (S, 1)."""
    return np.quantile(np.nan_to_num(values), _SHARE_BELOW_FLOOR, axis=1, keepdims=True, method="higher")
