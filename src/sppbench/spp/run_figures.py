"""The figures of a run while it trains: drawn, written, and handed to its loggers. None that fails ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from sppbench.files import replacing
from sppbench.spp.history.reader import read_history
from sppbench.spp.plots.curves import Convention
from sppbench.spp.plots.heatmap import plot_heatmap
from sppbench.spp.plots.panels import plot_gradient, plot_spp

log = logging.getLogger(__name__)


class RunFigures:
    """Draws the figures of one run. A figure that fails is a warning that says how to draw it later.

    Args:
        history: The run's ``spp.parquet``; figures go beside it, named as it is: ``spp_epoch=0.png``.
        epochs: Of which the panels show the curves, as far as they are over.
        convention: See `plot_spp`.
    """

    def __init__(self, history: Path, epochs: Collection[int], convention: Convention) -> None:
        self._history, self._epochs, self._convention = history, epochs, convention
        self._failed: set[str] = set()  # loggers

    def draw_epoch(self, trainer: Trainer, means: pd.DataFrame, epoch: int) -> None:
        """The panels, and of a run whose gradients are recorded the gradient figure, at the end of an epoch."""
        options = {"epochs": [*(one for one in self._epochs if one < epoch), epoch], "convention": self._convention}
        self._draw(trainer, "panels", f"epoch={epoch}", plot_spp, options, means)
        if "gradient" in set(means["signal"]):
            self._draw(trainer, "gradients", f"gradient_epoch={epoch}", plot_gradient, options, means)

    def draw_heatmaps(self, trainer: Trainer, signals: Collection[str]) -> None:
        """The heat maps of the whole history, at the end of training."""
        for signal in ("activation", "gradient"):
            if signal in signals:
                self._draw(trainer, f"heatmap_{signal}", f"heatmap_{signal}", plot_heatmap, {"signal": signal})

    def _draw(
        self,
        trainer: Trainer,
        key: str,
        name: str,
        plot: Callable[..., Figure],
        options: dict[str, Any],
        means: pd.DataFrame | None = None,
    ) -> None:
        """Draws by ``plot(frame, **options)``; the frame is the means, or what the history holds of ``signal``."""
        path = self._history.with_name(f"{self._history.stem}_{name}.png")
        try:
            frame = means if means is not None else read_history(self._history, signals=options["signal"])
            figure = plot(frame, **options)
            with replacing(path) as file:
                figure.savefig(file, format="png")
        except Exception as error:  # of any kind: fonts, LaTeX, a full disk, a history with a gap
            later = self._command(plot.__name__, options, path)
            log.warning(f"{path} was not drawn ({_one_line(error)}). To draw it later: {later}")
            return
        for logger in trainer.loggers:
            try:
                _log_figure(logger, f"spp/{key}", figure, path, trainer.global_step - 1)
            except Exception as error:
                if (kind := type(logger).__name__) not in self._failed:
                    self._failed.add(kind)
                    log.warning(
                        f"{kind} did not take {path} ({_one_line(error)}); it stays where it is, and figures that "
                        f"{kind} does not take later are not named"
                    )

    def _command(self, plot: str, options: dict[str, Any], path: Path) -> str:
        chosen = f", signals={options['signal']!r}" if "signal" in options else ""
        named = "".join(f", {name}={value!r}" for name, value in options.items())
        code = f"{plot}(read_history({str(self._history)!r}{chosen}){named}).savefig({str(path)!r})"
        return f'python -c "from sppbench.spp import {plot}, read_history; {code}"'


def _log_figure(logger: Logger, key: str, figure: Figure, path: Path, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [str(path)], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(key, figure, global_step=step, close=False)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
