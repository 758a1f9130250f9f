"""Averages the weights over training, beside the run: how good it is but for the noise of its last steps."""

from __future__ import annotations

import copy
import logging
from itertools import chain, islice
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor, nn

from sppbench.run.evaluation import evaluate

log = logging.getLogger(__name__)

# Of Karras et al. 2024's relative widths the larger, 0.10. An average over t steps then has a mean age of 0.11 t.
EXPONENT = 6.94


class WeightAverage(Callback):
    """Keeps the power-function average of the weights and tests it; the run itself is not changed.

    With a constant learning rate the last weights jump about where the average lies. After step t the average moves
    towards the weights by 1 - (1 - 1/t)^(γ + 1), so that the weights of step τ count in proportion to τ^γ (Karras et
    al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3.1). Unlike an exponential
    average, it has no time constant to choose, and nothing in it is left of the initial weights. Buffers of floating
    point, as the statistics of batch normalization, are averaged with the weights; others are copied. It is kept and
    tested in the precision that the net is made in, whatever it is trained in.

    There is none in a run of several processes, of a net that cannot be copied, and in one that is resumed from a
    checkpoint of an older version, which has no average.

    Attributes:
        scores: ``val`` and ``test``, each as `evaluate` gives them; None before the test and where there is no average.
    """

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, float | int | None]] | None = None
        self._average: nn.Module | None = None
        self._step = 0
        self._begun = False  # by the part of the run before it was resumed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.world_size > 1:
            return
        try:  # before a probe hangs on the net
            self._average = copy.deepcopy(pl_module.net).requires_grad_(False).eval()  # type: ignore[union-attr]
        except Exception as error:
            self._end(f"this net cannot be copied ({error})")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is not None:
            self._average.to(pl_module.device)
        self._step = trainer.global_step
        if self._average is not None and self._step and not self._begun:
            self._end("the checkpoint has none, as it is of an older version")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._average is None or trainer.global_step == self._step:  # a part of an accumulated batch
            return
        self._step = trainer.global_step
        share = 1 - (1 - 1 / self._step) ** (EXPONENT + 1)
        try:
            move_towards(self._average, pl_module.net, share)  # type: ignore[arg-type]
        except Exception as error:  # of a net that changes its parameters
            self._end(str(error))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is None:
            return
        try:
            self.scores = self._evaluated(self._average.to(pl_module.device), trainer)
        except Exception as error:  # of data of the user's, after the whole of a training
            self._end(str(error))

    def _evaluated(self, average: nn.Module, trainer: Trainer) -> dict[str, dict[str, float | int | None]]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        parts = {
            "val": (data.val_dataloader(), trainer.limit_val_batches),
            "test": (data.test_dataloader(), trainer.limit_test_batches),
        }
        scores = {}
        for part, (loader, limit) in parts.items():
            # As Lightning reads them: a number of batches, or a share of them.
            number = limit if isinstance(limit, int) else int(len(loader) * limit)
            if number:
                batches = map(trainer.strategy.batch_to_device, islice(loader, number))
                scores[part] = evaluate(average, batches)
        return scores

    def _end(self, why: str) -> None:
        """Goes on without an average, and says so once."""
        log.warning(f"no average of the weights: {why}")
        self._average = None

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average.state_dict()} if self._average is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._average is not None and "average" in state_dict:
            self._average.load_state_dict(state_dict["average"])
            self._begun = True


@torch.no_grad()
def move_towards(average: nn.Module, net: nn.Module, share: float) -> None:
    """Moves each parameter and each buffer of ``average`` by a share, 0 to 1, of the way to those of ``net``.

    The two have equal parts. Tensors that are not of floating point are copied.
    """
    pairs = zip(_tensors(average), _tensors(net), strict=True)
    averages, values = [], []
    for a, b in pairs:
        if a.is_floating_point():
            averages.append(a)
            values.append(b.to(a.dtype))
        else:
            a.copy_(b)
    torch._foreach_lerp_(averages, values, share)


def _tensors(net: nn.Module) -> chain[Tensor]:
    return chain(net.parameters(), net.buffers())
