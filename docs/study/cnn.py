"""Draws cnn.png: how strong the signals of the thesis' small convolutional nets are before any training.

    python docs/study/cnn.py --root data/cifar100

It also prints the second moment of the logits and the loss. A batch of 512 training images of CIFAR-100, the
study's five seeds, without any training: a quarter of a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from un_efficientnet import SEEDS, batch

from sppbench.models import CNN
from sppbench.spp import SignalProbe

NETS: dict[str, tuple[dict[str, str], str]] = {
    "cnn": ({}, "#555555"),
    "cnn_bn_conv": ({"normalization": "conv"}, "#D55E00"),
    "cnn_bn_linear": ({"normalization": "linear"}, "#0072B2"),
    "cnn_bn_both": ({"normalization": "both"}, "#009E73"),
    "cnn_bn_conv_fan_in": ({"normalization": "conv", "init": "he_fan_in"}, "#E69F00"),
}
# What the layers give, after batch normalization where there is some.
PLACES = {
    "conv0": "convolution 1",
    "conv1": "convolution 2",
    "conv2": "convolution 3",
    "block0": "linear 1",
    "block1": "linear 2",
    "classifier": "classifier",
}
PANELS = {"activation": "outputs", "gradient": "gradients of outputs"}
OUTPUT = Path(__file__).with_suffix(".png")


def first_step(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[pd.DataFrame, float]:
    """Second moments (place × signal) of the first step, before any weight has moved; and its loss."""
    with SignalProbe(net.train(), signals=PANELS) as probe:
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        frame = probe.collect()
    frame = frame[frame["layer"].str.fullmatch(r"classifier|.*\.(conv|linear|norm)")]
    frame = frame.assign(place=frame["layer"].str.split(".").str[0])
    last = frame.groupby(["place", "signal"])["second_moment"].last()  # rows are in the order of the calls
    return last.unstack().loc[list(PLACES)], float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar100"))
    images, labels = batch(parser.parse_args().root)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for name, (change, color) in NETS.items():
        steps = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            steps.append(first_step(CNN(**change), images, labels))
        losses = pd.Series([loss for _, loss in steps])
        for ax, signal in zip(axes, PANELS, strict=True):
            seconds = pd.concat([frame[signal] for frame, _ in steps], axis=1)
            if signal == "activation":
                logits = seconds.loc["classifier"]
                print(f"{name}: logits {logits.median():.3g} [{logits.min():.3g}, {logits.max():.3g}], ", end="")
                print(f"loss {losses.median():.3g} [{losses.min():.3g}, {losses.max():.3g}]")
            ax.fill_between(range(len(PLACES)), seconds.min(axis=1), seconds.max(axis=1), color=color, alpha=0.25)
            ax.plot(range(len(PLACES)), seconds.median(axis=1), "o-", color=color, markersize=3.5, label=name)
    for ax, title in zip(axes, PANELS.values(), strict=True):
        ax.set_yscale("log")
        ax.set_ylabel(f"{title}, second moment")
        ax.set_xticks(range(len(PLACES)), list(PLACES.values()), rotation=30, ha="right")
        ax.grid(True, color="#e0e0e0", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center")
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    main()
