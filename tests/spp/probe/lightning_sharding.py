"""Lightning's strategies that spread a net over two processes, with the callback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.connectors import accelerator_connector
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from sppbench.spp.callback import SPPCallback
from sppbench.spp.history.reader import read_history
from tests.spp.probe.sharding import SIGNALS, STEPS, Block, Net, batch, sharded, tensor_parallel
from tests.spp.reference import seeded


class Module(lightning.LightningModule):
    """Trains the net as ``sharding.train`` does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.net, self.way = seeded(Net), way

    def configure_model(self) -> None:
        mesh: Any = self.device_mesh
        if self.way == "FSDP2":
            sharded(self.net, mesh["data_parallel"])
        elif self.way == "tensor parallel":
            tensor_parallel(self.net, mesh["tensor_parallel"])

    def training_step(self, x: Tensor, index: int) -> Tensor:
        return self.net(x).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OnCPU(FSDPStrategy):
    """FSDPStrategy takes its device from a GPU; torch's FSDP itself runs on a CPU."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def strategies() -> dict[str, Strategy]:
    return {
        "FSDP2": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        "tensor parallel": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
        "FSDP1": OnCPU(use_orig_params=True, auto_wrap_policy={Block}),
    }


def histories(rank: int, number: int, directory: Path) -> dict[str, pd.DataFrame]:
    """What the callback recorded by each strategy; in the first process."""
    os.environ |= {"WORLD_SIZE": str(number), "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    # It refuses FSDPStrategy without a GPU.
    accelerator_connector._AcceleratorConnector._check_strategy_and_fallback = lambda self: None  # type: ignore[method-assign]
    found = {}
    for way, strategy in strategies().items():
        parts = 1 if way == "tensor parallel" else number
        batches: Any = [batch(step).chunk(parts)[rank if parts > 1 else 0] for step in range(STEPS)]
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=number,
            strategy=strategy,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[SPPCallback(directory=directory / way, signals=SIGNALS, epochs=())],
        )
        trainer.fit(Module(way), DataLoader(batches, batch_size=None))
        if rank == 0:
            found[way] = read_history(directory / way / "spp.parquet")
    return found
