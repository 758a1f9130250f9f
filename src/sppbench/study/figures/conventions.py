"""What is only inferred about a published figure: each plausible reading of it, and how well our runs fit under it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import get_args

from sppbench.evidence.runs import EvidenceError
from sppbench.spp.plots.curves import Convention
from sppbench.study.figures.drawing import Reading
from sppbench.study.figures.drawn_runs import Batches, Net
from sppbench.study.figures.match import fit, highest_peaks, split_numbers
from sppbench.study.figures.published_figures import PublishedFigure, PublishedFigures

BATCHES: dict[Batches, str] = {"all": "all batches", "full": "full batches only"}
CONVENTIONS: dict[Convention, str] = {"study": "study's convention", "definition": "by definition"}
NUMBERED = "numbered spikes that are not among our highest peaks (Swish outputs are not compared)"


def try_readings(figure: PublishedFigure, nets: Mapping[str, Net], published: PublishedFigures) -> tuple[Reading, ...]:
    """Every combination of net, averaging and convention, and every way to number the layers.

    Args:
        figure: The published one.
        nets: The usable runs of its `readings`, by name.
        published: What is common to all figures.
    """
    found = [
        _reading(
            figure, nets[net], f"{label}; {BATCHES[batches]}; {CONVENTIONS[convention]}", batches, convention, published
        )
        for net, label in figure.readings.items()
        for batches in get_args(Batches)
        for convention in CONVENTIONS
    ]
    drawn = nets[next(iter(figure.readings))]
    return (*_mark_best(found), *_mark_best(_numberings(figure, drawn, published)))


def _reading(
    figure: PublishedFigure, net: Net, text: str, batches: Batches, convention: Convention, published: PublishedFigures
) -> Reading:
    measure = f"RMSE of log10 at {len(figure.anchors)} values (agrees at ≤ {figure.criterion:g})"
    fits = {}
    for run in net.runs:
        try:
            fits[run.seed] = fit(net.values(run, batches, convention, published.epochs), figure.anchors)
        except EvidenceError:
            continue  # the net's notes say why
    if not fits or (drawn := next(iter(fits.values()))).rmse is None:
        return Reading(text, measure, None, None, 0, False, f"no usable run of {net.model}")
    if not drawn.complete:
        known = sum(one.known for one in drawn.distances)
        return Reading(text, measure, None, None, len(fits), False, f"only {known} values: {drawn.rmse:.3f}")
    whole = {seed: one.rmse for seed, one in fits.items() if one.complete and one.rmse is not None}
    note = ", ".join(f"seed {seed}: {rmse:.3f}" for seed, rmse in whole.items())
    return Reading(text, measure, drawn.rmse, (min(whole.values()), max(whole.values())), len(whole), False, note)


def _numberings(figure: PublishedFigure, net: Net, published: PublishedFigures) -> list[Reading]:
    """Whether the study's numbers of layers count sums and gates: under which are its spikes at our highest peaks?"""
    numbers = sorted({layer for one in figure.spikes for layer in one.layers if isinstance(layer, int)})
    if not numbers or not net.runs:
        return []
    values = net.values(net.runs[0], "all", "study", published.epochs)
    readings = []
    for text, names in (("not counted", values.layers.names), ("counted", values.all_layers)):
        missed = 0
        for spikes in figure.spikes:
            swish, others = split_numbers(spikes, names, values)
            peaks = highest_peaks(values, spikes.signal, spikes.statistic, spikes.top - len(swish))
            wanted = [names[layer] for layer in others if isinstance(layer, int) and layer < len(names)]
            missed += sum(name not in peaks for name in wanted)
        note = ", ".join(f"{number} is {names[number]}" for number in numbers if number < len(names))
        reading = f"sums and gates are {text} as layers"
        readings.append(Reading(reading, NUMBERED, float(missed), None, 1, False, note))
    return readings


def _mark_best(readings: Sequence[Reading]) -> list[Reading]:
    values = [one.value for one in readings if one.value is not None and math.isfinite(one.value)]
    lowest = min(values, default=None)
    return [dataclasses.replace(one, best=lowest is not None and one.value == lowest) for one in readings]
