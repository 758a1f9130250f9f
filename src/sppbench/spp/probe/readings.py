"""What a probe returns at the end of a step, and the way there: sums → totals over processes → statistics → table."""

from __future__ import annotations

import itertools
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppbench.spp.names import COLUMNS, OF_BATCH, SIGNALS
from sppbench.spp.probe.processes import Processes, Share
from sppbench.spp.sums.batched import TAIL, Fold, Layout, Plans, channels_of
from sppbench.spp.sums.statistics import statistics

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """What is the same at every step for one signal at one layer."""

    depth: int
    layer: str
    kind: str
    signal: str
    ndim: int
    channels: int


@dataclass(frozen=True)
class Readings:
    """The statistics of one step, still on the device: ``values`` (len(rows), 8), float64, see ``Statistics``."""

    step: int
    epoch: int
    rows: tuple[Row, ...]
    values: Tensor


_RANKS: dict[str, int] = {signal: rank for rank, signal in enumerate(SIGNALS)}

# A signal and the name of a layer.
Key = tuple[str, str]
ALONE = Processes()
_NONE: Mapping[Key, Share] = MappingProxyType({})


class DifferentNets(Exception):
    """Processes whose sums were to be added up have recorded no layer in common, as stages of a pipeline do."""


class Reducer:
    """Forms the statistics of steps; what steps with the same sums share is computed once.

    With a GPU that is busy for a few milliseconds a step, a microsecond for each of hundreds of tensors matters.
    """

    def __init__(self) -> None:
        self._plans = Plans[_Plan]()
        self._warned = False

    def __call__(
        self,
        sums: Mapping[Key, Tensor],
        row: Callable[[Key, int], Row],
        rows: int,
        loss_scale: float | Tensor,
        processes: Processes = ALONE,
        shares: Mapping[Key, Share] = _NONE,
    ) -> tuple[tuple[Row, ...], Tensor]:
        """Rows in order and their statistics (len(rows), 8); of processes that recorded different layers, of all.

        Args:
            sums: What ``sums_of`` gives, or a total of it, by its key.
            row: Key and number of channels → row.
            rows: Another number for other rows of the same keys.
            loss_scale: What gradients are to be divided by.
            processes: Those that call this with their own sums.
            shares: What this process holds of tensors that are spread over them.

        Raises:
            DifferentNets: Two processes have recorded no layer in common.
        """
        tensors = sums.values()
        shapes, devices = tuple([x.shape for x in tensors]), tuple([x.get_device() for x in tensors])
        key = rows, tuple(sums), shapes, devices, tuple(shares.items())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(sums, _in_order(sums, row, shares), processes, shares)
        if processes.groups and not processes.agree(plan.checksum, plan.device):
            plan = self._of_all(key, plan, sums, processes, shares)
        vector = plan.vector(sums)
        processes.add_up(vector, plan.layout.tails[-1])
        found = statistics(vector, plan.layout)
        if processes.groups:  # of numbers that each of several processes has counted a part
            found = found._replace(nonfinite=found.nonfinite.round(), samples=found.samples.round())
        # DistributedDataParallel averages the losses: the gradient of the average is smaller by the number of them.
        scale: float | Tensor = loss_scale * processes.data
        if isinstance(scale, Tensor):
            scale = scale.to(plan.device, torch.float64)
        if isinstance(scale, Tensor) or scale != 1:
            factor = torch.where(plan.is_gradient, torch.ones_like(found.acsm) / scale, 1.0)
            found = found._replace(
                acsm=found.acsm * factor.square(),
                acv=found.acv * factor.square(),
                mean=found.mean * factor,
                absmax=found.absmax * factor,
            )
        return plan.rows, torch.stack(found, dim=1)

    def _of_all(
        self,
        key: tuple[Any, ...],
        own: _Plan,
        sums: Mapping[Key, Tensor],
        processes: Processes,
        shares: Mapping[Key, Share],
    ) -> _Plan:
        """The plan of a step in which processes have recorded different layers."""
        everywhere = processes.gather(own.rows)
        if not self._warned:
            self._warned = True
            log.warning(
                "the processes recorded different layers in a step; the statistics of a layer cover the processes "
                "that ran it"
            )
        rows = _united(everywhere)
        plan = self._plans.get((key, rows))
        if plan is None:
            plan = self._plans[key, rows] = _Plan(sums, rows, processes, shares)
        return plan


class _Plan:
    """The order of some rows and what follows from it.

    Args:
        sums: Those of this process.
        rows: Of all processes, in order.
        processes: Those that add up their vectors.
        shares: What this process holds of tensors that are spread over them.
    """

    def __init__(
        self, sums: Mapping[Key, Tensor], rows: Sequence[Row], processes: Processes, shares: Mapping[Key, Share]
    ) -> None:
        self.rows = tuple(rows)
        self._order = [key for one in rows if (key := (one.signal, one.layer)) in sums]
        devices = {one.device for one in sums.values()}
        self.device, self._one_device = processes.device(list(devices)), len(devices) == 1
        self._fold = Fold([tuple(sums[key].shape) for key in self._order], self.device)
        self.layout = Layout([row.channels for row in rows], self.device)
        self.checksum = zlib.crc32(repr(self.rows).encode())
        self.is_gradient = torch.tensor([row.signal == "gradient" for row in rows], device=self.device)
        self._places: Tensor | None = None
        if processes.size > 1 or shares:
            self._place(sums, processes, shares)

    def vector(self, sums: Mapping[Key, Tensor]) -> Tensor:
        """The sums of this process, in the places that they have in the vector of all: (Σ(C_r + 7),)."""
        ordered = [sums[key] for key in self._order]
        if not self._one_device:
            ordered = [one.to(self.device, non_blocking=True) for one in ordered]
        if self._places is None:
            return self._fold(ordered)
        vector = torch.zeros(self._length, dtype=torch.float64, device=self.device)
        return vector.index_copy_(0, self._places, self._fold(ordered) * self._weights) if ordered else vector

    def _place(self, sums: Mapping[Key, Tensor], processes: Processes, shares: Mapping[Key, Share]) -> None:
        """Where the sums of this process go, and how much they count, so that those of all add up."""
        places, weights, start = [], [], 0
        for row in self.rows:
            key = (row.signal, row.layer)
            end, tail = start + row.channels, len(TAIL)
            if key in sums:
                copies = 1.0 if row.signal in OF_BATCH else float(processes.size)
                share = shares.get(key) or Share(copies, row.channels)
                held = torch.arange(row.channels) if share.held is None else share.held
                places += [held + start, torch.arange(end, end + tail)]
                weight = torch.full((len(held) + tail,), 1 / share.copies, dtype=torch.float64)
                of_tail = weight[-tail:]
                of_tail[TAIL.index("count")] *= len(held) / row.channels
                of_tail[TAIL.index("samples")] /= share.pieces
                of_tail[TAIL.index("absmax")] = 1.0
                weights.append(weight)
            start = end + tail
        self._length = start
        self._places = torch.cat(places).to(self.device) if places else torch.zeros(0, dtype=torch.int64)
        self._weights = torch.cat(weights).to(self.device) if weights else torch.zeros(0)


def _in_order(
    sums: Mapping[Key, Tensor], row: Callable[[Key, int], Row], shares: Mapping[Key, Share]
) -> tuple[Row, ...]:
    found = [row(key, shares[key].channels if key in shares else channels_of(one)) for key, one in sums.items()]
    return tuple(sorted(found, key=_rank))


def _united(everywhere: Sequence[Sequence[Row]]) -> tuple[Row, ...]:
    """The rows of all processes; where they differ in one, that of the first process counts.

    Raises:
        DifferentNets: Two processes have no layer in common.
    """
    layers = [{row.layer for row in rows} for rows in everywhere if rows]
    if any(not (one & other) for one, other in itertools.combinations(layers, 2)):
        raise DifferentNets
    found: dict[Key, Row] = {}
    unequal: set[Key] = set()
    for row in itertools.chain(*everywhere):
        known = found.setdefault((row.signal, row.layer), row)
        if known.channels != row.channels:
            unequal.add((row.signal, row.layer))
    return tuple(sorted((row for key, row in found.items() if key not in unequal), key=_rank))


def _rank(row: Row) -> tuple[int, str, int]:
    return row.depth, row.layer, _RANKS[row.signal]


def to_frame(readings: Sequence[Readings]) -> pd.DataFrame:
    """The statistics of some steps, one row per (step, depth, layer, kind, signal), fetched from the device at once."""
    import pandas as pd

    if not readings:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
    values = torch.cat([one.values for one in readings]).cpu().numpy()
    lengths = [len(one.rows) for one in readings]
    rows = [row for one in readings for row in one.rows]
    acsm, acv, mean, nonfinite, _, absmax, zeros, subnormal = values.T
    # A weight has no samples: the batch is that of the activations and gradients of its step.
    samples = np.concatenate(
        [
            np.full(len(one.rows), _samples(one, part))
            for one, part in zip(readings, np.split(values[:, 4], np.cumsum(lengths)[:-1]), strict=True)
        ]
    )
    columns = {
        "step": np.repeat([one.step for one in readings], lengths),
        "epoch": np.repeat([one.epoch for one in readings], lengths),
        "samples": samples,
        "depth": [row.depth for row in rows],
        "layer": [row.layer for row in rows],
        "kind": [row.kind for row in rows],
        "signal": [row.signal for row in rows],
        "ndim": [row.ndim for row in rows],
        "acsm": acsm,
        "acv": acv,
        "second_moment": acsm + acv,
        "mean": mean,
        "nonfinite": nonfinite,
        "absmax": absmax,
        "zeros": zeros,
        "subnormal": subnormal,
    }
    return pd.DataFrame(columns).astype(COLUMNS)


def _samples(one: Readings, counted: np.ndarray) -> int:
    of_batch = [count for row, count in zip(one.rows, counted, strict=True) if row.signal in OF_BATCH]
    return int(of_batch[0]) if of_batch else 0
