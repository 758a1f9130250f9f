"""One training as it is recorded: the probes of a net, the steps that wait to be written, the history and its figures.

What a loop must tell is the same for all loops: where it begins, each step, the end of each epoch, and the end. Those
who know a loop (`sppbench.spp.callback`, `sppbench.spp.recorder`, `sppbench.spp.integrations`) say it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from operator import is_not
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from sppbench.spp.diagnosis.diagnose import diagnose
from sppbench.spp.diagnosis.finding import WATCHED
from sppbench.spp.history.health import Watch, summarize, summarize_batchnorm
from sppbench.spp.history.parts import Origin
from sppbench.spp.history.run_history import RunHistory
from sppbench.spp.loggers import RunLogger, RunLoggers, one_line
from sppbench.spp.probe import batchnorm
from sppbench.spp.probe.batchnorm import BatchNormProbe, BatchNormReadings
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.probe.readings import Readings, to_frame
from sppbench.spp.run_figures import RunFigures
from sppbench.spp.settings import Settings

log = logging.getLogger(__name__)

# So many recorded steps are kept while they cannot be written. With 1,000 layers they are 100 MB.
_KEPT = 1000


class Recording:
    """Records one training of a net. Nothing that fails while it is written or drawn ends the training.

    A process that writes calls `open`; the others record the same steps, as the sums of all are added up.

    Args:
        model: The net; what is recorded of it is there as soon as this object is.
        settings: What is recorded, and how.

    Attributes:
        probe, batchnorm_probe: The probes; the second is None if there is nothing to measure.
        history: The run's history, in the process that writes, as long as it can be written.
        steps_done: The number of optimizer steps until now.
        epoch: The current one, from 0; it may be set.
        epoch_start: Its first step, if that is known.
        in_checkpoint: What a checkpoint should keep after `flush`, for `open`: ``run_id`` and ``history``; empty where
            nothing is written.

    Raises:
        ValueError: ``layers`` match no module.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.settings = settings
        steps: dict[str, Any] = {name: getattr(settings, name) for name in ("every_n_steps", "start", "stop")}
        self.probe = SignalProbe(model, settings.layers, signals=settings.signals, **steps)
        gains = BatchNormProbe(model, **steps) if settings.batchnorm else None
        self.batchnorm_probe = gains if gains is not None and gains.layers else None
        self.history: RunHistory | None = None
        self.in_checkpoint: dict[str, str] = {}
        self._model = model
        self._modules = list(model.modules())
        self._pending: list[Readings] = []
        self._batchnorm_pending: list[BatchNormReadings] = []
        self._loggers = RunLoggers()
        self._figures: RunFigures | None = None
        self._means: dict[int, pd.DataFrame] = {}  # of the epochs to draw, and of the last one
        self._drawn: int | None = None  # the last epoch with figures
        self._finished: int | None = None  # the step of the last figures
        self._watch = Watch()
        self._told: set[tuple[str, str, str]] = set()  # kind, signal and layer of the findings so far
        self._warned = self._warned_of_layers = False
        self.begin(0, 0, 0)

    def is_of(self, model: nn.Module) -> bool:
        """Whether the net still has the modules that it had."""
        modules = list(model.modules())
        return len(modules) == len(self._modules) and not any(map(is_not, modules, self._modules))

    def close(self) -> None:
        """Removes the probes from the net."""
        self.probe.close()
        if self.batchnorm_probe is not None:
            self.batchnorm_probe.close()

    # -- where it begins ----------------------------------------------------------------------------------------------

    def begin(self, step: int, epoch: int, epoch_start: int | None = None) -> None:
        """Begins, or goes on, before a step and in an epoch, both counted from 0.

        Args:
            step, epoch: The next step, and its epoch.
            epoch_start: The first step of this epoch, if it is known.
        """
        self.steps_done, self.epoch, self.epoch_start = step, epoch, epoch_start
        self._set_step()

    def open(
        self, directory: Path, checkpoint: Mapping[str, str] | None = None, loggers: Iterable[RunLogger] = ()
    ) -> None:
        """Begins the run's history after `begin`, or goes on with it: in the process that writes.

        Args:
            directory: Made if there is none.
            checkpoint: Of the run that is resumed, if it is known: what `in_checkpoint` was.
            loggers: What is shown the numbers and figures.
        """
        found = checkpoint or {}
        resume_at = self.steps_done or None
        run_id = self.settings.run_id or (found.get("run_id") if resume_at else None) or uuid.uuid4().hex[:8]
        self._loggers = RunLoggers(loggers)
        try:
            self.history = RunHistory(
                directory,
                Origin(run_id=run_id, config_hash=self.settings.config_hash),
                resume_at=resume_at,
                earlier=Path(found["history"]) if found.get("history") else None,
                batchnorm=self.batchnorm_probe is not None,
                schedule=self.settings.schedule,
                blocks=self.probe.blocks,
            )
            self.in_checkpoint = {"run_id": run_id, "history": str(self.history.path.absolute())}
            self._figures = RunFigures(self.history.path, self.settings.epochs, self.settings.convention, self._loggers)
            if resume_at:
                last = self.epoch - 1
                past = [epoch for epoch in range(self.epoch) if self.settings.draws_after(epoch) or epoch == last]
                self._means = self.history.means(past)
        except Exception as error:  # a directory that cannot be written, a full disk
            self.history = None
            log.warning(f"signals are not recorded: {directory} cannot be written ({one_line(error)})")

    def _set_step(self) -> None:
        # By the loop's count: it is what a checkpoint restores, also where a batch makes several optimizer steps.
        self.probe.step = self.steps_done
        if self.batchnorm_probe is not None:
            self.batchnorm_probe.step = self.steps_done

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.probe.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.probe.epoch = epoch
        if self.batchnorm_probe is not None:
            self.batchnorm_probe.epoch = epoch

    # -- each step ----------------------------------------------------------------------------------------------------

    def end_step(self, steps_done: int, loss_scale: float | Tensor = 1.0) -> None:
        """Ends a step, in every process: they add up what they have recorded. Only the first one keeps it.

        Args:
            steps_done: The number of optimizer steps until now.
            loss_scale: What the loss was multiplied with before ``backward()``.
        """
        self.steps_done = steps_done
        readings = self.probe.readings(loss_scale)
        gains = self.batchnorm_probe.readings() if self.batchnorm_probe is not None else None
        self._set_step()
        if self.history is not None:
            self._pending += [readings] if readings is not None else []
            self._batchnorm_pending += [gains] if gains is not None else []
        if len(self._pending) % self.settings.flush_every_n_steps == 0 and readings is not None:
            self.flush()

    def flush(self) -> None:
        """Writes the steps that wait: what a checkpoint has seen must be on disk."""
        if self.history is None:
            return
        try:
            self._write(self.history)
        except Exception as error:  # a full disk, a folder that is gone
            self._keep(self.history.path, error)

    def _write(self, history: RunHistory) -> None:
        gains = batchnorm.to_frame(self._batchnorm_pending) if self._batchnorm_pending else None
        history.append_gains(gains, self.steps_done)
        self._batchnorm_pending = []
        rows = to_frame(self._pending) if self._pending else None
        history.append_signals(rows, self.steps_done)
        self._pending = []
        if rows is not None:
            self._watch.look(rows)
            self._log_layers(rows)

    def _log_layers(self, rows: pd.DataFrame) -> None:
        """Hands the second moments of the chosen layers in the last of some steps to the loggers."""
        patterns = tuple(self.settings.log_layers or ())
        if not patterns:
            return
        rows = rows[rows["step"] == rows["step"].iloc[-1]]
        chosen = {name for name in rows["layer"].unique() if any(fnmatchcase(name, pattern) for pattern in patterns)}
        rows = rows[rows["layer"].isin(chosen)]
        names = "spp_" + rows["signal"] + "/" + rows["layer"]
        if not chosen and not self._warned_of_layers:
            self._warned_of_layers = True
            log.warning(f"no layer that is recorded matches log_layers, {', '.join(map(repr, patterns))}")
        elif chosen:
            values = dict(zip(names, rows["second_moment"], strict=True))
            self._loggers.log_layers(values, int(rows["step"].iloc[0]))

    def _keep(self, path: Path, error: Exception) -> None:
        """Keeps the steps that could not be written for the next try, up to a limit."""
        if not self._warned:
            self._warned = True
            log.warning(
                f"the steps up to {self.steps_done - 1} could not be written to {path} ({one_line(error)}). The run "
                f"goes on; up to {_KEPT} recorded steps are kept, and writing them is tried again"
            )
        if max(len(self._pending), len(self._batchnorm_pending)) >= _KEPT:
            log.warning(
                f"{path} ends here, because its steps could not be written ({one_line(error)}); the run goes on"
            )
            self.history, self._pending, self._batchnorm_pending = None, [], []

    # -- at the end of an epoch, and of training ----------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Notes where an epoch begins. A run that is resumed may be in the middle of one."""
        resumed = self.history is not None and self.history.resume_at == self.steps_done
        self.epoch_start = None if resumed else self.steps_done

    def end_epoch(self, is_last: bool = False) -> dict[str, float]:
        """Writes, hands the scalars of the epoch's means to the loggers, and draws the figures of this epoch.

        Args:
            is_last: Whether no other epoch follows: the last figures are drawn, too.

        Returns:
            The scalars; none in a process that does not write, or if no step of the epoch was recorded.
        """
        self.flush()
        try:
            return self._end_epoch(is_last)
        except Exception as error:  # a disk that cannot be read
            log.warning(f"the means of epoch {self.epoch} were not computed ({one_line(error)})")
            return {}

    def _end_epoch(self, is_last: bool) -> dict[str, float]:
        epoch, history = self.epoch, self.history
        steps = None if self.epoch_start is None else range(self.epoch_start, self.steps_done)
        means = history.means([epoch], steps).get(epoch) if history is not None else None
        if means is None or history is None:  # another process, or no step of this epoch was recorded
            return {}
        drawn = {past: one for past, one in self._means.items() if self.settings.draws_after(past)}
        self._means = drawn | {epoch: means}
        scalars = {f"spp/{name}": value for name, value in summarize(means).items()}
        if (gains := history.gains(epoch, steps)) is not None:
            scalars |= {f"batchnorm/{name}": value for name, value in summarize_batchnorm(gains).items()}
        self._warn_of_findings(gains)
        self._loggers.log_scalars({"epoch": epoch, **scalars}, self.steps_done - 1)
        if self.settings.draws_after(epoch):
            self._draw(epoch)
        if is_last:
            self._draw_last()  # now: a run that is killed after its last checkpoint does not come back here
        return scalars

    def _warn_of_findings(self, gains: pd.DataFrame | None) -> None:
        """Says what is wrong in the means of the epochs, once; what `Watch` sees in each step it has said."""
        try:
            findings = diagnose(pd.concat(self._means.values()), self._model, batchnorm=gains)
        except Exception as error:  # of any kind: a net that says of itself what is not so
            log.warning(f"epoch {self.epoch} was not diagnosed ({one_line(error)})")
            return
        for one in findings:
            if one.kind not in WATCHED and (one.kind, one.signal, one.layer) not in self._told:
                self._told |= {(one.kind, one.signal, layer) for layer in (one.layer, *one.others)}
                log.warning(f"{one.kind}: {one.text} ({one.source})")

    def finish(self) -> None:
        """Ends a training that has come to its end, as the number of its steps may say."""
        self.flush()
        self._draw_last()

    def _draw_last(self) -> None:
        if not self._means or self._figures is None or self._finished == self.steps_done:
            return
        self._finished = self.steps_done
        last = max(self._means)
        if last != self._drawn:
            self._draw(last)
        self._figures.draw_heatmaps(set(self._means[last]["signal"]), self.steps_done - 1)

    def _draw(self, epoch: int) -> None:
        self._drawn = epoch
        if self._figures is not None:
            self._figures.draw_epoch(pd.concat(self._means.values()), epoch, self.steps_done - 1)


def loss_scale_of(scaler: Any) -> float | Tensor:
    """What a ``GradScaler`` multiplies the loss with now, without waiting for the device; 1 for None."""
    scale = getattr(scaler, "_scale", None)
    if isinstance(scale, Tensor):
        return scale.detach().clone()  # the scaler changes its own in place
    return float(scaler.get_scale()) if scaler is not None else 1.0
