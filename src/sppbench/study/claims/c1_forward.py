"""C1: does batch normalization give its outputs the moments that it should?"""

from __future__ import annotations

from typing import Any

from sppbench.evidence.runs import EvidenceError, Run
from sppbench.stored_files import is_number
from sppbench.study.claims.claim import Part
from sppbench.study.claims.record import Record, Setup
from sppbench.study.claims.thresholds import Forward
from sppbench.study.common.intervals import Verdict


def forward_parts(record: Record, rule: Forward) -> tuple[Part, ...]:
    """A deciding part for each net."""
    return tuple(_part(record, rule, net) for net in rule.nets)


def _part(record: Record, rule: Forward, net: str) -> Part:
    cell = Setup(net, record.rules.lr)
    runs = record.runs(cell)
    errors: dict[int, float] = {}
    problems, details = [], []
    for seed, run in runs.items():
        try:
            layers = _layers(run)
        except EvidenceError as error:
            problems.append(str(error))
            continue
        errors[seed] = max(max(layer["mean_error"], layer["variance_error"]) for layer in layers.values())
        details.append(f"seed {seed}: {_range(layers)}")
    worst = max(errors.values(), default=None)
    verdict: Verdict = "undecided"
    missing = ""
    if worst is not None:
        verdict = "holds" if worst < rule.relative_error else "fails"
        details += problems
    else:
        missing = record.inspected(cell, problems)
    return Part(
        net,
        "largest relative error of a channel's mean or variance",
        worst,
        None,
        len(errors),
        f"< {rule.relative_error:g} in every inspected run; one run is enough",
        verdict,
        missing,
        tuple(details),
    )


def _layers(run: Run) -> dict[str, dict[str, Any]]:
    """The batch normalizations of an inspected run, by name.

    Raises:
        EvidenceError: There are none, or one of their errors is not a finite number.
    """
    layers = run.inspection.get("batch_norm")
    if not isinstance(layers, dict) or not layers:
        raise EvidenceError(f"{run.path / 'inspection.json'} has no batch normalization")
    for name, layer in layers.items():
        for key in ("mean_error", "variance_error"):
            value = layer.get(key) if isinstance(layer, dict) else None
            if not is_number(value):
                raise EvidenceError(f"{run.path / 'inspection.json'}: {key} of {name} is {value!r}")
    return layers


def _range(layers: dict[str, dict[str, Any]]) -> str:
    """Where the errors are largest, and the range of v/(v + ε)."""
    texts = []
    for key, words in (("mean_error", "mean"), ("variance_error", "variance")):
        name = max(layers, key=lambda layer: float(layers[layer][key]))
        texts.append(f"{words} within {layers[name][key]:.2g} (at {name})")
    ends = [layer.get("normalized_variance") for layer in layers.values()]
    lows, highs = zip(*(pair for pair in ends if _is_pair(pair)), strict=True) if any(map(_is_pair, ends)) else ((), ())
    if lows:
        wrong = ", so that a variance of 1 would be the wrong test" if min(lows) < 0.999 else ""
        texts.append(f"v/(v + ε) from {min(lows):.4g} to {max(highs):.4g}{wrong}")
    return ", ".join(texts)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
