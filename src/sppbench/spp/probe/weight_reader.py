"""Reads the weights of a model in a step: as they are, their gradients, and what the optimizer changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from sppbench.spp.probe.order import LayerOrder
from sppbench.spp.probe.processes import Held, Share, Unknown
from sppbench.spp.probe.readings import Key
from sppbench.spp.probe.spread import Spread
from sppbench.spp.probe.weights import Weight, WeightSums, can_be_read, sums_of_sparse


class WeightReader:
    """Sums over the channels of weights and of what belongs to them.

    Args:
        weights: By name.
        spread: How they are spread over processes.
        order: Takes the reasons why one cannot be read.
        signals: Those of the probe; others than ``parameter``, ``parameter_gradient`` and ``update`` are not its own.

    Attributes:
        sums, shares: Of this step, by signal and name; a weight that is whole here has no share.
    """

    def __init__(
        self, weights: Mapping[str, Weight], spread: Spread, order: LayerOrder, signals: Collection[str]
    ) -> None:
        self._weights, self._spread, self._order, self._signals = weights, spread, order, signals
        self._weight_sums = WeightSums()
        self.clear()

    def clear(self) -> None:
        """Forgets the step."""
        self.sums: dict[Key, Tensor] = {}
        self.shares: dict[Key, Share] = {}
        self._before: dict[str, Held] | None = None

    def are_trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer has one of the weights."""
        own = {id(weight.parameter) for weight in self._weights.values()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def read(self) -> None:
        """Reads the weights as they are, once a step."""
        if self._before is not None:
            return
        weights = self._held(lambda parameter: parameter)
        if "parameter" in self._signals:
            self._add("parameter", weights)
        kept = weights if "update" in self._signals else {}
        self._before = {name: Held(one.local.clone(), one.share) for name, one in kept.items()}

    def read_gradients(self) -> None:
        """Reads the gradients as they are now."""
        if "parameter_gradient" not in self._signals:
            return
        dense = self._held(lambda parameter: parameter.grad)
        self._add("parameter_gradient", dense)
        for name in self._weights.keys() - dense.keys():
            parameter = self._weights[name].parameter
            gradient = None if parameter is None else parameter.grad
            if gradient is None or gradient.layout == torch.strided:
                continue
            if gradient.layout == torch.sparse_coo:
                self.sums["parameter_gradient", name] = sums_of_sparse(gradient)
            else:
                self._order.note(name, f"its parameter_gradient is {str(gradient.layout).removeprefix('torch.')}")

    def complete(self) -> None:
        """Reads what has not been read yet, at the end of a step, and what has changed in it."""
        self.read()
        if not any(signal == "parameter_gradient" for signal, _ in self.sums):
            self.read_gradients()
        before = self._before or {}
        after = self._held(lambda parameter: parameter) if before else {}
        changes = {
            name: Held(after[name].local - one.local, one.share)
            for name, one in before.items()
            if name in after and after[name].local.shape == one.local.shape
        }
        self._add("update", changes)

    def _held(self, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Held]:
        """What this process holds of weights, or of what belongs to them."""
        found = {}
        for name, weight in self._weights.items():
            parameter = weight.parameter
            x = None if parameter is None else of(parameter)
            if parameter is None:
                self._order.skipped[name] = "its weight is no longer a parameter"
            elif x is not None and can_be_read(x):
                try:
                    held = self._spread.held_of_weight(parameter, x)
                except Unknown as reason:
                    self._order.skipped[name] = str(reason)
                    continue
                if held.share is not None or held.local.numel():  # of a weight that is spread, there may be none here
                    found[name] = held
        return found

    def _add(self, signal: str, weights: Mapping[str, Held]) -> None:
        sums = self._weight_sums(weights)
        self.sums |= {(signal, name): one for name, one in sums.items()}
        self.shares |= {(signal, name): one.share for name, one in weights.items() if one.share is not None}
