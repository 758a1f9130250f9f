"""Where the numbers and figures of a run are shown while it trains: W&B, TensorBoard, Lightning's loggers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class RunLogger(Protocol):
    """What takes the numbers and figures of a run."""

    name: str

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Takes values by name."""

    def log_layers(self, values: Mapping[str, float], step: int) -> None:
        """Takes values of many layers by name; or does without, where each name is a column."""

    def log_figure(self, key: str, figure: Figure, path: Path, step: int) -> None:
        """Takes a figure, which is also in a file."""


class TensorBoardWriter:
    """Hands everything to a ``torch.utils.tensorboard.SummaryWriter``, or to another class with its methods."""

    def __init__(self, writer: Any) -> None:
        self.name, self._writer = type(writer).__name__, writer

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    log_layers = log_scalars

    def log_figure(self, key: str, figure: Figure, path: Path, step: int) -> None:
        self._writer.add_figure(key, figure, step, close=False)


class WandbRun:
    """Hands everything to a run of W&B, as ``wandb.init`` returns it, with the step as ``spp/step``.

    W&B drops a row whose step is not after that of the row before: what is logged here joins the row that the user's
    own next call of ``log`` completes, so that no count of theirs is changed.
    """

    def __init__(self, run: Any) -> None:
        self.name, self._run = "W&B", run
        self._row: tuple[int, int] | None = None  # the run's count of rows, and the step, when this last logged

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    log_layers = log_scalars

    def log_figure(self, key: str, figure: Figure, path: Path, step: int) -> None:
        import wandb

        self._log({key: wandb.Image(str(path))}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._row is not None and self._row[1] != step and self._row[0] == self._run.step:
            self._run.log({}, commit=True)  # nobody else logs: another step begins a row
        self._run.log({**values, "spp/step": step}, commit=False)
        self._row = (self._run.step, step)


def logger_of(target: Any) -> RunLogger:
    """The logger for a W&B run or a TensorBoard writer.

    Raises:
        ValueError: It is neither.
    """
    if hasattr(target, "add_scalar") and hasattr(target, "add_figure"):
        return TensorBoardWriter(target)
    if hasattr(target, "log") and hasattr(target, "define_metric"):
        return WandbRun(target)
    raise ValueError(f"loggers must be W&B runs or TensorBoard writers (SummaryWriter); got {target!r}")


class RunLoggers:
    """Some loggers. One that fails is named in a warning, once, and what it did not take is left out there.

    Args:
        loggers: Each is given what the others are.
    """

    def __init__(self, loggers: Iterable[RunLogger] = ()) -> None:
        self._loggers = tuple(loggers)
        self._failed: set[str] = set()

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Hands values by name to all loggers."""
        self._each(lambda logger: logger.log_scalars(values, step), "the scalars", "")

    def log_layers(self, values: Mapping[str, float], step: int) -> None:
        """Hands values of layers to all loggers that take them."""
        self._each(lambda logger: logger.log_layers(values, step), "the values of layers", "")

    def log_figure(self, key: str, figure: Figure, path: Path, step: int) -> None:
        """Hands a figure to all loggers."""
        self._each(lambda logger: logger.log_figure(key, figure, path, step), str(path), "it stays where it is, and ")

    def _each(self, hand_over: Callable[[RunLogger], None], what: str, then: str) -> None:
        for logger in self._loggers:
            try:
                hand_over(logger)
            except Exception as error:  # of any kind: a server that is gone, a closed file
                if logger.name not in self._failed:
                    self._failed.add(logger.name)
                    log.warning(
                        f"{logger.name} did not accept {what} ({one_line(error)}); {then}"
                        f"further failures of {logger.name} are not reported"
                    )


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
