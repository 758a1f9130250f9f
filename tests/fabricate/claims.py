"""Runs that never took place, for the claims: accuracies, losses, gradients, gains and inspections."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sppbench.evidence.selection import read_evidence
from sppbench.files import config_directory
from sppbench.study.claims.claim import Claim, Part
from sppbench.study.claims.judge import judge
from tests.fabricate.histories import write_gains, write_signals
from tests.fabricate.runs import SEEDS, write_run

# Of two degrees of freedom Student's t has a closed form: (2p - 1) / sqrt(2p(1 - p)), here at p = 0.975.
T2 = 0.95 / (2 * 0.975 * 0.025) ** 0.5

# Enough of the FFNN: some layers whose gradients count, and some whose do not.
LAYERS = [(f"block{i}.{name}", kind) for i in (0, 8) for name, kind in (("linear", "Linear"), ("activation", "ReLU"))]

CONSTANT = {"classes_predicted": 1, "logits_finite": True, "logit_std": 1e-15}
NAN = {"classes_predicted": 1, "logits_finite": False, "logit_std": None}
LEARNING = {"classes_predicted": 100, "logits_finite": True, "logit_std": 2.4}


def cell(
    directory: Path,
    net: str,
    lr: float,
    accuracies: Sequence[float],
    test: Mapping[str, Any] = LEARNING,
    losses: Sequence[float] | None = None,
    **arguments: Any,
) -> list[Path]:
    """A run for each accuracy, with the study's seeds; with `losses`, each with that of the last of 20 epochs."""
    paths = []
    for number, accuracy in enumerate(accuracies):
        path = write_run(directory, net, lr, SEEDS[number], accuracy, curve=[0.0] * 20, test=dict(test), **arguments)
        if losses is not None:
            rows = [f"{epoch},{9.0 if epoch < 19 else losses[number]}," for epoch in range(20)]
            text = "\n".join(["epoch,train/loss,test/accuracy", *rows, f"20,,{accuracy}"]) + "\n"
            (path / "metrics.csv").write_text(text)
        paths.append(path)
    return paths


def gradients(directory: Path, net: str, seeds: Sequence[int], size: Callable[[int, int], float]) -> list[Path]:
    """Runs of an FFNN whose gradients at the ReLU outputs have size(seed, epoch) times what all nets share."""
    paths = []
    for seed in seeds:
        path = write_run(directory, net, 0.001, seed, 24.0, curve=[0.0] * 20, test=dict(LEARNING))

        def statistics(layer: str, depth: int, epoch: int, signal: str, seed: int = seed) -> tuple[float, float]:
            shared = 1e-7 * (1 + depth)
            # Other layers have sizes of their own, which must not count.
            return 0.0, shared * (size(seed, epoch) if layer.endswith("activation") else len(net))

        write_signals(path, statistics, LAYERS)
        paths.append(path)
    return paths


def gains(runs: Sequence[Path], factors: Callable[[int], tuple[float, float, float]]) -> None:
    """Gains of the hidden blocks, with factors by epoch; the first normalization, which never counts, has others."""
    for run in runs:
        write_gains(run, lambda layer, depth, epoch: (7.0 + epoch, 1.0, 1.0) if depth == 0 else factors(epoch))


def inspection(run: Path, **content: Any) -> None:
    (run / "inspection.json").write_text(json.dumps({"steps": 1580, "batch_norm": {}, "moved": {}} | content))


def rules(file: Path, **changes: Any) -> Path:
    """The project's rules with some values changed; keys are dotted, with __ for a dot."""
    content = yaml.safe_load((config_directory() / "claims.yaml").read_text())
    for place, value in changes.items():
        *parents, name = place.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[name]
        else:
            inner[name] = value
    file.write_text(yaml.safe_dump(content))
    return file


def judged(directory: Path, name: str, file: Path | None = None) -> Claim:
    return {claim.id: claim for claim in judge(read_evidence(directory), file)}[name]


def part(claim: Claim, name: str) -> Part:
    """The only part of this name."""
    (found,) = [part for part in claim.parts if part.name == name]
    return found
