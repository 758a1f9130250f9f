"""Timing variants in turns, so that a disturbance of the machine hits all of them, and a table of the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch


def in_turns(variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Calls every variant once a round; each returns its seconds. Returns them by variant, without the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(warm_up + rounds):
        for name, variant in variants.items():
            seconds = variant()
            if round_ >= warm_up:
                times[name].append(seconds)
    return times


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes, work on the device included."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the pairs' ratios."""
    return median(a / b for a, b in zip(times, reference, strict=True))


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """The range of the values, in a cell of a table."""
    return f"{scale * min(values):,.{digits}f} to {scale * max(values):,.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, the others are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
