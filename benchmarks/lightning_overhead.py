"""What Lightning adds to a training step, beside a bare loop on the same batches, in one run, as a Markdown table.

    python benchmarks/lightning_overhead.py [--rounds 5] [--cases ffnn_h100:512 ffnn:512 efficientnet_bn:128]

The variants take turns; each call does some steps and returns the seconds of a step. Lightning is set up as
``sppbench.train`` does it: the Classifier with its metrics, the callbacks for progress, time and divergence, the CSV
logger; without the probe, whose cost ``spp_overhead.py`` measures, and without validation and checkpoints.
"""

import argparse
import logging
import tempfile
import time
import warnings
from functools import partial
from itertools import chain, islice, repeat
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from machine import describe
from rounds import in_turns, markdown, ratio, spread, timed
from sppbench.data import Synthetic
from sppbench.files import config_directory
from sppbench.run.callbacks import Progress, StopOnNonFiniteLoss, Stopwatch
from sppbench.run.classifier import Classifier
from sppbench.run.csv_logger import CSVLogger
from sppbench.run.memory import prepare_memory

ADAM = partial(torch.optim.Adam, fused=True)


def make_net(name: str, device: torch.device) -> nn.Module:
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = compose("train", [f"model={name}", "name=benchmark"])
    torch.manual_seed(0)
    net: nn.Module = instantiate(cfg.model)
    return net.to(device, memory_format=torch.channels_last)


class Bare:
    """A plain loop that reads nothing back."""

    def __init__(self, name: str, data: Synthetic, steps: int, device: torch.device) -> None:
        self.net, self.steps, self.device = make_net(name, device), steps, device
        self.optimizer = ADAM(self.net.parameters())
        self.batches = chain.from_iterable(repeat(data.train_dataloader()))

    def run(self) -> None:
        for images, labels in islice(self.batches, self.steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.net(images), labels).backward()
            self.optimizer.step()

    def __call__(self) -> float:
        return timed(self.run, self.device) / self.steps


class Mark(Callback):
    """Remembers when the first step began (after one to warm up) and when the last one ended."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if pl_module.device.type == "cuda" and trainer.global_step in (1, trainer.max_steps):
            torch.cuda.synchronize()
        self.end = time.perf_counter()


class Lightning:
    """The same under Lightning; a call is one ``fit``."""

    def __init__(self, name: str, data: Synthetic, steps: int, device: torch.device, folder: str) -> None:
        self.classifier = Classifier(make_net(name, device), ADAM, data.num_classes)
        self.data, self.steps, self.accelerator, self.folder = data, steps, device.type, folder

    def __call__(self) -> float:
        stopwatch, mark = Stopwatch(), Mark()
        trainer = Trainer(
            accelerator="gpu" if self.accelerator == "cuda" else "cpu",
            devices=1,
            max_steps=self.steps + 1,
            logger=CSVLogger(f"{self.folder}/metrics.csv"),
            callbacks=[stopwatch, StopOnNonFiniteLoss(), Progress(stopwatch), mark],
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=10,
            deterministic=True,
        )
        trainer.fit(self.classifier, self.data.train_dataloader())
        return (mark.end - mark.start) / self.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up")
    parser.add_argument("--steps", type=int, default=10, help="steps of each call")
    parser.add_argument("--cases", nargs="+", default=["ffnn_h100:512", "ffnn:512", "efficientnet_bn:128"])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if options.device.type == "cpu":
        prepare_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, _, batch in (case.partition(":") for case in options.cases):
            data = Synthetic(32 * int(batch), batch_size=int(batch))
            data.prepare_data()
            data.setup()
            make = partial(Lightning, name, data, options.steps, options.device, folder)
            variants = {"bare": Bare(name, data, options.steps, options.device), "lightning": make()}
            times = in_turns(variants, options.rounds)
            bare, ours = times["bare"], times["lightning"]
            added = 1e3 * (median(ours) - median(bare))
            cells = [f"{1e3 * median(bare):.1f}", f"{1e3 * median(ours):.1f}", spread(ours, 1e3)]
            rows.append([f"{name}, batch {batch}", *cells, f"{added:+.1f}", f"{ratio(ours, bare):.2f}"])
    print(f"{describe()}; device {options.device}, {options.rounds} rounds of {options.steps} steps\n")
    header = ["net", "bare loop, ms a step", "Lightning", "range", "difference", "ratio"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
