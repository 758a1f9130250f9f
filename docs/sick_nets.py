"""Nets that are broken on purpose, and the same nets cured: draws them, and writes what `diagnose` says of them.

    python docs/sick_nets.py [--only NET ...]

The figures go into docs/read_a_plot/, the words into its pages, each between two markers. Two minutes on one core.
Nothing is downloaded: the nets see noise or scikit-learn's digits. docs/sick_figures.py does the drawing.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from sick_figures import draw
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sppbench.models import Sum
from sppbench.spp import AttentionProbe, SignalProbe, diagnose
from sppbench.spp.diagnosis.finding import Findings
from sppbench.spp.names import SIGNALS

PAGES = Path(__file__).parent / "read_a_plot"


@dataclass(frozen=True)
class Case:
    """What was recorded of a net in all its steps, what `diagnose` says of it, and the loss of each step."""

    findings: Findings
    history: pd.DataFrame
    losses: list[float]
    attention: pd.DataFrame


# -- recording ---------------------------------------------------------------------------------------------------------


def noise() -> tuple[Tensor, Tensor]:
    """128 samples of 64 Gaussian features, and labels of ten classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(128, 64, generator=generator), torch.randint(10, (128,), generator=generator)


def digits(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 64 handwritten digits of 8 × 8 pixels between -1 and 1, and their labels."""
    data, generator = load_digits(), torch.Generator().manual_seed(0)
    images, labels = torch.from_numpy(data.data).float() / 8 - 1, torch.from_numpy(data.target).long()
    for _ in range(steps):
        index = torch.randint(len(images), (64,), generator=generator)
        yield images[index], labels[index]


def look(net: nn.Module, batch: tuple[Tensor, Tensor] | None = None, loss_scale: float = 1.0) -> Case:
    """One forward and backward pass of a net as it was made. Its blocks are recorded beside their layers."""
    x, y = batch or noise()
    with SignalProbe(net, layers=lambda name, module: not isinstance(module, nn.Sequential | nn.ModuleList)) as probe:
        loss = cross_entropy(net(x).float(), y)
        (loss * loss_scale).backward()
        frame = probe.collect(loss_scale)
    return Case(diagnose(frame, net), frame, [loss.item()], pd.DataFrame())


def train(net: nn.Module, rate: float, steps: int = 60) -> Case:
    """Some steps of Adam on digits, all signals and all attention recorded."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    frames, attention, losses = [], [], []
    with SignalProbe(net, signals=SIGNALS) as probe, AttentionProbe(net) as attention_probe:
        for x, y in digits(steps):
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            frames.append(probe.collect())
            attention.append(attention_probe.collect())
            losses.append(loss.item())
    history, entropy = pd.concat(frames, ignore_index=True), pd.concat(attention, ignore_index=True)
    return Case(diagnose(history, net, attention=entropy if len(entropy) else None), history, losses, entropy)


# -- nets --------------------------------------------------------------------------------------------------------------


def mlp(depth: int, width: int, activation: type[nn.Module], norm: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers, each with a normalization, if any, and an activation function behind it; weights as of PyTorch."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 64, width), *([norm(width)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def with_weights(net: nn.Module, initialize: Callable[[Tensor], object]) -> nn.Module:
    """The net with each weight of a Linear drawn anew, and without biases."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            initialize(module.weight)
            nn.init.zeros_(module.bias)
    return net


class PreActivation(nn.Module):
    """x + Linear(ReLU(BatchNorm(x))): identity mappings (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.activation, self.linear = nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.activation(self.norm(x)))


class MLPBlock(nn.Module):
    """The half of a transformer's block that is no attention; ``std`` is that of its last weights."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.norm, self.up, self.activation = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU()
        self.down, self.sum = nn.Linear(4 * width, width), Sum()
        nn.init.normal_(self.down.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.down(self.activation(self.up(self.norm(x)))), x)


class Reader(nn.Module):
    """Twelve such blocks over embeddings of tokens, which begin at 0.02 as those of GPT-2."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*[MLPBlock(64, std) for _ in range(12)])
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


class Attention(nn.Module):
    """One head over the rows of an image, and a skip. Without ``norm`` and without 1/√d its logits may grow freely."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm_query, self.norm_key = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.scale, self.num_heads = width**-0.5 if norm else 1.0, 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key = self.norm_query(self.query(h)), self.norm_key(self.key(h))
        weights = torch.softmax(self.scale * query @ key.mT, dim=-1)
        return x + weights @ self.value(h)


class RowsReader(nn.Module):
    """Classifies an image of eight rows by what attention makes of them."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(8, 64), nn.Linear(64, 10)
        self.position = nn.Parameter(0.1 * torch.randn(8, 64))
        self.blocks = nn.Sequential(*[Attention(64, norm) for _ in range(3)])

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embedding(images.unflatten(1, (8, 8))) + self.position
        return self.head(self.blocks(rows).mean(1))


# -- sick and cured ----------------------------------------------------------------------------------------------------

# Each is made and recorded when it is called, and begins with the same random numbers.
Cases = dict[str, Callable[[], Case]]


def he(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def initialization() -> Cases:
    return {
        "vanishing": lambda: look(mlp(30, 256, nn.ReLU)),
        "exploding": lambda: look(with_weights(mlp(30, 256, nn.ReLU), lambda w: nn.init.normal_(w, std=0.15))),
        "cured": lambda: look(with_weights(mlp(30, 256, nn.ReLU), he)),
    }


def batchnorm_depth() -> Cases:
    def with_skips() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), *[PreActivation(128) for _ in range(60)], nn.Linear(128, 10))

    return {
        "sick": lambda: look(mlp(60, 128, nn.ReLU, nn.BatchNorm1d)),
        "cured": lambda: look(with_skips()),
    }


def drowned_skip() -> Cases:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(100, (256,), generator=generator), torch.randint(10, (256,), generator=generator)
    return {
        "sick": lambda: look(Reader(std=math.sqrt(2 / 256)), tokens),  # He et al. 2015
        "cured": lambda: look(Reader(std=0.02 / math.sqrt(2 * 12)), tokens),  # GPT-2
    }


def saturated_tanh() -> Cases:
    return {
        "sick": lambda: look(with_weights(mlp(8, 512, nn.Tanh), nn.init.normal_)),
        "cured": lambda: look(with_weights(mlp(8, 512, nn.Tanh), nn.init.xavier_normal_)),
    }


def underflow() -> Cases:
    def of_type(dtype: torch.dtype, loss_scale: float = 1.0) -> Case:
        x, y = noise()
        return look(mlp(8, 256, nn.ReLU).to(dtype), (x.to(dtype), y), loss_scale)

    return {
        "sick": lambda: of_type(torch.float16),
        "cured": lambda: of_type(torch.float16, loss_scale=2.0**16),
        "float32": lambda: of_type(torch.float32),
    }


def dead_relus() -> Cases:
    return {
        "sick": lambda: train(with_weights(mlp(5, 128, nn.ReLU), he), rate=0.3),
        "cured": lambda: train(with_weights(mlp(5, 128, nn.ReLU), he), rate=0.001),
    }


def selu_floor() -> Cases:
    return {
        "sick": lambda: train(mlp(8, 128, nn.SELU), rate=0.05),
        "cured": lambda: train(mlp(8, 128, nn.SELU), rate=0.001),
    }


def updates() -> Cases:
    return {
        "large": lambda: train(mlp(3, 512, nn.GELU), rate=0.03, steps=12),
        "small": lambda: train(mlp(3, 512, nn.GELU), rate=1e-8, steps=12),
        "cured": lambda: train(mlp(3, 512, nn.GELU), rate=0.001, steps=12),
    }


def collapsed_attention() -> Cases:
    return {
        "sick": lambda: train(RowsReader(norm=False), rate=0.02),
        "cured": lambda: train(RowsReader(norm=True), rate=0.02),
    }


NETS: dict[str, Callable[[], Cases]] = {
    function.__name__: function
    for function in (
        *(initialization, batchnorm_depth, drowned_skip, saturated_tanh),
        *(dead_relus, selu_floor, collapsed_attention, updates, underflow),
    )
}


def cases_of(name: str) -> dict[str, Case]:
    """The nets of a section, sick and cured."""
    cases = {}
    for case, made in NETS[name]().items():
        torch.manual_seed(0)
        cases[case] = made()
    return cases


# -- on the pages ------------------------------------------------------------------------------------------------------


def said(findings: Findings) -> str:
    """What `diagnose` says, without what it could not judge, in lines of a page's width."""
    lines = [f"{one.kind}: {one.text}" for one in findings] or ["nothing found"]
    return "\n".join(textwrap.fill(line, 86, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def put(page: str, name: str, case: str, words: str) -> str:
    """The page with these words in their place, if it has one."""
    place = re.compile(f"(<!-- {name}, {case}: written by docs/sick_nets.py -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}```text\n{words}\n```\n{found[2]}", page)


def save(figure: Figure, path: Path) -> None:
    """As PNG with a palette: a third of the size."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    colors = Image.open(content).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    colors.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    for name in parser.parse_args().only:
        start, cases = perf_counter(), cases_of(name)
        save(draw(name, cases), PAGES / f"{name}.png")
        for path in sorted(PAGES.glob("*.md")):
            page = path.read_text(encoding="utf-8")
            for case, recorded in cases.items():
                page = put(page, name, case, said(recorded.findings))
            path.write_text(page, encoding="utf-8")
        print(f"{name}: {perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
