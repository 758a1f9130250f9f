"""Names that every table and figure of signals shares: the signals, the factors of a backward gain, and the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

Signal = Literal["activation", "gradient", "parameter", "parameter_gradient", "update"]

#: Signals that depend on the batch, which add up over processes; of the others each process has all.
OF_BATCH: Final[tuple[Signal, ...]] = ("activation", "gradient")
OF_WEIGHTS: Final[tuple[Signal, ...]] = ("parameter", "parameter_gradient", "update")

#: All signals, in the order in which the rows of a layer are sorted.
SIGNALS: Final[tuple[Signal, ...]] = (*OF_BATCH, *OF_WEIGHTS)

#: The signals of the study, which are recorded by default, and their order from the top of its panels.
DEFAULT_SIGNALS: Final[tuple[Signal, ...]] = (*OF_BATCH, "parameter")
PANEL_SIGNALS: Final[tuple[Signal, ...]] = ("activation", "parameter", "gradient")

#: The backward gain of a batch normalization is the product of these factors; see `sppbench.spp.sums.batchnorm_sums`.
FACTOR_SYMBOLS: Final = {"gamma_squared": "γ²", "inverse_variance": "1/(v + ε)", "projection": "p"}
FACTORS: Final = tuple(FACTOR_SYMBOLS)
GAIN_AND_FACTORS: Final = ("gain", *FACTORS)

#: The columns of a history, in order, with their NumPy types; `sppbench.spp.history.schema` says what they mean.
COLUMNS: Final = {
    "step": "int64",
    "epoch": "int64",
    "samples": "int64",
    "depth": "int64",
    "layer": "object",
    "kind": "object",
    "signal": "object",
    "ndim": "int64",
    "acsm": "float64",
    "acv": "float64",
    "second_moment": "float64",
    "mean": "float64",
    "nonfinite": "int64",
    "absmax": "float64",
    "zeros": "float64",
    "subnormal": "float64",
}

#: Columns that histories of earlier versions do not have.
LATER_COLUMNS: Final = ("absmax", "zeros", "subnormal")

#: Two more, which follow from a layer's name and the names of a net's blocks; see `sppbench.spp.places`.
PLACES: Final = {"block": "int64", "role": "object"}

#: The columns of what a `BatchNormProbe` measures, likewise.
BATCHNORM_COLUMNS: Final = {
    "step": "int64",
    "epoch": "int64",
    "depth": "int64",
    "layer": "object",
    **dict.fromkeys(GAIN_AND_FACTORS, "float64"),
}

#: The columns of what an `AttentionProbe` measures, likewise.
ATTENTION_STATISTICS: Final = ("logit_second_moment", "logit_absmax", "entropy")
ATTENTION_COLUMNS: Final = {
    "step": "int64",
    "epoch": "int64",
    "depth": "int64",
    "layer": "object",
    "head": "int64",
    **dict.fromkeys(ATTENTION_STATISTICS, "float64"),
}


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Some names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def short_name(name: str, longest: int) -> str:
    """A dotted name with its middle left out, if it is too long: "encoder…mlp.fc2".

    It keeps the first component and as many of the last as there is room for; else only the last one, and of this its
    begin and end.
    """
    if len(name) <= longest:
        return name
    first, *others = name.split(".")
    tails = [".".join(others[i:]) for i in range(1, len(others))]
    fitting = [f"{first}…{tail}" for tail in tails if len(first) + 1 + len(tail) <= longest]
    if fitting:
        return fitting[0]
    last = others[-1] if others else first
    begin = longest // 3
    return f"…{last}" if len(last) < longest else f"{last[:begin]}…{last[begin + 1 - longest :]}"
