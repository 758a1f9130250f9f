"""Small nets of the kinds that users have, and what is recorded of a few steps of them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from sppbench.spp.names import SIGNALS
from sppbench.spp.probe.layers import choose_layers, named_modules
from sppbench.spp.probe.probe import SignalProbe


def mlp(depth: int = 12, width: int = 32, act: type[nn.Module] = nn.ReLU, gain: float = 2.0) -> nn.Sequential:
    """Linear layers of a mean square of gain/fan-in and no bias, with activation functions between them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        nn.init.normal_(linear.weight, std=(gain / width) ** 0.5)
        layers += [linear, act()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


class Block(nn.Module):
    """The pre-norm block of a ViT, without its attention over tokens, which is what `attn` is."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def transformer(depth: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), *(Block() for _ in range(depth)), nn.Linear(16, 4))


class BasicBlock(nn.Module):
    """That of a ResNet, as torchvision has it."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def resnet(depth: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *(BasicBlock() for _ in range(depth)), *head)


def history(
    net: nn.Module,
    steps: int = 1,
    shape: tuple[int, ...] = (32,),
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
    blocks: bool = False,
    batch: int = 16,
) -> pd.DataFrame:
    """Steps of training on noise.

    Args:
        shape: Of a sample.
        blocks: Whether the outputs of the blocks are recorded, too.
    """
    chosen = choose_layers(net, None) | (choose_layers(net, "blocks") if blocks else {})
    assert set(chosen) <= set(named_modules(net))
    torch.manual_seed(1)
    stepping, frames = optimizer(net.parameters(), lr=lr), []
    with SignalProbe(net, lambda name, module: name in chosen, signals=SIGNALS) as probe:
        for _ in range(steps):
            x, y = torch.randn(batch, *shape), torch.randint(4, (batch,))
            stepping.zero_grad()
            nn.functional.cross_entropy(net(x).float().reshape(batch, -1)[:, :4], y).backward()
            stepping.step()
            frames.append(probe.collect())
    return pd.concat(frames, ignore_index=True)


def lasting(frame: pd.DataFrame, steps: int = 25) -> pd.DataFrame:
    """One step, seen again and again: in each 50th of a training."""
    return pd.concat([frame.assign(step=50 * step) for step in range(steps)], ignore_index=True)
