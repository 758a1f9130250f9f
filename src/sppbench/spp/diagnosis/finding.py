"""What a finding is, and the limits beyond which there is one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from sppbench.spp.history.health import EXPLODED
from sppbench.spp.history.small_start import DEAD
from sppbench.spp.names import shortened


class Limit(NamedTuple):
    """A threshold and where it is from: the paper, and the place in it."""

    threshold: float
    source: str


#: By kind of finding. Where no paper says a number, it is ours, and the paper is the one that says what happens.
LIMITS: Final[dict[str, Limit]] = {
    "not finite": Limit(0, "IEEE 754: what is computed with NaN is NaN"),
    "dead": Limit(DEAD, "float32: products of two such signals underflow"),
    "overflowing": Limit(EXPLODED, "float32: squares of such signals soon overflow"),
    "vanishing": Limit(1e-8, "He et al. 2015, section 2.2: (1/1.7e4)² over ten layers stalls VGG"),
    "exploding": Limit(1e8, "Yang et al. 2019, section 1: gradients that grow exponentially with depth"),
    "saturated": Limit(0.05, "Glorot & Bengio 2010, section 3"),
    "at its floor": Limit(0.9, "Klambauer et al. 2017, equation 2"),
    "collapsed attention": Limit(0.1, "Zhai et al. 2023, section 3"),
    "dead units": Limit(0.9, "Lu et al. 2020, section 1: dying ReLU"),
    "silent branch": Limit(0.01, "De & Smith 2020, section 2"),
    "drowned skip": Limit(0.01, "He et al. 2016 (identity mappings), section 3"),
    "large update": Limit(1e-1, "You et al. 2017, section 4; about 1e-3 is usual"),
    "small update": Limit(1e-6, "You et al. 2017, section 4; about 1e-3 is usual"),
    "underflow": Limit(0.1, "Micikevicius et al. 2018, section 3.2"),
    "below epsilon": Limit(1e-8, "Kingma & Ba 2015, algorithm 1: ε"),
    "batch normalization gain": Limit(1e4, "Yang et al. 2019, section 3: π/(π - 1) per layer is usual after ReLU"),
}

#: Kinds that `sppbench.spp.history.health.Watch` warns of whenever steps are written.
WATCHED: Final = ("not finite", "dead", "overflowing")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a recorded training run.

    Attributes:
        kind: One of `sppbench.spp.diagnosis.finding.LIMITS`.
        layer: Where it starts, or where it is worst.
        signal: In which signal; empty for a table without signals.
        step: The first step in which it holds.
        number: What was measured there.
        threshold: The limit beyond which it is a finding.
        source: The paper behind it, and where in it.
        text: One sentence: what is wrong, and what to look at.
        others: Other layers of which the same is true.

    Example:
        >>> finding = Finding("dead units", "4", "activation", 0, 0.99, 0.9, "Lu et al. 2020", "99 % of 4 are zero.")
        >>> print(finding)
        99 % of 4 are zero.
    """

    kind: str
    layer: str
    signal: str
    step: int
    number: float
    threshold: float
    source: str
    text: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


class Findings(list[Finding]):
    """Some findings; printed as a line for each.

    Attributes:
        skipped: What could not be judged → why.
    """

    def __init__(self, findings: Iterable[Finding] = (), skipped: dict[str, str] | None = None) -> None:
        super().__init__(findings)
        self.skipped: dict[str, str] = skipped or {}

    def __str__(self) -> str:
        lines = [f"{one.kind}: {one.text}" for one in self] or ["nothing found"]
        lines += [f"not judged: {what} ({why})" for what, why in self.skipped.items()]
        return "\n".join(lines)


def finding(kind: str, signal: str, layers: list[str], step: int, number: float, text: str) -> Finding:
    """A finding of a kind, with its limit.

    Args:
        kind, signal, step, number: As in `Finding`.
        layers: Where it is; the first is named.
        text: With the place of the others as ``{others}``.
    """
    others = tuple(layers[1:])
    also = f" (and at {shortened(others, 3)})" if others else ""
    limit = LIMITS[kind]
    return Finding(
        kind, layers[0], signal, step, number, limit.threshold, limit.source, text.replace("{others}", also), others
    )
