"""Draws rates.png, and prints how the study's nets fare at larger learning rates: for all weights, or for some.

    python docs/study/rates.py --root data/cifar100

The first epoch of each net with three seeds, batches of 512 and Adam, as in the study: 50 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn
from un_efficientnet import SEEDS

from sppbench.data import CIFAR100
from sppbench.models import EfficientNet
from sppbench.spp import SignalProbe

SN: dict[str, Any] = {"normalization": None, "activation": "SELU", "init": "lecun", "classifier_std": None}
NETS: dict[str, dict[str, Any]] = {
    "efficientnet_bn": {},
    "sn_efficientnet_nomp": SN,
    "sn_efficientnet_mp": {**SN, "classifier_std": 0.01, "skip": "mp_sum", "gate": "mp_scale"},
}
WIDE, WIDEST = 100, 480  # inputs of an output; from the latter on `diagnose` names the layers
STEM = 27  # those of the first layer
# Fan-in of a weight → its learning rate. Biases and the vectors of batch normalization have a fan-in of 1.
RATES: dict[str, Callable[[int], float]] = {
    "0.01": lambda fan_in: 0.01,
    "0.01; from 480 inputs on 0.001": lambda fan_in: 0.001 if fan_in >= WIDEST else 0.01,
    "0.01; from 100 inputs on 0.001": lambda fan_in: 0.001 if fan_in >= WIDE else 0.01,
    "0.001; from 100 inputs on 0.01": lambda fan_in: 0.01 if fan_in >= WIDE else 0.001,
    "0.01 times 27 / inputs, at most 0.01": lambda fan_in: 0.01 * min(1, STEM / fan_in),
    "0.001": lambda fan_in: 0.001,
}
TRIED = [
    *(("sn_efficientnet_nomp", rates) for rates in RATES),
    *(("efficientnet_bn", rates) for rates in ("0.01", "0.01; from 100 inputs on 0.001", "0.001")),
    *(("sn_efficientnet_mp", rates) for rates in ("0.01", "0.01; from 100 inputs on 0.001")),
]
DRAWN = {
    ("sn_efficientnet_nomp", "0.01"): "SN-EfficientNet (no MP), 0.01",
    ("sn_efficientnet_nomp", "0.01; from 100 inputs on 0.001"): "the same, from 100 inputs on 0.001",
    ("efficientnet_bn", "0.01"): "EfficientNet (BN), 0.01",
}
SIGNALS = {"activation": "activations", "gradient": "gradients"}
STEPS = (0, 1, 2, 5, 10, 20, 40, 77)  # step 78 has a smaller batch, and so larger gradients
LAST = 10  # steps whose mean loss is printed
OUTPUT = Path(__file__).with_suffix(".png")


def fan_in(parameter: Tensor) -> int:
    return parameter[0].numel() if parameter.ndim > 1 else 1


def first_epoch(
    net: nn.Module, data: CIFAR100, rates: Callable[[int], float], record: bool
) -> tuple[float, float, pd.DataFrame]:
    """Mean loss of the last steps, validation accuracy in percent, and what the probe reads before `STEPS`."""
    groups = [{"params": [parameter], "lr": rates(fan_in(parameter))} for parameter in net.parameters()]
    optimizer = torch.optim.Adam(groups, fused=True)
    losses, frames = [], []
    for step, (images, labels) in enumerate(data.train_dataloader()):
        probe = SignalProbe(net, signals=SIGNALS) if record and step in STEPS else None
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net.train()(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if probe is not None:
            frames.append(probe.collect().assign(step=step))
            probe.close()
    with torch.inference_mode():
        right = [(net.eval()(images).argmax(1) == labels).float() for images, labels in data.val_dataloader()]
    accuracy = 100 * float(torch.cat(right).mean())
    return sum(losses[-LAST:]) / LAST, accuracy, pd.concat(frames) if record else pd.DataFrame()


def draw(figure: Figure, recorded: dict[tuple[str, str], pd.DataFrame]) -> None:
    """A row for each signal, a column for each training, a line for each step; of gates only what they give."""
    axes = figure.subplots(len(SIGNALS), len(DRAWN), sharey="row", sharex="col")
    colors = [colormaps["viridis"](place / len(STEPS)) for place in range(len(STEPS))]
    for column, (tried, title) in enumerate(DRAWN.items()):
        frame = recorded[tried]
        frame = frame[~frame["layer"].str.contains(r"\.block\.\d+\.(?!scale$)(?!\d)")]
        for row, signal in enumerate(SIGNALS):
            ax = axes[row, column]
            for step, color in zip(STEPS, colors, strict=True):
                one = frame[(frame["signal"] == signal) & (frame["step"] == step)]
                ax.plot(one["depth"], one["second_moment"], color=color, linewidth=1.1, label=str(step))
            ax.set_yscale("log")
            ax.grid(True, color="#e0e0e0", linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        axes[0, column].set_title(title, fontsize=10)
        axes[-1, column].set_xlabel("depth in layers")
    for row, name in enumerate(SIGNALS.values()):
        axes[row, 0].set_ylabel(f"{name}\nsecond moment")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = "before step"
    figure.legend(handles, labels, title=title, frameon=False, ncols=len(STEPS), loc="outside upper center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar100"))
    root = parser.parse_args().root
    weights = [weight for weight in EfficientNet().parameters() if weight.ndim > 1]
    wide = [weight for weight in weights if fan_in(weight) >= WIDE]
    share = sum(map(torch.numel, wide)) / sum(map(torch.numel, weights))
    print(f"{len(wide)} of {len(weights)} weights are wide, {share:.0%} of the elements; seeds {SEEDS[:3]}")
    recorded = {}
    for name, rates in TRIED:
        losses, accuracies = [], []
        for seed in SEEDS[:3]:
            data = CIFAR100(root, download=False, batch_size=512, seed=seed)
            data.prepare_data()
            data.setup()
            torch.manual_seed(seed)
            record = seed == SEEDS[0] and (name, rates) in DRAWN
            loss, accuracy, frame = first_epoch(EfficientNet(**NETS[name]), data, RATES[rates], record)
            losses.append(loss)
            accuracies.append(accuracy)
            if record:
                recorded[name, rates] = frame
        row = [name, rates, *(", ".join(f"{value:.2f}" for value in values) for values in (losses, accuracies))]
        print("|", " | ".join(row), "|", flush=True)
    figure = Figure(figsize=(10, 6), layout="constrained")
    draw(figure, recorded)
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    main()
