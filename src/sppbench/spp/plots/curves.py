"""From a history to what a figure draws: the layers in order, and one curve per epoch. Tables in, tables out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.names import COLUMNS, LATER_COLUMNS, OF_WEIGHTS, Signal
from sppbench.spp.plots.overlay import overlay
from sppbench.spp.plots.per_sample import gradients_per_sample
from sppbench.spp.theory.chain import Init

Convention = Literal["definition", "study"]
Statistic = Literal["acsm", "acv", "second_moment"]

SIGNAL_NAMES: dict[Signal, str] = {
    "activation": "activations",
    "gradient": "gradients",
    "parameter": "weights",
    "parameter_gradient": "gradients of weights",
    "update": "updates of weights",
}
FORMULAS: dict[Statistic, str] = {
    "acsm": "ACSM mean_c(mean(x)²)",
    "acv": "ACV mean_c(var(x))",
    "second_moment": "second moment mean(x²)",
}
STUDY_FORMULAS: dict[Statistic, str] = {"acsm": FORMULAS["second_moment"], "acv": "overall variance var(x)"}
MERGES = ("Sum", "MPSum", "Scale", "MPScale")


@dataclass(frozen=True)
class Layers:
    """The layers on a depth axis, in order of first execution: names of modules, and names of their classes."""

    names: list[str]
    kinds: list[str]

    def take(self, depths: Sequence[int]) -> Layers:
        """Only the layers at these depths."""
        return Layers([self.names[depth] for depth in depths], [self.kinds[depth] for depth in depths])

    def depths(self, rows: pd.DataFrame) -> NDArray[np.int64]:
        """The depth of each row's layer, counted from 0 over these layers and without gaps; shape (rows,)."""
        depths = {name: depth for depth, name in enumerate(self.names)}
        codes, names = pd.factorize(rows["layer"])
        by_code = np.array([depths[name] for name in names], dtype=np.int64)
        return by_code[np.asarray(codes, dtype=np.int64)]


@dataclass(frozen=True)
class Curves:
    """The curves of a figure.

    `table` has one row per (epoch, layer, signal). Its columns acsm and acv hold the statistics that the convention
    draws under these names, `departs` whether those are the study's (second moment and overall variance), and `x` the
    place of the layer among the drawn `layers`: one for each depth of the frame, as weights of other names than their
    module's have its depth. `numbers` are these depths. `labels` has an entry for each epoch, in the order of drawing.
    `averaging` says what a curve is. `expected` has the values that theory expects, see `overlay`.
    """

    table: pd.DataFrame
    labels: dict[int, str]
    layers: Layers
    numbers: list[int]
    averaging: str
    expected: pd.DataFrame

    @property
    def sources(self) -> list[str]:
        return [str(source) for source in self.expected["source"].unique()]


def select_curves(
    frame: pd.DataFrame,
    epochs: Sequence[int] | None,
    convention: Convention,
    layers: str | Sequence[str] | None,
    merges: bool,
    full_batches_only: bool,
    expected: pd.DataFrame | Init | None = None,
    statistics: Sequence[Statistic] = ("acsm", "acv"),
    per_sample: bool = False,
) -> Curves:
    """The curves of some epochs; arguments and errors are those of `plot_spp`.

    Averaged frames may have a column `averaged`, which says in words what was averaged, such as "full batches only".
    """
    averaged = "steps" in frame
    unneeded = {*LATER_COLUMNS, *(["samples"] if averaged else [])}
    check_frame(frame, [name for name in COLUMNS if name not in unneeded])
    if averaged and full_batches_only:
        raise ValueError("full_batches_only needs a history; this frame is already averaged over steps")
    if per_sample:
        frame = gradients_per_sample(frame)
    whole = frame
    frame, _ = select_layers(frame, layers, merges)
    chosen = _choose_epochs(frame, epochs)
    frame = frame[frame["epoch"].isin(chosen)]
    labels = {epoch: f"Epoch {epoch}" for epoch in chosen}
    if not averaged and frame["step"].nunique() == 1:
        labels = {chosen[0]: f"step {frame['step'].iloc[0]}"}
    table = _average(frame, convention, full_batches_only)
    places, depths = _places(frame)
    table = table.assign(x=np.searchsorted(depths, table["depth"].to_numpy(np.int64)))
    # Without sums and gates layers are numbered anew, as in the study.
    numbers = depths if merges else list(range(len(depths)))
    averaging = _describe_average(frame, full_batches_only)
    if per_sample:
        averaging += "; gradients times the size of the batch"
    return Curves(table, labels, places, numbers, averaging, overlay(expected, whole, table, statistics))


def _places(frame: pd.DataFrame) -> tuple[Layers, list[int]]:
    """The places on the depth axis, one for each depth in ascending order, and these depths.

    A place has the name of the module that runs there, and not that of a weight, such as ``gru.weight_ih_l0``.
    """
    layers = frame[["depth", "layer", "kind", "signal"]].drop_duplicates(["depth", "layer", "signal"])
    layers = layers.assign(is_weight=layers["signal"].isin(OF_WEIGHTS))
    layers = layers.sort_values(["depth", "is_weight"], kind="stable").drop_duplicates("depth")
    names, kinds = [str(name) for name in layers["layer"]], [str(kind) for kind in layers["kind"]]
    return Layers(names, kinds), [int(depth) for depth in layers["depth"]]


def select_layers(frame: pd.DataFrame, layers: str | Sequence[str] | None, merges: bool) -> tuple[pd.DataFrame, Layers]:
    """The rows of the layers to draw, and these layers.

    Args:
        frame: with the columns layer, kind and depth.
        layers: names or patterns such as "features.1.*"; None is all.
        merges: whether sums and gates are layers.

    Raises:
        ValueError: no layer is left, or a name or pattern matches none.
    """
    net = frame[["depth", "layer", "kind"]].drop_duplicates("layer").sort_values("depth", kind="stable")
    if not merges:
        net = net[~net["kind"].isin(MERGES)]
    if layers is not None:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in net["layer"]):
                raise ValueError(f"no layer matches {pattern!r}; there are, for example, {list(net['layer'][:4])}")
        net = net[[any(_matches(name, pattern) for pattern in patterns) for name in net["layer"]]]
    if net.empty:
        raise ValueError(f"no layer is left to draw (layers={layers!r}, merges={merges})")
    drawn = Layers([str(name) for name in net["layer"]], [str(kind) for kind in net["kind"]])
    return frame[frame["layer"].isin(drawn.names)], drawn


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _choose_epochs(frame: pd.DataFrame, epochs: Sequence[int] | None) -> list[int]:
    """Those of `epochs` that are there; if none is named or there, the first, middle and last that are."""
    available = sorted(int(epoch) for epoch in frame["epoch"].unique())
    chosen = [epoch for epoch in dict.fromkeys(epochs or ()) if epoch in available]
    return chosen or sorted({available[0], available[(len(available) - 1) // 2], available[-1]})


def _average(frame: pd.DataFrame, convention: Convention, full_batches_only: bool) -> pd.DataFrame:
    """One row per (epoch, layer, signal), with the statistics of the convention in the columns acsm and acv."""
    if "steps" not in frame:
        frame = epoch_mean(frame, full_batches_only=full_batches_only)
    if convention == "definition":
        return frame.assign(departs=False)
    departs = (frame["ndim"] <= 2) | frame["signal"].isin(OF_WEIGHTS)
    return frame.assign(
        departs=departs,
        acsm=frame["second_moment"].where(departs, frame["acsm"]),
        acv=frame["variance"].where(departs, frame["acv"]),
    )


def _describe_average(frame: pd.DataFrame, full_batches_only: bool) -> str:
    """What a curve is, in words that are true of this frame."""
    if "steps" in frame:
        words = f": {frame['averaged'].iloc[0]}" if "averaged" in frame else ""
        return f"mean over {_range(frame['steps'])} steps of the epoch{words}"
    steps = frame.groupby("epoch")["step"].nunique()
    if steps.max() == 1:
        return "a single step" if len(steps) == 1 else "a single step of each epoch"
    if full_batches_only:
        return "mean over the steps of the epoch with a full batch"
    partial = frame["samples"].min() < frame["samples"].max()
    return f"mean over all {_range(steps)} steps of the epoch" + (", partial batch included" if partial else "")


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def formula(rows: pd.DataFrame, column: Statistic) -> str:
    """The statistic that rows of `Curves.table` hold in a column; both, and which is where, if they mix two."""
    if column == "second_moment" or not rows["departs"].any():
        return FORMULAS[column]
    if rows["departs"].all():
        return STUDY_FORMULAS[column]
    return f"{FORMULAS[column]}\nndim ≤ 2: {STUDY_FORMULAS[column]}"


def check_frame(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises ValueError unless `frame` has these columns and at least one row."""
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
    if frame.empty:
        raise ValueError("the frame has no rows")
