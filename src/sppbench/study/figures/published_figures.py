"""The numbers read off the published figures, from conf/published/poster_figures.yaml; the file explains its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sppbench.evidence.runs import EvidenceError
from sppbench.files import config_directory
from sppbench.spp.names import PANEL_SIGNALS, Signal
from sppbench.stored_files import read_yaml
from sppbench.study.common.published import read_published

Statistic = Literal["acsm", "acv"]


@dataclass(frozen=True)
class Curve:
    """Which panel of a figure something is about, and what it is in words."""

    signal: Signal
    statistic: Statistic
    role: str


@dataclass(frozen=True)
class Anchor(Curve):
    """A published value at a layer, or a range of it, `low` to `high`.

    `epoch` None stands for the largest of the drawn epochs. `layer` may be a pattern: of its layers counts the largest
    value if `largest`, else the one that is farthest off.
    """

    layer: str
    epoch: int | None
    low: float
    high: float
    largest: bool


@dataclass(frozen=True)
class Order(Curve):
    """Layers (patterns stand for their largest value) at epochs, from the largest value to the smallest."""

    points: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Spikes(Curve):
    """Where the highest `top` peaks are: names of layers, patterns, or the study's numbers."""

    layers: tuple[str | int, ...]
    top: int


@dataclass(frozen=True)
class Ratio(Curve):
    """Geometric mean over pairs of layers, and over epochs (of none: all), of the first's value over the second's."""

    pairs: tuple[tuple[str, str], ...]
    epochs: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Merging(Curve):
    """A layer at which the curves of all epochs meet."""

    layer: str


@dataclass(frozen=True)
class PublishedFigure:
    """A published figure; see poster_figures.yaml."""

    name: str
    title: str
    layout: Literal["gradient", "panels"]
    criterion: float
    drawn: dict[str, tuple[str, str]]
    readings: dict[str, str]
    anchors: tuple[Anchor, ...]
    orders: tuple[Order, ...]
    spikes: tuple[Spikes, ...]
    ratios: tuple[Ratio, ...]
    merging: tuple[Merging, ...]


@dataclass(frozen=True)
class PublishedFigures:
    """The published figures, and what they have in common.

    Attributes:
        citation: Where they are from.
        note: What the reader must know about the numbers.
        epochs: The drawn ones, in order.
        lr: Learning rate of the runs.
        seeds: The study's, in its order.
        protocol: Dotted keys of a configuration and the values that all runs must have.
        nets: By name of a net: more such keys and values.
        figures: In order.
    """

    citation: str
    note: str
    epochs: tuple[int, ...]
    lr: float
    seeds: tuple[int, ...]
    protocol: dict[str, Any]
    nets: dict[str, dict[str, Any]]
    figures: tuple[PublishedFigure, ...]

    def seeds_of(self, model: str) -> tuple[int, ...]:
        """The seeds that are wanted of a net: all for the feed-forward nets, the first for the others."""
        return self.seeds if self.nets[model]["model._target_"].endswith(".FFNN") else self.seeds[:1]


def read_published_figures(file: Path | None = None) -> PublishedFigures:
    """Reads the published numbers, by default the study's.

    Raises:
        UserError: The file cannot be read, or lacks something.
    """
    file = file or config_directory() / "published" / "poster_figures.yaml"
    table = read_published()
    content = read_yaml(file)
    try:
        whole = next(iter(table.protocols.values()))
        return PublishedFigures(
            citation=", ".join(str(part) for part in content["source"].values()),
            note=" ".join(str(content["note"]).split()),
            epochs=tuple(int(epoch) for epoch in content["epochs"]),
            lr=float(content["learning_rate"]),
            seeds=tuple(int(seed) for seed in content["seeds"]),
            protocol={key: value for key, value in whole.items() if not key.startswith("model.")},
            nets={str(net): dict(table.protocols[net] if own is None else own) for net, own in content["nets"].items()},
            figures=tuple(_figure(str(name), figure) for name, figure in content["figures"].items()),
        )
    except KeyError as error:
        raise EvidenceError(f"cannot read {file}: it has no key {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise EvidenceError(f"cannot read {file}: {error}") from error


def _figure(name: str, content: Mapping[str, Any]) -> PublishedFigure:
    if content["layout"] not in ("gradient", "panels"):
        raise ValueError(f"the layout of {name} is {content['layout']!r}, but must be gradient or panels")
    return PublishedFigure(
        name=name,
        title=str(content["title"]),
        layout=content["layout"],
        criterion=float(content["criterion"]),
        drawn={str(drawing): (str(net), str(label)) for drawing, (net, label) in content["drawn"].items()},
        readings={str(net): str(label) for net, label in content["readings"].items()},
        anchors=tuple(anchor for one in content["anchors"] for anchor in _anchors(one)),
        orders=tuple(
            Order(**_curve(one), points=tuple((str(layer), int(epoch)) for layer, epoch in one["points"]))
            for one in content["orders"]
        ),
        spikes=tuple(
            Spikes(**_curve(one), layers=tuple(one["layers"]), top=int(one["top"])) for one in content["spikes"]
        ),
        ratios=tuple(_ratio(one) for one in content["ratios"]),
        merging=tuple(Merging(**_curve(one), layer=str(one["layer"])) for one in content["merging"]),
    )


def _curve(content: Mapping[str, Any]) -> dict[str, Any]:
    signal, statistic = content["signal"], content["statistic"]
    if signal not in PANEL_SIGNALS or statistic not in get_args(Statistic):
        raise ValueError(f"there is no panel for signal {signal!r}, statistic {statistic!r}")
    return {"signal": signal, "statistic": statistic, "role": str(content.get("role", ""))}


def _anchors(content: Mapping[str, Any]) -> list[Anchor]:
    """One for each epoch."""
    anchors = []
    for epoch, value in content["values"].items():
        low, high = _range(value)
        if low <= 0:
            raise ValueError(f"{value!r} at {content['layer']} has no logarithm")
        largest = content.get("take") == "largest"
        number = None if epoch == "any" else int(epoch)
        anchors.append(
            Anchor(**_curve(content), layer=content["layer"], epoch=number, low=low, high=high, largest=largest)
        )
    return anchors


def _ratio(content: Mapping[str, Any]) -> Ratio:
    low, high = _range(content["value"])
    pairs = tuple((str(above), str(below)) for above, below in content["pairs"])
    epochs = tuple(int(epoch) for epoch in content.get("epochs", ()))
    return Ratio(**_curve(content), pairs=pairs, epochs=epochs, low=low, high=high)


def _range(value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    if not 0 <= float(low) <= float(high):
        raise ValueError(f"{value!r} is neither a value nor a range [low, high]")
    return float(low), float(high)
