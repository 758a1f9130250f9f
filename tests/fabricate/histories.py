"""Histories that no run recorded, with values that a test chooses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from sppbench.spp.history.writer import BatchNormWriter, HistoryWriter

# (layer, depth, epoch, signal) -> (acsm, acv)
Statistics = Callable[[str, int, int, str], tuple[float, float]]
# (layer, depth, epoch) -> (gamma_squared, inverse_variance, projection)
Factors = Callable[[str, int, int], tuple[float, float, float]]

SIGNALS = ("activation", "gradient", "parameter")
# Of a run, as its result says; those that are not in a history count as not recorded.
STEPS = 1580


def ffnn_layers(batch_norm: bool = True) -> list[tuple[str, str]]:
    """Names and kinds of the leaves of the study's FFNN."""
    parts = [("linear", "Linear"), ("norm", "BatchNorm1d"), ("activation", "ReLU")]
    parts = [part for part in parts if batch_norm or part[0] != "norm"]
    blocks = [(f"block{i}.{name}", kind) for i in range(9) for name, kind in parts]
    return [("flatten", "Flatten"), *blocks, ("classifier", "Linear")]


def write_signals(
    run: Path,
    statistics: Statistics,
    layers: Sequence[tuple[str, str]] | None = None,
    epochs: Sequence[int] = (0, 9, 19),
    batches: Sequence[int] = (512, 64),
    scales: Sequence[float] | None = None,
    ndim: int = 2,
    batchnorm: bool | None = None,
) -> None:
    """Writes ``spp.parquet`` of a net with these layers, of a step for each of `batches` in each of `epochs`.

    Args:
        run: directory of the run.
        statistics: gives ACSM and ACV of each tensor; the mean of the channel means is 0.
        layers: names and kinds of the leaves in order; by default the study's FFNN with batch normalization.
        epochs: that are recorded.
        batches: samples of each step of an epoch.
        scales: what the statistics are multiplied by in each step of an epoch; by default 1.
        ndim: dimensions of activations and gradients; weights have two, and only Linear, Conv2d and norms have them.
        batchnorm: whether it says that gains were recorded beside it; None says nothing, as in earlier versions.
    """
    rows = []
    for epoch in epochs:
        for number, (samples, scale) in enumerate(zip(batches, scales or [1.0] * len(batches), strict=True)):
            for depth, (layer, kind) in enumerate(layers or ffnn_layers()):
                for signal in SIGNALS:
                    if signal == "parameter" and kind not in ("Linear", "Conv2d", "BatchNorm1d", "BatchNorm2d"):
                        continue
                    acsm, acv = statistics(layer, depth, epoch, signal)
                    rows.append(
                        {
                            "step": epoch * len(batches) + number,
                            "epoch": epoch,
                            "samples": samples,
                            "depth": depth,
                            "layer": layer,
                            "kind": kind,
                            "signal": signal,
                            "ndim": 2 if signal == "parameter" else ndim,
                            "acsm": acsm * scale,
                            "acv": acv * scale,
                            "mean": 0.0,
                            "nonfinite": 0,
                        }
                    )
    writer = HistoryWriter(run / "spp.parquet")
    if batchnorm is not None:
        writer.note_batchnorm(batchnorm)
    writer.append(pd.DataFrame(rows), end=STEPS)


def lose_steps(run: Path) -> None:
    """Writes ``spp.parquet`` and ``batchnorm.parquet`` anew, in two parts between which a third one is missing."""
    for name, writer in (("spp.parquet", HistoryWriter), ("batchnorm.parquet", BatchNormWriter)):
        if not (run / name).exists():
            continue
        frame = pd.read_parquet(run / name)
        shutil.rmtree(run / name)
        steps = sorted(frame["step"].unique())
        last_before, first_after = steps[len(steps) // 3 - 1], steps[-(len(steps) // 3)]
        writer(run / name).append(frame[frame["step"] <= last_before])
        writer(run / name, resume_at=int(first_after)).append(frame[frame["step"] >= first_after])


def write_gains(
    run: Path, factors: Factors, layers: Sequence[str] | None = None, epochs: Sequence[int] = tuple(range(20))
) -> None:
    """Writes ``batchnorm.parquet`` with one step an epoch, whose gain is the product of the factors."""
    rows = []
    for epoch in epochs:
        for depth, layer in enumerate(layers or [f"block{i}.norm" for i in range(9)]):
            gamma, inverse, projection = factors(layer, depth, epoch)
            rows.append(
                {
                    "step": epoch,
                    "epoch": epoch,
                    "depth": depth,
                    "layer": layer,
                    "gain": gamma * inverse * projection,
                    "gamma_squared": gamma,
                    "inverse_variance": inverse,
                    "projection": projection,
                }
            )
    BatchNormWriter(run / "batchnorm.parquet").append(pd.DataFrame(rows), end=STEPS)
