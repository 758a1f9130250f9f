"""What a probe asks about the processes that train its model; without ``torch.distributed``, nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from sppbench.spp.probe.processes import Held, Processes, ProcessGroup

if TYPE_CHECKING:
    from sppbench.spp.probe.shards import Shards

_PLAIN = (Tensor, nn.Parameter)


class Spread:
    """How a model, its batch and its tensors are spread over processes.

    Args:
        model: As it is called: the wrapper, where there is one.
        process_group: The processes with which this one shares the batch; see ``SignalProbe``.

    Attributes:
        processes: Those that train the model together.
        tensor_parallel: Whether a plain tensor may be a part of one.
    """

    def __init__(self, model: nn.Module, process_group: ProcessGroup) -> None:
        self._model, self._process_group = model, process_group
        self._shards: Shards | None = None
        self.find()

    def find(self) -> None:
        """Looks at the model as it is now: it may have been wrapped or spread since."""
        self.processes = Processes(alone=self._process_group is None)
        if dist.is_available() and dist.is_initialized():
            from sppbench.spp.probe.shards import Shards, processes_of  # which takes a second to import

            if self._process_group is not None:
                self.processes = processes_of(self._model, self._process_group)
            self._shards = Shards(self.processes, self._model)
        # A plain attribute: compiled graphs are guarded by it.
        self.tensor_parallel = self.processes.tensor_parallel > 1

    def is_whole(self, x: Tensor) -> bool:
        """Whether a tensor of the batch has all its elements here; cheap, and may be asked in a compiled graph."""
        return not self.tensor_parallel and type(x) in _PLAIN

    def held(self, x: Tensor, axis: int | None) -> Held:
        """The elements of a tensor of the batch that are here, and their share of it.

        Args:
            x: As a module returns it.
            axis: The channel axis of the whole tensor.

        Raises:
            Unknown: What this process holds of it cannot be said.
        """
        return Held(x, None) if self._shards is None else self._shards.held(x, axis)

    def ndim(self, parameter: nn.Parameter) -> int:
        """The number of dimensions of a whole weight."""
        return parameter.ndim if self._shards is None else self._shards.ndim(parameter)

    def held_of_weight(self, parameter: nn.Parameter, x: Tensor) -> Held:
        """As :meth:`held`, of a weight, whose channels are its first axis, or of what has its shape."""
        return Held(x.detach(), None) if self._shards is None else self._shards.held_of_weight(parameter, x.detach())
