"""Draws relative_steps.png and blocks.png, and writes tables of nf_efficientnet.md: what the probe sees in three nets.

    python docs/study/nf_efficientnet.py --root data/cifar100

Three nets learn CIFAR-100 for an epoch as the study has it (Adam, learning rate 0.001, batch 512, seed 868), and the
probe reads every fifth step: about five minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from sppbench.data import CIFAR100
from sppbench.models import EfficientNet, NFEfficientNet
from sppbench.spp import SignalProbe

SEED, EVERY, FIRST, LR = 868, 5, 10, 0.001
NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "efficientnet_bn": (EfficientNet, "#0072B2"),
    "sn_efficientnet_nomp": (
        lambda: EfficientNet(activation="SELU", normalization=None, init="lecun", classifier_std=None),
        "#E69F00",
    ),
    "nf_efficientnet": (NFEfficientNet, "#009E73"),
}
BRANCH_TICKS = (0.02, 0.05, 0.1, 0.2, 0.4)
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5)
POINTWISE = "1\N{MULTIPLICATION SIGN}1"
KINDS = {"depthwise": "o", POINTWISE: "s", "stem": "D"}  # squeeze-and-excitation is as in every net, and left out
LAST = 4  # recorded steps
AT_FIRST, AFTER = "first step", "after an epoch"
WHEN: dict[str, dict[str, str]] = {
    AT_FIRST: {"marker": "o", "markerfacecolor": "white", "linestyle": ":"},
    AFTER: {"marker": "o", "linestyle": "-"},
}
QUANTITIES = {
    "branch": "share of the branch in its sum",
    "activation": "second moment of what a block gives",
    "gradient": "second moment of its gradient",
}
HERE = Path(__file__).parent
PAGE = HERE / "nf_efficientnet.md"
BEGIN, END = "<!-- relative steps: written by docs/study/nf_efficientnet.py -->\n", "<!-- end -->"


def learn(make: Callable[[], nn.Module], data: CIFAR100) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An epoch: `steps_of_layers` and `blocks` of what the probe reads."""
    torch.manual_seed(SEED)
    net = make().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    frames = []
    with SignalProbe(net, signals=("activation", "gradient", "parameter", "update"), every_n_steps=EVERY) as probe:
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            frames.append(probe.collect())
    frame = pd.concat(frames)
    return steps_of_layers(net, frame), blocks(net, frame)


def steps_of_layers(net: nn.Module, frame: pd.DataFrame) -> pd.DataFrame:
    """Columns layer, kind and share, a row for each convolution outside of squeeze-and-excitation.

    The share is the root mean square of a weight's step over that of the weight: the geometric mean of the recorded
    steps from the tenth on, when Adam's averages have settled.
    """
    seconds = frame[frame["step"] >= FIRST].pivot_table(
        index=["step", "depth", "layer"], columns="signal", values="second_moment"
    )
    share = np.log(seconds["update"] / seconds["parameter"]).groupby(["depth", "layer"]).mean().mul(0.5).pipe(np.exp)
    layers = share.rename("share").reset_index()
    layers["kind"] = [kind_of(net, name) for name in layers["layer"]]
    return layers[layers["kind"] != ""].reset_index(drop=True)


def blocks(net: nn.Module, frame: pd.DataFrame) -> pd.DataFrame:
    """Second moments of what comes out of each block, and of its gradient; columns when, block, and one a quantity.

    Where a block has a skip connection, also the share of the branch in their sum, before stochastic depth. Values are
    of the first step, and geometric means of the last recorded ones.
    """
    late = sorted(frame["step"].unique())[-LAST:]
    when = {AT_FIRST: frame[frame["step"] == 0], AFTER: frame[frame["step"].isin(late)]}
    rows = []
    for label, part in when.items():
        means = np.exp(np.log(part["second_moment"]).groupby([part["layer"], part["signal"]]).mean())
        for number, (name, block) in enumerate(blocks_of(net), start=1):
            last = part[part["layer"].str.startswith(f"{name}.") & (part["signal"] == "gradient")]
            out = last.sort_values("depth")["layer"].iloc[-1]
            row = {"when": label, "block": number, **{signal: means[out, signal] for signal in list(QUANTITIES)[1:]}}
            if hasattr(block, "sum"):
                convolution = [child for child, layer in block.named_modules() if is_last_of_branch(layer)][-1]
                gain = means.get((f"{name}.branch_gain", "parameter"), 1.0)  # its square
                row["branch"] = gain * means[f"{name}.{convolution}", "activation"] / means[f"{name}.sum", "activation"]
            rows.append(row)
    return pd.DataFrame(rows)


def blocks_of(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in net.named_modules() if type(module).__name__ in ("MBConv", "NFMBConv")]


def is_last_of_branch(layer: nn.Module) -> bool:
    """Whether a layer may end a branch: its last batch normalization, or its last convolution without one."""
    return isinstance(layer, (nn.BatchNorm2d, nn.Conv2d))


def kind_of(net: nn.Module, name: str) -> str:
    layer = dict(net.named_modules()).get(name)
    if not isinstance(layer, nn.Conv2d) or name.endswith(("fc1", "fc2")):
        return ""  # among them gains, which are parameters of a convolution
    return "depthwise" if layer.groups > 1 else POINTWISE if layer.kernel_size == (1, 1) else "stem"


def draw(found: dict[str, pd.DataFrame]) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    ax = figure.subplots()
    for name, layers in found.items():
        color = NETS[name][1]
        ax.plot(layers.index, layers["share"], color=color, linewidth=0.8, alpha=0.6)
        for kind, marker in KINDS.items():
            of_kind = layers[layers["kind"] == kind]
            label = f"{name}, {kind}" if kind != "stem" else None
            ax.plot(of_kind.index, of_kind["share"], marker, color=color, markersize=5, label=label)
    ax.set_yscale("log")
    ax.set_yticks([share / 100 for share in TICKS], [f"{share:g} %" for share in TICKS])
    ax.set_yticks([], minor=True)
    ax.set_xlabel("convolutions, from the stem to the last")
    ax.set_ylabel("a step of Adam over the weights")
    ax.set_title(
        "One step changes every layer of nf_efficientnet alike, and the layers of the others by very different shares"
    )
    ax.grid(True, axis="y", color="#e0e0e0", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_blocks(found: dict[str, pd.DataFrame]) -> Figure:
    """A panel a quantity: at the first step (hollow) and after an epoch (filled)."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for ax, (quantity, title) in zip(figure.subplots(1, len(QUANTITIES)), QUANTITIES.items(), strict=True):
        for name, rows in found.items():
            for when, style in WHEN.items():
                one = rows[(rows["when"] == when) & rows[quantity].notna()]
                ax.plot(
                    one["block"], one[quantity], color=NETS[name][1], label=f"{name}, {when}", markersize=5, **style
                )
        ax.set_yscale("log")
        if quantity == "branch":
            ax.set_yticks(BRANCH_TICKS, [f"{share:.0%}" for share in BRANCH_TICKS])
            ax.set_yticks([], minor=True)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("block")
        ax.set_xticks([1, 4, 8, 12, 16])
        ax.grid(True, axis="y", color="#e0e0e0", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def table(found: dict[str, pd.DataFrame]) -> str:
    rows = [f"| net | depthwise | {POINTWISE} | largest over smallest |", "| --- | --- | --- | --- |"]
    for name, layers in found.items():
        ranges = [
            f"{100 * shares.min():.2g} to {100 * shares.max():.2g} %"
            for kind in ("depthwise", POINTWISE)
            for shares in [layers.loc[layers["kind"] == kind, "share"]]
        ]
        rows.append(f"| {name} | {' | '.join(ranges)} | {layers['share'].max() / layers['share'].min():.1f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/cifar100"))
    data = CIFAR100(parser.parse_args().root, download=False, batch_size=512, seed=SEED)
    data.prepare_data()
    data.setup()
    seen = {name: learn(make, data) for name, (make, _) in NETS.items()}
    steps, signals = ({name: both[place] for name, both in seen.items()} for place in (0, 1))
    for name, frames, picture in (("relative_steps", steps, draw(steps)), ("blocks", signals, draw_blocks(signals))):
        pd.concat(frames, names=["net"]).to_csv(HERE / f"{name}.csv", float_format="%.4g")
        picture.savefig(HERE / f"{name}.png", dpi=110)
    print(table(steps))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table(steps) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
