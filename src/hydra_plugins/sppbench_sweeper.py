"""Hydra's way to many runs: which cells there are, which are left, and what became of them."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

if TYPE_CHECKING:
    from sppbench.sweep import Cell

# Jobs write to their run's train.log; the terminal belongs to the sweep.
_QUIET = "++hydra.job_logging.handlers.console.level=ERROR"
_WAIT_SECONDS = 2.0


class SppbenchSweeper(Sweeper):
    """Runs the cells of one or more grids with any launcher, and only those that are not finished on disk.

    A sweep can be stopped at any moment and started again, or be run by several processes at once: they share the work
    through the run directories. A cell that fails does not stop the others.

    Args:
        grids: Each a mapping of a dotted key to a value or a list of values; the cells are all combinations, the first
            key changing slowest. What the command line says about a key replaces it in every grid.
    """

    def __init__(self, grids: ListConfig | None = None) -> None:
        self.grids: list[Any] = list(grids or [{}])
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context  # as Hydra's own sweepers
        self._config, self._loader = config, hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Runs what is left; exits with 1 if a cell failed, and with 2 if the sweep cannot be run as asked."""
        from sppbench.assembly import UsageError
        from sppbench.sweep import SweepError, distinct, dry_run, look_at

        try:
            cells = distinct([self._cell(overrides) for overrides in self._combinations(arguments)])
        except (SweepError, UsageError) as error:
            print(f"sppbench: {error}", file=sys.stderr)
            sys.exit(2)
        if self._config.sweeps.dry_run:
            print(dry_run(self._config.sweeps.name, [look_at(cell) for cell in cells]))
            return []
        return self._run(cells)

    def _combinations(self, arguments: list[str]) -> Iterator[list[str]]:
        """The overrides of each cell."""
        for grid in self.grids:
            lists = {key: list(value) if isinstance(value, ListConfig) else [value] for key, value in grid.items()}
            fixed = [f"{key}={','.join(map(str, values))}" for key, values in lists.items()]
            (combinations,) = BasicSweeper.split_arguments(self._parse([*fixed, *arguments]), None)
            yield from combinations

    def _parse(self, overrides: list[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self._loader).parse_overrides(overrides)

    def _cell(self, overrides: list[str]) -> Cell:
        """The configuration that Hydra would compose. It takes a tenth of a second to do so, and is therefore asked
        only once for all cells that differ in plain values, which Hydra, too, sets when all else is composed."""
        from sppbench.assembly import resolve
        from sppbench.sweep import Cell

        parsed = self._parse(overrides)
        groups = {override.key_or_group for override in parsed if not self._is_leaf(override.key_or_group)}
        values = [override for override in parsed if self._is_plain(override, groups)]
        lines = {override.input_line for override in values}
        others = tuple(override for override in overrides if override not in lines)
        if others not in self._composed:
            self._composed[others] = self._loader.load_sweep_config(self._config, list(others))
        whole = self._composed[others]
        config = DictConfig({key: copy.deepcopy(whole._get_node(key)) for key in whole if key != "hydra"})
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value())
        instance = HydraConfig.instance()
        before = instance.cfg
        try:
            instance.set_config(whole)  # which choice a name stands for
            return Cell(tuple(overrides), resolve(config))
        finally:
            instance.cfg = before

    def _is_plain(self, override: Override, groups: set[str]) -> bool:
        key = override.key_or_group
        changes = override.type is OverrideType.CHANGE and override.package is None
        return changes and self._is_leaf(key) and key.partition(".")[0] not in groups | {"hydra"}

    def _is_leaf(self, key: str) -> bool:
        """Whether it is a value, and neither a group nor a part of the configuration nor unknown."""
        missing = DictConfig({})
        return not OmegaConf.is_config(OmegaConf.select(self._config, key, default=missing))

    def _run(self, cells: Sequence[Cell]) -> list[JobReturn]:
        from sppbench.sweep import FINAL, look_at, showing_progress, summary

        name = self._config.sweeps.name
        failures: dict[Cell, str] = {}
        returns: list[JobReturn] = []
        left = [cell for cell in cells if cell.config["overwrite"] or look_at(cell).state not in (*FINAL, "refused")]
        try:
            with showing_progress(name, cells):
                while left:
                    returns += self._launch(left, len(returns), failures)
                    left = _free_again(cells, failures)
        except (KeyboardInterrupt, SystemExit) as stop:
            print("sppbench: interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
        text, everything_is_done = summary(name, [look_at(cell) for cell in cells], failures)
        print(text)
        if not everything_is_done:
            sys.exit(1)
        return returns

    def _launch(self, cells: Sequence[Cell], first: int, failures: dict[Cell, str]) -> Sequence[JobReturn]:
        """Runs cells by the launcher, and notes which have failed and why."""
        from sppbench.assembly import one_line

        try:
            found = self._launcher.launch([[*cell.overrides, _QUIET] for cell in cells], initial_job_idx=first)
        except Exception as error:  # of the launcher, or of a process that died: the disk tells which cells it hit
            failures |= {cell: one_line(error) for cell in cells}
            return []
        for cell, job in zip(cells, found, strict=True):
            if job.status == JobStatus.FAILED:
                failures[cell] = one_line(job._return_value)
        return found


def _free_again(cells: Sequence[Cell], failures: dict[Cell, str]) -> list[Cell]:
    """Waits for cells that other processes are at work on; returns those that were left unfinished, if any."""
    from sppbench.sweep import FINAL, look_at

    waiting = [cell for cell in cells if cell not in failures]
    while waiting := [cell for cell in waiting if look_at(cell).state not in (*FINAL, "refused")]:
        if free := [cell for cell in waiting if cell.run.is_free()]:
            return free
        time.sleep(_WAIT_SECONDS)
    return []
