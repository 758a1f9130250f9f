"""How much of real nets the theory follows at initialization, and how near it comes to what a probe measures.

    python benchmarks/expected_of_nets.py [--only GLOB ...] [--worst N] [--output benchmarks/expected_of_nets.md]

Needs transformers beside sppbench for GPT-2. Inputs are standard normal noise, or random tokens; one forward pass in
training mode. Of each layer's activation, and with a loss of random gradient at the output also of each gradient, the
second moment that `expected_of_net` gives is compared with the recorded one: *given* counts values that theory gives,
*near* those within 30 % of the recorded ones, of all that were recorded.
"""

from __future__ import annotations

import argparse
import fnmatch
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn

from machine import describe
from sppbench.models import EfficientNet
from sppbench.spp import SignalProbe, expected_of_net

NEAR = 0.3


def images(count: int, pixels: int) -> Tensor:
    return torch.randn(count, 3, pixels, pixels)


def gpt2(**arguments: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False, **arguments))


def tokens(count: int, length: int) -> Tensor:
    return torch.randint(50257, (count, length))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-18, 64 px": (torchvision.models.resnet18, lambda: images(16, 64)),
    "ResNet-50, 64 px": (torchvision.models.resnet50, lambda: images(16, 64)),
    "ResNet-50, 224 px": (torchvision.models.resnet50, lambda: images(8, 224)),
    "EfficientNet-B0 (torchvision), 64 px": (torchvision.models.efficientnet_b0, lambda: images(16, 64)),
    "EfficientNet-B0 (torchvision), 224 px": (torchvision.models.efficientnet_b0, lambda: images(8, 224)),
    "EfficientNet-B0 (sppbench), 32 px": (EfficientNet, lambda: images(16, 32)),
    "EfficientNet-B0 (sppbench), 64 px": (EfficientNet, lambda: images(16, 64)),
    "ViT-B/16, 64 px": (lambda: torchvision.models.vit_b_16(image_size=64), lambda: images(8, 64)),
    "ViT-B/16, 224 px": (torchvision.models.vit_b_16, lambda: images(8, 224)),
    "GPT-2, 128 tokens": (gpt2, lambda: tokens(8, 128)),
    "GPT-2, eager attention, 64 tokens": (lambda: gpt2(attn_implementation="eager"), lambda: tokens(8, 64)),
    "ConvNeXt-T, 64 px": (torchvision.models.convnext_tiny, lambda: images(8, 64)),
    "DenseNet-121, 64 px": (torchvision.models.densenet121, lambda: images(8, 64)),
    "MobileNetV3-S, 64 px": (torchvision.models.mobilenet_v3_small, lambda: images(16, 64)),
    "Swin-T, 64 px": (torchvision.models.swin_t, lambda: images(8, 64)),
    "VGG-11-BN, 64 px": (torchvision.models.vgg11_bn, lambda: images(8, 64)),
}


def recorded(net: nn.Module, x: Tensor) -> pd.DataFrame:
    """One step; the gradient at the output is random."""
    probe = SignalProbe(net.train())
    y = net(x)
    y = y if isinstance(y, Tensor) else y.logits
    (y * torch.randn_like(y)).sum().backward()
    frame = probe.collect()
    probe.close()
    return frame


def compared(frame: pd.DataFrame, table: pd.DataFrame, signal: str) -> pd.DataFrame:
    """Recorded and expected second moments of all recorded layers, with the factor between them."""
    columns = ["layer", "kind", "second_moment"]
    frame = frame[frame["signal"] == signal][columns]
    table = table[table["signal"] == signal][["layer", "second_moment"]]
    both = frame.merge(table, on="layer", how="left", suffixes=("", "_expected"))
    factor = (both["second_moment_expected"] / both["second_moment"]).to_numpy(np.float64, copy=True)
    factor[(both["second_moment_expected"] == 0) & (both["second_moment"] == 0)] = 1.0
    return both.assign(factor=factor)


def line(name: str, both: dict[str, pd.DataFrame], seconds: float, worst: int, said: str) -> str:
    cells = [name]
    for part in both.values():
        given = np.isfinite(part["factor"])
        near = (part["factor"] - 1).abs() <= NEAR
        cells.append(f"{given.sum()}/{len(part)} | {near.mean():.0%}")
    part = both["activation"]
    far = part.assign(far=np.log(part["factor"].where(part["factor"] > 0)).abs()).nlargest(worst, "far")
    cells.append(", ".join(f"`{row.layer}` {row.factor:.2f}" for row in far.itertuples()))
    cells.append(f"{seconds:.1f}")
    return "| " + " | ".join(cells) + " |" + (f"\n\n{said}\n" if said else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--worst", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "| net | activations given | near | gradients given | near | worst activations (expected / recorded) | s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, (make, batch) in NETS.items():
        if not any(fnmatch.fnmatch(name, pattern) for pattern in options.only):
            continue
        torch.manual_seed(0)
        net, x = make(), batch()
        frame = recorded(net, x)
        before = perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = expected_of_net(net, x, frame)
        seconds = perf_counter() - before
        both = {signal: compared(frame, table, signal) for signal in ("activation", "gradient")}
        lines.append(line(name, both, seconds, options.worst, "; ".join(str(one.message) for one in caught)))
        print(lines[-1], flush=True)
    if options.output:
        title = "# Expected second moments against recorded ones, at initialization\n"
        options.output.write_text("\n".join([title, describe(), "", *lines, ""]))


if __name__ == "__main__":
    main()
