"""Hydra's way to many runs: which cells there are, which are left, and what became of them."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

if TYPE_CHECKING:
    from sppbench.run.sweep import SweepCell

# Jobs write to their run's train.log; the terminal belongs to the sweep.
_QUIET = "++hydra.job_logging.handlers.console.level=ERROR"
_WAIT_SECONDS = 2.0
CELL = "sweeps.cell"  # what the place of a cell says of it, besides net, learning rate and seed


class SppbenchSweeper(Sweeper):
    """Runs the cells of one or more grids with any launcher, and only those that are not finished on disk.

    A sweep can be stopped at any moment and started again, or be run by several processes at once: they share the work
    through the run directories. A cell that fails does not stop the others.

    Args:
        grids: Each a mapping of a dotted key to a value or a list of values, written as on the command line; the cells
            are all combinations, the first key changing slowest. What the command line says about a key replaces it in
            every grid.
    """

    def __init__(self, grids: ListConfig | None = None) -> None:
        self.grids: list[Any] = list(grids or [{}])
        self._composed: dict[tuple[str, ...], tuple[DictConfig, Any]] = {}
        self._parsed: dict[str, Override] = {}
        self._swept: set[str] = set()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context  # as Hydra's own sweepers
        self._config, self._loader = config, hydra_context.config_loader
        self._values: Any = OmegaConf.to_container(config)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Runs what is left; exits with 1 if a cell failed, and with 2 if the sweep cannot be run as asked."""
        from sppbench.run.sweep import SweepError, begin, distinct, dry_run, look_at, unfinished_kinds
        from sppbench.run.validation import UsageError

        try:
            cells = distinct(self._cells(arguments))
        except (SweepError, UsageError) as error:
            print(f"sppbench: {error}", file=sys.stderr)
            sys.exit(2)
        if self._config.sweeps.dry_run:
            looks = [look_at(cell) for cell in cells]
            print(dry_run(self._config.sweeps.name, looks, _measured(unfinished_kinds(looks))))
            return []
        return self._run(begin(cells))

    def _cells(self, arguments: list[str]) -> list[SweepCell]:
        """All cells, each at a place that tells what is swept, as far as its grid says it."""
        from sppbench.run.cell_places import cell_folders

        cells = self._once([self._cell(overrides) for overrides in self._combinations(arguments)])
        if not (keys := self._keys_in_places([_said(cell.overrides) for cell in cells], arguments)):
            return cells
        folders = [cell_folders(self._values_of(cell, keys & _said(cell.overrides).keys())) for cell in cells]
        return [
            self._cell([*cell.overrides, f"{CELL}='{folder}'"]) for cell, folder in zip(cells, folders, strict=True)
        ]

    @staticmethod
    def _once(cells: Sequence[SweepCell]) -> list[SweepCell]:
        """Of cells with the same configuration the first: one grid may say what is the default of another."""
        from sppbench.run.run_directory import flatten

        first: dict[str, SweepCell] = {}
        for cell in cells:
            first.setdefault(repr(sorted(flatten(cell.config).items())), cell)
        return list(first.values())

    def _keys_in_places(self, said: Sequence[dict[str, str]], arguments: list[str]) -> set[str]:
        """The keys that have several values and are not in every place; none if the command line says the places.

        Args:
            said: Of each cell the keys of its overrides, and their values as on the command line.
            arguments: Of the command line.
        """
        from sppbench.run.cell_places import ALWAYS
        from sppbench.run.run_directory import NEUTRAL_KEYS

        if _said(arguments).keys() & {"output_dir", CELL}:
            return set()
        texts = {key: {of_cell.get(key) for of_cell in said} for key in set().union(*said)}
        # Grids may say differently what changes nothing that is computed.
        differing = {key for key in texts if len(texts[key]) > 1 and not {key, key.split(".")[0]} & NEUTRAL_KEYS}
        always = ALWAYS - {"model"} if "name" in texts else ALWAYS
        keys = (self._swept | differing) - always
        return {key for key in keys if key.split(".")[0] not in ("hydra", "sweeps", "overwrite")}

    def _values_of(self, cell: SweepCell, keys: set[str]) -> dict[str, Any]:
        """What a cell has for these keys: the choice of a group, a value of the configuration, or what was said."""
        said = _said(cell.overrides)
        groups = {key for key in keys if key in said and self._loader.get_group_options(key)}
        return {key: said[key] if key in groups else _find(cell.config, key, said.get(key)) for key in keys}

    def _combinations(self, arguments: list[str]) -> Iterator[list[str]]:
        """The overrides of each cell; notes the keys that have several values."""
        from sppbench.run.sweep import SweepError

        said = self._parse(arguments)
        if any(override.is_sweep_override() and override.key_or_group == "sweeps" for override in said):
            raise SweepError("one sweep at a time: sweeps= cannot have several values")
        added = {override.key_or_group for override in said if override.type is not OverrideType.CHANGE}
        for grid in self.grids:
            lists = {key: list(value) if isinstance(value, ListConfig) else [value] for key, value in grid.items()}
            fixed = [
                f"{key}={','.join(map(_as_argument, values))}" for key, values in lists.items() if key not in added
            ]
            parsed = self._parse([*fixed, *arguments])
            self._swept |= {override.key_or_group for override in parsed if override.is_sweep_override()}
            try:
                (combinations,) = BasicSweeper.split_arguments(parsed, None)
            except HydraException as error:
                raise SweepError(str(error).splitlines()[0]) from error
            yield from combinations

    def _parse(self, overrides: list[str]) -> list[Override]:
        """Cells share most of their overrides, and Hydra takes a millisecond for each."""
        parser = OverridesParser.create(config_loader=self._loader)
        for line in overrides:
            if line not in self._parsed:
                [self._parsed[line]] = parser.parse_overrides([line])
        return [self._parsed[line] for line in overrides]

    def _cell(self, overrides: list[str]) -> SweepCell:
        """The configuration that Hydra would compose. It takes a tenth of a second to do so, and is therefore asked
        only once for all cells that differ in plain values, which Hydra, too, sets when all else is composed."""
        from sppbench.run.assembly import resolve
        from sppbench.run.sweep import SweepCell

        parsed = self._parse(overrides)
        values = [override for override in parsed if self._is_plain(override, parsed)]
        lines = {override.input_line for override in values}
        others = tuple(override for override in overrides if override not in lines)
        instance = HydraConfig.instance()
        before = instance.cfg
        try:
            if others not in self._composed:
                whole = self._loader.load_sweep_config(self._config, list(others))
                instance.set_config(whole)
                self._composed[others] = whole, instance.cfg
            whole, instance.cfg = self._composed[others]  # which says, too, which choice a name stands for
            config = DictConfig({key: copy.deepcopy(whole._get_node(key)) for key in whole if key != "hydra"})
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value())
            return SweepCell(tuple(overrides), resolve(config))
        finally:
            instance.cfg = before

    def _is_plain(self, override: Override, others: Sequence[Override]) -> bool:
        """Whether it sets a value that is there already, which no other override touches."""
        key = override.key_or_group
        touched = [other.key_or_group for other in others if other is not override and not self._changes_leaf(other)]
        related = any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in touched)
        return self._changes_leaf(override) and not related

    def _changes_leaf(self, override: Override) -> bool:
        node: Any = self._values
        for part in override.key_or_group.split("."):
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        plain = override.type is OverrideType.CHANGE and override.package is None
        # What Hydra knows of a job is known to the job alone.
        told_by_hydra = override.key_or_group.startswith("hydra.") or "${hydra:" in str(override.input_line)
        return plain and not isinstance(node, dict | list) and not told_by_hydra

    def _run(self, cells: Sequence[SweepCell]) -> list[JobReturn]:
        from sppbench.run.results import FINAL
        from sppbench.run.sweep import look_at, showing_progress, summary

        name = self._config.sweeps.name
        failures: dict[SweepCell, str] = {}
        returns: list[JobReturn] = []
        left = [cell for cell in cells if look_at(cell).state not in (*FINAL, "refused")]
        try:
            with showing_progress(name, cells):
                while left:
                    returns += self._launch(left, len(returns), failures)
                    left = _free_again(cells, failures)
        except (KeyboardInterrupt, SystemExit) as stop:
            again = "the same command without overwrite=true" if cells[0].config["overwrite"] else "the same command"
            print(f"sppbench: interrupted; {again} continues from here", file=sys.stderr)
            sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
        text, everything_is_done = summary(name, [look_at(cell) for cell in cells], failures)
        print(text)
        if not everything_is_done:
            sys.exit(1)
        return returns

    def _launch(self, cells: Sequence[SweepCell], first: int, failures: dict[SweepCell, str]) -> Sequence[JobReturn]:
        """Runs cells by the launcher, and notes which have failed and why."""
        from sppbench.run.error_text import one_line
        from sppbench.run.results import FINAL
        from sppbench.run.sweep import look_at

        try:
            found = self._launcher.launch([[*cell.overrides, _QUIET] for cell in cells], initial_job_idx=first)
        except Exception as error:  # of the launcher, or of a process that died: the disk shows which cells it hit
            hit = [cell for cell in cells if look_at(cell).state in ("failed", "interrupted")]
            failures.update(dict.fromkeys(hit or cells, one_line(error)))
            return []
        for cell, job in zip(cells, found, strict=True):
            if job.status == JobStatus.FAILED:
                failures[cell] = one_line(job._return_value)
            elif job.return_value is not None and look_at(cell).state not in (*FINAL, "running"):
                failures[cell] = f"it ended, but left no result in {cell.run.path}"
        return found


def _said(overrides: Sequence[str]) -> dict[str, str]:
    """Keys and values of overrides, as texts."""
    parts = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value for key, _, value in parts}


def _find(config: Any, key: str, default: Any) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def _as_argument(value: Any) -> str:
    return "null" if value is None else str(value)


def _free_again(cells: Sequence[SweepCell], failures: dict[SweepCell, str]) -> list[SweepCell]:
    """Waits for cells that other processes are at work on; returns those that were left unfinished, if any."""
    from sppbench.run.results import FINAL
    from sppbench.run.sweep import look_at

    waiting = [cell for cell in cells if cell not in failures]
    while waiting := [cell for cell in waiting if look_at(cell).state not in (*FINAL, "refused")]:
        if free := [cell for cell in waiting if cell.run.is_free()]:
            return free
        time.sleep(_WAIT_SECONDS)
    return []


def _measured(cells: Mapping[str, SweepCell]) -> dict[str, float]:
    """Kind → seconds that a cell would take, by a few steps; without those whose steps cannot be run here."""
    if not cells:
        return {}
    from sppbench.run.few_steps import seconds_of

    found = {}
    for kind, cell in cells.items():
        print(f"measuring a few steps of {kind}", file=sys.stderr)
        if (seconds := seconds_of(cell.config)) is not None:
            found[kind] = seconds
    return found
