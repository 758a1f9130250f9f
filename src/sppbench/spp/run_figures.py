"""The figures of a run while it trains: drawn, written, and handed to its loggers. None that fails ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd

from sppbench.files import replacing
from sppbench.spp.history.reader import read_history
from sppbench.spp.loggers import RunLoggers, one_line
from sppbench.spp.plots.curves import Convention

log = logging.getLogger(__name__)


class RunFigures:
    """Draws the figures of one run. A figure that fails is a warning that says how to draw it later.

    Args:
        history: The run's ``spp.parquet``; figures go beside it, named as it is: ``spp_epoch=0.png``.
        epochs: Of which the panels show the curves, as far as they are over. By default the first, the one nearest to
            the middle of the run until then, and the last.
        convention: See `plot_spp`.
        loggers: They are given the figures, too.
    """

    def __init__(
        self,
        history: Path,
        epochs: Collection[int] | None,
        convention: Convention | None,
        loggers: RunLoggers | None = None,
    ) -> None:
        self._history, self._epochs, self._convention = history, epochs, convention
        self._loggers = loggers if loggers is not None else RunLoggers()

    def draw_epoch(self, means: pd.DataFrame, epoch: int, step: int) -> None:
        """The panels, and of a run whose gradients are recorded the gradient figure, at the end of an epoch.

        Args:
            means: Of this and of earlier epochs, as `epoch_mean` returns them.
            epoch: That which is over.
            step: The last one.
        """
        if self._epochs is None:
            there = [int(one) for one in means["epoch"].unique()]
            past = [min(there), min(there, key=lambda one: abs(one - epoch / 2))]
        else:
            past = [one for one in self._epochs if one < epoch]
        options: dict[str, Any] = {"epochs": list(dict.fromkeys([*past, epoch]))}
        if self._convention is not None:
            options["convention"] = self._convention
        self._draw("panels", f"epoch={epoch}", step, "plot_spp", options, means)
        if "gradient" in set(means["signal"]):
            self._draw("gradients", f"gradient_epoch={epoch}", step, "plot_gradient", options, means)

    def draw_heatmaps(self, signals: Collection[str], step: int) -> None:
        """The heat maps of the whole history, at the end of training."""
        for signal in ("activation", "gradient"):
            if signal in signals:
                self._draw(f"heatmap_{signal}", f"heatmap_{signal}", step, "plot_heatmap", {"signal": signal})

    def _draw(
        self,
        key: str,
        name: str,
        step: int,
        plot: str,
        options: dict[str, Any],
        means: pd.DataFrame | None = None,
    ) -> None:
        """Draws by ``plot(frame, **options)``; the frame is the means, or what the history holds of ``signal``."""
        path = self._history.with_name(f"{self._history.stem}_{name}.png")
        try:
            frame = means if means is not None else read_history(self._history, signals=options["signal"])
            figure = find_plot(plot)(frame, **options)
            with replacing(path) as file:
                figure.savefig(file, format="png")
        except Exception as error:  # of any kind: fonts, LaTeX, a full disk, a history with a gap
            later = self._command(plot, options, path)
            log.warning(f"{path} was not drawn ({one_line(error)}). To draw it later: {later}")
            return
        self._loggers.log_figure(f"spp/{key}", figure, path, step)

    def _command(self, plot: str, options: dict[str, Any], path: Path) -> str:
        chosen = f", signals={options['signal']!r}" if "signal" in options else ""
        named = "".join(f", {name}={value!r}" for name, value in options.items())
        code = f"{plot}(read_history({str(self._history)!r}{chosen}){named}).savefig({str(path)!r})"
        return f'python -c "from sppbench.spp import {plot}, read_history; {code}"'


def find_plot(name: str) -> Callable[..., Any]:
    """`plot_spp`, `plot_gradient` or `plot_heatmap`, imported when it draws: a broken matplotlib must not end a run."""
    from sppbench.spp.plots import heatmap, panels

    plots: dict[str, Callable[..., Any]] = {
        plot.__name__: plot for plot in (panels.plot_spp, panels.plot_gradient, heatmap.plot_heatmap)
    }
    return plots[name]
