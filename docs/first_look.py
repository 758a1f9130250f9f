"""Draws the README's picture: a net that does not train, and where its signal dies. ``python docs/first_look.py``.

Two nets that differ by nothing but the scale of their first weights learn scikit-learn's digits. It takes 20 seconds.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from sppbench.spp import SignalProbe

DEPTH, WIDTH, STEPS, BATCH = 30, 128, 200, 128
NETS = {"PyTorch's default": "tab:red", "He et al. 2015": "tab:blue"}
OUTPUT = Path(__file__).with_name("first_look.png")


def deep_mlp(he: bool) -> nn.Sequential:
    layers = (layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
    net = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), *layers, nn.Linear(WIDTH, 10))
    for module in net.modules():
        if he and isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return net


def train(net: nn.Module) -> tuple[list[float], pd.DataFrame]:
    """The loss of each step, and the signals of the first."""
    digits = load_digits()
    x = torch.from_numpy(digits.data).float() / 16
    y = torch.from_numpy(digits.target)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    losses, first = [], pd.DataFrame()
    with SignalProbe(net, stop=1) as probe:
        for step in range(STEPS):
            batch = torch.randint(len(x), (BATCH,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net((x[batch] - 0.3) / 0.38), y[batch])
            loss.backward()
            optimizer.step()
            frame = probe.collect()
            first = frame if step == 0 else first
            losses.append(loss.item())
    return losses, first


def draw() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for (name, color), he in zip(NETS.items(), (False, True), strict=True):
        torch.manual_seed(1)
        losses, frame = train(deep_mlp(he))
        rows = frame[(frame["signal"] == "gradient") & (frame["kind"] == "Linear")].reset_index()
        left.plot(losses, color=color, label=name)
        right.plot(rows.index, rows["second_moment"], color=color, marker=".", label=name)
    left.set(xlabel="step", ylabel="training loss", title="Two nets of 32 layers: one does not train")
    right.set(xlabel="layer", ylabel="mean square of the gradient", title="Its gradient dies on the way to the input")
    right.set(yscale="log")
    dead = right.lines[0].get_xydata()[0]
    right.annotate(
        f"{dead[1]:.0e}: the first layer\nlearns nothing",
        dead,
        (9, dead[1] * 30),
        color="tab:red",
        va="center",
        arrowprops={"arrowstyle": "->", "color": "tab:red"},
    )
    left.legend(title="initial weights")
    return figure


def save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    Image.open(content).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    save(draw(), OUTPUT)
