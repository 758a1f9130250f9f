"""What is recorded of a training, and how: the options that every loop's way to record takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict, get_args

from sppbench.checks import check_choice, check_integer, check_type, several
from sppbench.spp.names import DEFAULT_SIGNALS, SIGNALS
from sppbench.spp.plots.curves import Convention
from sppbench.spp.probe.layers import LayerChoice, checked_choice
from sppbench.spp.schedule import EveryNSteps, Schedule


class Options(TypedDict, total=False):
    """The arguments of `Settings`, by name."""

    every_n_steps: EveryNSteps
    start: int
    stop: int | None
    layers: LayerChoice
    signals: Iterable[str]
    epochs: Collection[int] | None
    convention: Convention | None
    flush_every_n_steps: int
    batchnorm: bool
    run_id: str | None
    config_hash: str | None
    log_layers: str | Iterable[str] | None


@dataclass
class Settings:
    """What is recorded of a training, checked as far as it can be without a net.

    Args:
        every_n_steps: Record every n-th step. Or a function ``step -> bool`` that chooses the steps, the same in all
            processes.
        start, stop: Record only steps from ``start`` on, and before ``stop``.
        layers, signals: As in ``SignalProbe``.
        epochs: Epochs, counted from 0, after which figures are drawn; the last one always is among them. By default
            after 1, 2, 4, 8, ... epochs.
        convention: None: figures show the second moment. ``definition`` or ``study``: they show its two parts, ACSM and
            ACV, as they are defined or as the study has them; see ``plot_spp``.
        flush_every_n_steps: Number of recorded steps after which they are fetched and written.
        batchnorm: Whether the gains of batch normalizations are recorded.
        run_id: Names the run in its history; by default a random id, which checkpoints keep. A run with the id of the
            history in the directory starts that anew, unless it is resumed.
        config_hash: Names the run's configuration in its history.
        log_layers: Names or globs of layers whose second moments go to W&B and TensorBoard, too.

    Attributes:
        schedule: Which steps are recorded.

    Raises:
        ValueError: An argument has the wrong type or an impossible value.
    """

    every_n_steps: EveryNSteps = 1
    start: int = 0
    stop: int | None = None
    layers: LayerChoice = None
    signals: Iterable[str] = DEFAULT_SIGNALS
    epochs: Collection[int] | None = None
    convention: Convention | None = None
    flush_every_n_steps: int = 50
    batchnorm: bool = True
    run_id: str | None = None
    config_hash: str | None = None
    log_layers: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.every_n_steps, self.start, self.stop)
        check_integer("flush_every_n_steps", self.flush_every_n_steps, 1)
        for name in ("run_id", "config_hash"):
            check_type(name, _or_empty(getattr(self, name)), str)
        check_type("batchnorm", self.batchnorm, bool)
        if self.convention is not None:
            check_choice("convention", self.convention, get_args(Convention))
        self.layers = checked_choice(self.layers)
        self.signals = several("signals", self.signals)
        self.epochs = None if self.epochs is None else several("epochs", self.epochs)
        self.log_layers = () if self.log_layers is None else several("log_layers", self.log_layers)
        for pattern in self.log_layers:
            check_type("log_layers", pattern, str)
        for signal in self.signals:
            check_choice("signals", signal, SIGNALS)
        for epoch in self.epochs or ():
            check_integer("epochs", epoch, 0)

    def draws_after(self, epoch: int) -> bool:
        """Whether figures are drawn at the end of an epoch that may not be the last one."""
        return epoch in self.epochs if self.epochs is not None else (epoch + 1).bit_count() == 1


def _or_empty(value: Any) -> Any:
    return "" if value is None else value
