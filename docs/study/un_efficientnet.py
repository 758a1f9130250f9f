"""Draws un_efficientnet.png: where the signal of the thesis' net dies at initialization, beside what mends it.

    python docs/study/un_efficientnet.py --root data/cifar100

It also prints what the layers of each kind do to a second moment on its way through the net. A batch of
512 training images of CIFAR-100, the study's five seeds, without any training: half a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from sppbench.data import CIFAR100
from sppbench.models import UNEfficientNet
from sppbench.models.nf_efficientnet import NFSqueezeExcitation
from sppbench.models.un_efficientnet import Times, UnitSiLU, UNMBConv
from sppbench.spp import SignalProbe

SEEDS = (868, 67, 472, 362, 970)
NETS: dict[str, tuple[dict[str, str], str]] = {
    "as it was: fan_out": ({}, "#E69F00"),
    "depthwise by fan_in": ({"depthwise_init": "he_fan_in"}, "#0072B2"),
    "all by fan_in": ({"init": "he_fan_in"}, "#009E73"),
}
ADAM_EPSILON = 1e-8
PANELS = {
    "activation": "activations",
    "gradient": "gradients",
    "parameter_gradient": "gradients of weights",
}
DEPTHWISE = {name for name, layer in UNEfficientNet().named_modules() if getattr(layer, "groups", 1) > 1}
OUTPUT = Path(__file__).with_suffix(".png")


def batch(root: Path) -> tuple[Tensor, Tensor]:
    """Images (512, 3, 32, 32) and labels (512,), augmented as in training."""
    data = CIFAR100(root, download=False, batch_size=512, seed=SEEDS[0])
    data.prepare_data()
    data.setup()
    images, labels = next(iter(data.train_dataloader()))
    return images, labels


def first_step(net: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """What the probe reads in the first step, before any weight has moved; of gates only what they give."""
    with SignalProbe(net.train(), signals=PANELS) as probe:
        nn.functional.cross_entropy(net(images), labels).backward()
        frame = probe.collect()
    return frame[~frame["layer"].str.contains(r"\.block\.\d+\.(?!scale$)")]


def factors(net: UNEfficientNet, frame: pd.DataFrame) -> dict[str, float]:
    """By kind of layer: log10 of the factor on the second moment, over the blocks without a skip connection.

    The others hardly change it, as their branches add little. Keys are in the order of the calls.
    """
    seconds = frame[frame["signal"] == "activation"].set_index("layer")["second_moment"]
    found: dict[str, float] = {}
    for number, block in enumerate(net.features):
        if isinstance(block, UNMBConv) and not block.has_skip:
            before = seconds[f"features.{number}.activation"]
            for name, layer in block.block.named_children():
                place = f"features.{number}.block.{name}"
                after = seconds[f"{place}.scale" if isinstance(layer, NFSqueezeExcitation) else place]
                found[kind_of(layer)] = found.get(kind_of(layer), 0.0) + float(np.log10(after / before))
                before = after
    return found


def kind_of(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return "depthwise" if layer.groups > 1 else "expand" if layer.out_channels > layer.in_channels else "project"
    return {UnitSiLU: "activate", NFSqueezeExcitation: "gate", Times: "times alpha"}[type(layer)]


def draw(ax: Axes, frames: list[pd.DataFrame], signal: str, label: str, color: str) -> None:
    """The median over seeds, the range of the seeds around it, and dots at depthwise convolutions."""
    rows = [frame[frame["signal"] == signal].set_index(["depth", "layer"])["second_moment"] for frame in frames]
    seconds = pd.concat(rows, axis=1).reset_index("layer")
    layers, seconds = seconds["layer"], seconds.drop(columns="layer")
    median = seconds.median(axis=1)
    ax.fill_between(seconds.index, seconds.min(axis=1), seconds.max(axis=1), color=color, alpha=0.25, linewidth=0)
    ax.plot(median.index, median, color=color, linewidth=1.2, label=label)
    depthwise = layers.isin(DEPTHWISE)
    ax.plot(median.index[depthwise], median[depthwise], "o", color=color, markersize=3.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar100"))
    images, labels = batch(parser.parse_args().root)
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for label, (change, color) in NETS.items():
        frames, parts = [], []
        for seed in SEEDS:
            torch.manual_seed(seed)
            net = UNEfficientNet(**change)
            frames.append(first_step(net, images, labels))
            parts.append(factors(net, frames[-1]))
        print(label, pd.DataFrame(parts).median().round(1).to_dict())
        for ax, signal in zip(axes, PANELS, strict=True):
            draw(ax, frames, signal, label, color)
    for ax, title in zip(axes, PANELS.values(), strict=True):
        ax.set_yscale("log")
        ax.set_ylabel(f"{title}\nsecond moment")
        ax.grid(True, color="#e0e0e0", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].axhline(ADAM_EPSILON**2, color="black", linewidth=0.8, linestyle=":")
    place = {"transform": axes[-1].get_yaxis_transform(), "ha": "left", "va": "center"}
    axes[-1].text(1.01, ADAM_EPSILON**2, "Adam's\nε²", **place)
    axes[-1].set_xlabel("depth in layers, in the order of their calls")
    title = "median and range of five seeds; dots are depthwise convolutions"
    axes[0].legend(frameon=False, ncols=len(NETS), loc="lower center", bbox_to_anchor=(0.5, 1.0), title=title)
    figure.savefig(OUTPUT, dpi=110)


if __name__ == "__main__":
    main()
