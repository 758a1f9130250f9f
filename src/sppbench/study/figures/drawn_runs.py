"""The runs that figures are drawn from: they follow the protocol and have whole signals; one for each net and seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from sppbench.evidence.profiles import unusual
from sppbench.evidence.runs import EvidenceError, Run
from sppbench.evidence.selection import Evidence
from sppbench.spp.plots.curves import Convention, select_curves
from sppbench.study.figures.drawing import reason
from sppbench.study.figures.published_figures import PublishedFigures

Batches = Literal["all", "full"]
SWISH = ("SiLU",)  # classes
DATA = "data._target_"
COMMAND = "python -m sppbench.train -m sweeps=figures"


@dataclass(frozen=True)
class Net:
    """The usable runs of a net.

    Attributes:
        model: Its name.
        runs: The drawn one first: of the study's first seed if it is there, else of the smallest.
        notes: What must be said of its runs, one line each.
    """

    model: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    _values: dict[tuple[int, Batches, Convention], Values] = field(default_factory=dict, repr=False, compare=False)

    def values(self, run: Run, batches: Batches, convention: Convention, epochs: tuple[int, ...]) -> Values:
        """What a figure of one of its runs draws, see `Values`; computed once."""
        key = (run.seed, batches, convention)
        if key not in self._values:
            self._values[key] = Values(run, batches, convention, epochs)
        return self._values[key]


def follow_protocol(evidence: Evidence, published: PublishedFigures) -> Evidence:
    """The runs of the figures' nets at their learning rate that follow the study's protocol.

    Runs on other data are left out silently; for every other departure there is a line in `problems`.
    """
    data = published.protocol[DATA]
    wanted = tuple(run for run in evidence.runs if run.lr == published.lr and run.settings.get(DATA) == data)
    return dataclasses.replace(evidence, runs=wanted).only(published.protocol, published.nets)


def find_net(evidence: Evidence, model: str, published: PublishedFigures) -> Net:
    """The usable runs of a net, from evidence that follows the protocol."""
    notes: list[str] = []
    whole: dict[int, Run] = {}
    layers: dict[int, tuple[str, ...]] = {}
    for run in evidence.select(model, published.lr, signals=True):
        try:
            frame = run.signals("all")
            run.signals("full")
            layers[run.seed] = tuple(Values(run, "all", "study", published.epochs).layers.names)
            whole[run.seed] = run
        except Exception as error:  # a damaged table raises many kinds, and there are other runs
            notes.append(f"not drawn: {model}, seed {run.seed}: {reason(error)}")
            continue
        if note := _say_nonfinite(run, frame):
            notes.append(note)
    usual, odd = unusual(layers)
    for seed in odd:
        count = f"{len(layers[seed])} layers, not the {len(usual or ())}"
        notes.append(f"not drawn: {whole.pop(seed).path} has {count} that the other seeds of {model} have")
    runs = sorted(whole.values(), key=lambda run: (run.seed != published.seeds[0], run.seed))
    return Net(model, tuple(runs), tuple(notes))


def _say_nonfinite(run: Run, frame: pd.DataFrame) -> str:
    bad = frame[~(np.isfinite(frame["acsm"]) & np.isfinite(frame["acv"]))]
    if bad.empty:
        return ""
    first = bad.iloc[0]
    return (
        f"{run.path} has {len(bad)} of {len(frame)} epoch means that are not finite, first the {first['signal']} of "
        f"{first['layer']} in epoch {first['epoch']}: they are left out of its curves"
    )


def say_missing(net: Net, seeds: tuple[int, ...]) -> str:
    """Which runs of a net are missing, and the command for them; empty if none is."""
    there = {run.seed for run in net.runs}
    missing = [str(seed) for seed in seeds if seed not in there]
    if not missing:
        return ""
    word = "seed" if len(missing) == 1 else "seeds"
    return f"{net.model} lacks {word} {', '.join(missing)}: {COMMAND} model={net.model} seed={','.join(missing)}"


class Values:
    """What a figure of a run draws, as numbers.

    Args:
        run: The run.
        batches: The epoch means over "all" batches, or over "full" ones.
        convention: As in `sppbench.spp.plot_spp`.
        epochs: Those of them that the run has.

    Attributes:
        table: As `Curves.table`.
        layers: In order, without sums and gates, so that they have the study's numbers.
        all_layers: The same with them.
        averaging: What a curve is, in words.
        labels: By epoch, in the order of drawing: the name of its curve.
        has_all_epochs: Whether the run has all the epochs.

    Raises:
        EvidenceError: The run's signals are missing or damaged, or it has none of the epochs.
        ValueError: They lack columns.
    """

    def __init__(self, run: Run, batches: Batches, convention: Convention, epochs: tuple[int, ...]) -> None:
        frame = epoch_means(run, batches, epochs)
        curves = select_curves(frame, epochs, convention, None, merges=False, full_batches_only=False)
        self.table, self.layers, self.averaging = curves.table, curves.layers, curves.averaging
        self.labels = curves.labels
        self.has_all_epochs = set(frame["epoch"]) == set(epochs)
        kinds = zip(self.layers.names, self.layers.kinds, strict=True)
        self._swish = {name for name, kind in kinds if kind in SWISH}
        net = frame[["depth", "layer"]].drop_duplicates("layer").sort_values("depth", kind="stable")
        self.all_layers = [str(name) for name in net["layer"]]
        self._panels: dict[tuple[str, str], pd.DataFrame] = {}

    def panel(self, signal: str, statistic: str) -> pd.DataFrame:
        """Layers in order of depth × epochs; without the layers that do not have this signal."""
        if (signal, statistic) not in self._panels:
            rows = self.table[self.table["signal"] == signal].drop_duplicates(["layer", "epoch"])
            wide = rows.set_index(["x", "layer", "epoch"])[statistic].unstack("epoch").sort_index()
            self._panels[signal, statistic] = wide.droplevel("x")
        return self._panels[signal, statistic]

    def is_swish(self, layer: str) -> bool:
        """Whether a layer is a Swish, for which the study recorded the inner sigmoid."""
        return layer in self._swish


def epoch_means(run: Run, batches: Batches, epochs: tuple[int, ...]) -> pd.DataFrame:
    """A run's epoch means of these epochs, with words on what was averaged, as `plot_spp` takes them.

    Raises:
        EvidenceError: They are missing or damaged, or it has none of the epochs.
    """
    frame = run.signals(batches)
    frame = frame[frame["epoch"].isin(epochs)]
    if frame.empty:
        raise EvidenceError(f"{run.path} has none of the epochs {', '.join(map(str, epochs))}")
    if batches == "full":
        return frame.assign(averaged="full batches only")
    partial = run.signals("full")["steps"].max() < run.signals("all")["steps"].max()
    return frame.assign(averaged="all batches, the partial one included" if partial else "all batches")
