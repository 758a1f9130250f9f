"""The study's six claims and one of our own, judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppbench.evidence.selection import Evidence
from sppbench.study.claims.c1_forward import forward_parts
from sppbench.study.claims.c2_backward import backward_parts
from sppbench.study.claims.c3_stable import stable_parts
from sppbench.study.claims.c4_magnitude import magnitude_parts
from sppbench.study.claims.c5_lifeless import lifeless_parts
from sppbench.study.claims.c6_rates import rate_parts
from sppbench.study.claims.c7_normalizer_free import superior_parts
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.claims.record import Record
from sppbench.study.claims.thresholds import read_rules

_PARTS: dict[str, Callable[[Record, Any], tuple[Part, ...]]] = {
    "C1": forward_parts,
    "C2": backward_parts,
    "C3": stable_parts,
    "C4": magnitude_parts,
    "C5": lifeless_parts,
    "C6": rate_parts,
    "C7": superior_parts,
}


def judge(evidence: Evidence, rules: Path | None = None) -> list[Claim]:
    """Judges the claims C1 to C7 by the runs that follow the protocol.

    Args:
        evidence: All runs, of any sweeps.
        rules: A file such as conf/claims.yaml, which is the default.

    Raises:
        RulesError: That file cannot be used.
    """
    known = read_rules(rules)
    record = Record.of(evidence, known)
    return [
        Claim(name, rule.statement, make(record, rule), rule.source)
        for name, make in _PARTS.items()
        for rule in [getattr(known.claims, name)]
    ]
