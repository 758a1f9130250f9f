"""Two histories on one grid: the steps and the (layer, signal) that both have, with their values side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.spp.comparison.layer_matching import Matching, match_layers, net_of
from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.schema import HistoryError
from sppbench.spp.names import LATER_COLUMNS, SIGNALS, Signal, shortened

Grid = NDArray[np.float64]  # (steps, cells), NaN where there is no row

STATISTICS = ("acsm", "acv", "mean")
NEEDED = ("step", "epoch", "depth", "layer", "kind", "signal", "ndim", *STATISTICS)


@dataclass(frozen=True)
class Cell:
    """What has a value in each step: a signal of a layer.

    Attributes:
        layer, other: The layer's name in a and in b.
        kind: Of the layer, in a.
        place: Of the layer, in the order of execution among those that both have, from 0.
        signal: One of `SIGNALS`.
    """

    layer: str
    other: str
    kind: str
    place: int
    signal: Signal


@dataclass(frozen=True)
class Pairing:
    """Attributes:
    steps, epochs: The common steps, shape (S,), and their epochs in a.
    cells: The common (layer, signal), C of them, in the order in which a step computes them, see `in_order_of_a_step`.
    layers: Number of common layers.
    a, b: Statistic → values, shape (S, C), as float32 has them; ``present`` is 1 where there is a row.
    seeds: Second moments of further runs of a, shape (runs, S, C).
    notes: What of the two is not compared, and what differs beside the values.
    """

    steps: NDArray[np.int64]
    epochs: NDArray[np.int64]
    cells: tuple[Cell, ...]
    layers: int
    a: Mapping[str, Grid]
    b: Mapping[str, Grid]
    seeds: Grid
    notes: tuple[str, ...]

    def columns(self, signal: Signal) -> NDArray[np.int64]:
        """The places of a signal's cells, with the layers in the order of execution."""
        found = [(cell.place, number) for number, cell in enumerate(self.cells) if cell.signal == signal]
        return np.array([number for _, number in sorted(found)], dtype=np.int64)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Those that both have."""
        there = {cell.signal for cell in self.cells}
        return tuple(signal for signal in SIGNALS if signal in there)


def pair(
    a: pd.DataFrame, b: pd.DataFrame, seeds: Sequence[pd.DataFrame] = (), prefixes: Mapping[str, str] | None = None
) -> Pairing:
    """Puts two histories side by side.

    Args:
        a, b: Histories, or their `epoch_mean`; if one is a mean, means of all are compared.
        seeds: Of further runs of a, with the same layers.
        prefixes: Beginnings of layers' names in a → in b.

    Raises:
        HistoryError: A frame lacks columns or rows; no step or no signal is common; layers do not match.
    """
    frames = {"a": a, "b": b, **{f"seed {number}": frame for number, frame in enumerate(seeds, 1)}}
    for name, frame in frames.items():
        if missing := [column for column in NEEDED if column not in frame]:
            raise HistoryError(f"the history of {name} lacks the columns {', '.join(missing)}")
        if frame.empty:
            raise HistoryError(f"the history of {name} has no rows")
    if any("steps" in frame for frame in frames.values()):  # means over epochs: of the others, too
        frames = {name: frame if "steps" in frame else epoch_mean(frame) for name, frame in frames.items()}
        a, b = frames["a"], frames["b"]
    steps = _common_steps(frames)
    matching = match_layers(net_of(a), net_of(b), prefixes)
    cells = _cells(a, b, matching, {name: frames[name] for name in frames if name.startswith("seed")})
    a, b, *others = (frame[frame["step"].isin(steps)] for frame in frames.values())
    names_a, names_b = [cell.layer for cell in cells], [cell.other for cell in cells]
    grids = _grids(a, steps, names_a, cells), _grids(b, steps, names_b, cells)
    moments = [_grids(frame, steps, names_a, cells) for frame in others]
    notes = [*_notes_of_layers(matching), *_notes_of_steps(frames["a"], frames["b"], steps)]
    lone = int((grids[0]["present"] != grids[1]["present"]).sum())
    if lone:
        notes.append(
            f"{lone:,} values are in only one of the two: in the other, the layer did not run in that step, or has "
            "no row"
        )
    return Pairing(
        steps=steps,
        epochs=a.drop_duplicates("step").set_index("step")["epoch"].loc[steps].to_numpy(np.int64),
        cells=tuple(cells),
        layers=len({cell.layer for cell in cells}),
        a=grids[0],
        b=grids[1],
        seeds=np.array([grid["acsm"] + grid["acv"] for grid in moments]).reshape(-1, len(steps), len(cells)),
        notes=tuple(notes),
    )


def _common_steps(frames: Mapping[str, pd.DataFrame]) -> NDArray[np.int64]:
    common = frames["a"]["step"].unique()
    for name, frame in frames.items():
        there = frame["step"].unique()
        if not np.isin(common, there).any():
            raise HistoryError(f"no step in common: {_range(there)} of {name}, {_range(common)} of the runs before it")
        common = common[np.isin(common, there)]
    return np.sort(common).astype(np.int64)


def _cells(a: pd.DataFrame, b: pd.DataFrame, matching: Matching, seeds: Mapping[str, pd.DataFrame]) -> list[Cell]:
    kinds = {name: kind for name, kind, _ in net_of(a)}
    in_a, in_b = _recorded(a), _recorded(b)
    common = {(one, signal) for one, two in matching.pairs.items() for signal in SIGNALS} & in_a
    common = {(one, signal) for one, signal in common if (matching.pairs[one], signal) in in_b}
    if not common:
        raise HistoryError("the two have no signal of any layer in common")
    for name, frame in seeds.items():
        if missing := common - _recorded(frame):
            layer, signal = min(missing)
            raise HistoryError(f"{name} is not a run of a with another seed: it lacks the {signal} of {layer}")
    layers = [one for one in matching.pairs if any((one, signal) in common for signal in SIGNALS)]
    cells = [
        Cell(one, matching.pairs[one], kinds[one], place, signal)
        for place, one in enumerate(layers)
        for signal in SIGNALS
        if (one, signal) in common
    ]
    return sorted(cells, key=in_order_of_a_step)


def _recorded(frame: pd.DataFrame) -> set[tuple[str, str]]:
    """The (layer, signal) that a history has."""
    rows = frame[["layer", "signal"]].drop_duplicates()
    return {*zip(rows["layer"], rows["signal"], strict=True)}


def in_order_of_a_step(cell: Cell) -> tuple[int, int]:
    """Sorts cells as a step computes them: weights, activations forward, then backward what comes from gradients.

    Weights are recorded as they were when the gradients were taken, so before all else.
    """
    stages: dict[Signal, int] = {"parameter": 0, "activation": 1, "gradient": 2, "parameter_gradient": 3, "update": 4}
    backward = cell.signal in ("gradient", "parameter_gradient")
    return stages[cell.signal], -cell.place if backward else cell.place


def _grids(
    frame: pd.DataFrame, steps: NDArray[np.int64], names: Sequence[str], cells: Sequence[Cell]
) -> dict[str, Grid]:
    """The statistics of a history by step and cell; ``names`` are the cells' layers as this history calls them."""
    numbers = {(name, cell.signal): number for number, (name, cell) in enumerate(zip(names, cells, strict=True))}
    layers, layer_names = pd.factorize(frame["layer"])
    signals, signal_names = pd.factorize(frame["signal"])
    table = np.array([[numbers.get((one, two), -1) for two in signal_names] for one in layer_names], dtype=np.int64)
    columns = table[layers, signals]
    rows = np.searchsorted(steps, frame["step"].to_numpy(np.int64))
    there = columns >= 0
    grids: dict[str, Grid] = {}
    for name in (*STATISTICS, "nonfinite", *LATER_COLUMNS):
        if name in frame:
            grids[name] = np.full((len(steps), len(cells)), np.nan)
            with np.errstate(over="ignore"):
                values = frame[name].to_numpy(np.float32)  # as they are stored
            grids[name][rows[there], columns[there]] = values[there]
    grids["present"] = np.zeros((len(steps), len(cells)))
    grids["present"][rows[there], columns[there]] = 1
    return grids


def _notes_of_layers(matching: Matching) -> list[str]:
    notes = []
    if matching.by_order:
        shown = shortened([f"{one} = {two}" for one, two in matching.by_order.items()], 3)
        count = len(matching.by_order)
        notes.append(f"matched by order of execution and kind: {_counted(count, 'layer')}, {shown}")
    for name, layers in (("a", matching.only_a), ("b", matching.only_b)):
        if layers:
            notes.append(f"only in {name}: {_counted(len(layers), 'layer')}, {shortened(layers, 4)}")
    if matching.other_kind:
        kinds = [f"{name} {one} in a, {two} in b" for name, (one, two) in matching.other_kind.items()]
        notes.append(f"of another kind: {shortened(kinds, 4)}")
    return notes


def _notes_of_steps(a: pd.DataFrame, b: pd.DataFrame, steps: NDArray[np.int64]) -> list[str]:
    notes = []
    for name, frame in (("a", a), ("b", b)):
        alone = np.setdiff1d(frame["step"].unique(), steps)
        if len(alone):
            notes.append(f"not compared: {_counted(len(alone), 'step')} of {name}, {_range(alone)}")
    for column, text in (("samples", "samples of a batch"), ("epoch", "epochs")):
        if column in a and column in b:
            one, two = (frame.drop_duplicates("step").set_index("step")[column].loc[steps] for frame in (a, b))
            if (differ := one.to_numpy() != two.to_numpy()).any():
                step = steps[differ][0]
                notes.append(f"{text} differ, first in step {step}: {one.loc[step]} in a, {two.loc[step]} in b")
    return notes


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _range(steps: NDArray[np.int64]) -> str:
    return f"step {steps.min()}" if len(steps) == 1 else f"steps {steps.min()} to {steps.max()}"
