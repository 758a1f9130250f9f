"""What a probe returns at the end of a step, and the way there: sums → totals over processes → statistics → table."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sppbench.spp.names import COLUMNS, OF_BATCH, SIGNALS
from sppbench.spp.sums.batched import Fold, Layout, Plans, channels_of
from sppbench.spp.sums.statistics import statistics

if TYPE_CHECKING:
    import pandas as pd


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


class Reducer:
    """Forms the statistics of steps; what steps with the same sums share is computed once.

    With a GPU that is busy for a few milliseconds a step, a microsecond for each of hundreds of tensors matters.
    """

    def __init__(self) -> None:
        self._plans = Plans[_Plan]()

    def __call__(
        self, sums: Mapping[Key, Tensor], row: Callable[[Key, int], Row], rows: int, loss_scale: float | Tensor
    ) -> tuple[tuple[Row, ...], Tensor]:
        """Rows in order and their statistics (len(rows), 8).

        Args:
            sums: What ``sums_of`` gives, or a total of it, by its key; at least one.
            row: Key and number of channels → row.
            rows: Another number for other rows of the same keys.
            loss_scale: What gradients are to be divided by.

        Raises:
            RuntimeError: The processes have not recorded the same layers.
        """
        tensors = sums.values()
        key = (rows, tuple(sums), tuple([x.shape for x in tensors]), tuple([x.get_device() for x in tensors]))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(sums, row)
        ordered = [sums[one] for one in plan.order]
        device = plan.device
        vector = plan.fold(ordered if plan.one_device else [x.to(device, non_blocking=True) for x in ordered])
        processes = _add_up_processes(vector, plan.layout.tails[-1], plan.checksum)
        found = statistics(vector, plan.layout)
        scale: float | Tensor = loss_scale * processes
        if isinstance(scale, Tensor):
            scale = scale.to(device, torch.float64)
        if isinstance(scale, Tensor) or scale != 1:
            # DistributedDataParallel averages the losses: the gradient of the average is smaller by the number of them.
            factor = torch.where(plan.is_gradient, torch.ones_like(found.acsm) / scale, 1.0)
            copies = torch.where(plan.is_of_batch, 1.0, float(processes)).double()
            found = found._replace(
                acsm=found.acsm * factor.square(),
                acv=found.acv * factor.square(),
                mean=found.mean * factor,
                nonfinite=found.nonfinite / copies,
                absmax=found.absmax * factor,
            )
        return plan.rows, torch.stack(found, dim=1)


class _Plan:
    """The order of some rows and what follows from it."""

    def __init__(self, sums: Mapping[Key, Tensor], row: Callable[[Key, int], Row]) -> None:
        found = [(row(key, channels_of(one)), key) for key, one in sums.items()]
        found.sort(key=lambda item: (item[0].depth, item[0].layer, _RANKS[item[0].signal]))
        self.rows, self.order = tuple(one for one, _ in found), [key for _, key in found]
        devices = {one.device for one in sums.values()}
        self.device, self.one_device = next(iter(sums.values())).device, len(devices) == 1
        self.fold = Fold([tuple(sums[key].shape) for key in self.order], self.device)
        self.layout = Layout([row.channels for row in self.rows], self.device)
        self.checksum = zlib.crc32(repr(self.rows).encode())
        self.is_gradient = torch.tensor([row.signal == "gradient" for row in self.rows], device=self.device)
        self.is_of_batch = torch.tensor([row.signal in OF_BATCH for row in self.rows], device=self.device)


def _add_up_processes(vector: Tensor, largest: Tensor, checksum: int) -> int:
    """Adds the vectors of all processes up, in place, and returns their number; at the places ``largest`` is a maximum.

    Raises:
        RuntimeError: The processes have not the same checksum.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return 1
    bounds = torch.tensor([checksum, -checksum], device=vector.device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    if bounds[0] != -bounds[1]:
        raise RuntimeError(
            "the processes have not recorded the same layers in this step, in the same order: "
            "every process must run forward and backward through the same modules between two calls of collect()"
        )
    # As integers, in whose order NaN is the largest of what has no sign: as floats it may get lost.
    absmax = vector[largest].view(torch.int64)
    dist.all_reduce(absmax, op=dist.ReduceOp.MAX)
    dist.all_reduce(vector)
    vector[largest] = absmax.view(torch.float64)
    return dist.get_world_size()


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
