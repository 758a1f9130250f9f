"""Draws every figure of sppbench for nets of all kinds, into docs/gallery/.

    python docs/gallery.py [--only NET ...] [--output docs/gallery]

Each net is trained for some steps on scikit-learn's digits, the Llama on the README here. Nothing is downloaded.
It takes a few minutes on two cores. Without ``transformers`` the Llama is left out.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torchvision
from captions import FIGURES_IN_WORDS, NETS_IN_WORDS, WHAT_ONE_SEES
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from sppbench.models import FFNN, EfficientNet
from sppbench.spp import SignalProbe, expected_of_net, plot_gradient, plot_heatmap, plot_spp
from sppbench.spp.plots.heatmap import NOT_FINITE_COLOR, SMALL_BATCH_COLOR
from sppbench.spp.plots.lines import COLORS

INTRODUCTION = (
    "What healthy nets look like while they train. [Read a plot](../read_a_plot/index.md) says how the figures are",
    "drawn, and has broken nets. Drawn by `python docs/gallery.py`, which also says how each net is made.",
)
README = Path(__file__).parent.parent / "README.md"


@dataclass(frozen=True)
class Trained:
    """A net as it was before training, a batch, and the history of its training."""

    initial: nn.Module
    inputs: Tensor
    history: pd.DataFrame


def digits(pixels: int, channels: int, count: int) -> tuple[Tensor, Tensor]:
    """Handwritten digits, enlarged; shape (count, channels, pixels, pixels), and their labels."""
    data = load_digits()
    images = torch.from_numpy(data.images[:count]).float().unsqueeze(1) / 16
    images = functional.interpolate((images - 0.305) / 0.322, size=pixels, mode="bilinear")
    return images.repeat(1, channels, 1, 1), torch.from_numpy(data.target[:count]).long()


def batches(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """All samples in a new order; the last batch is smaller where they do not divide."""
    for index in torch.randperm(len(tensors[0])).split(size):
        yield tuple(tensor[index] for tensor in tensors)


def train(
    net: nn.Module,
    tensors: Sequence[Tensor],
    loss_of: Callable[..., Tensor],
    epochs: int,
    size: int = 32,
    rate: float = 1e-3,
) -> Trained:
    """Adam, with the probe as it is by default."""
    initial, inputs = copy.deepcopy(net), tensors[0][:size]
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    frames = []
    with SignalProbe(net.train()) as probe:
        for probe.epoch in range(epochs):
            for batch in batches(tensors, size):
                optimizer.zero_grad()
                loss_of(net, *batch).backward()
                optimizer.step()
                frames.append(probe.collect())
    return Trained(initial, inputs, pd.concat(frames, ignore_index=True))


def cross_entropy(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(net(images), labels)


def ffnn() -> dict[str, Trained]:
    net = FFNN(num_classes=10, image_size=16, hidden_features=100, depth=18, normalization="batch_norm")
    return {"ffnn": train(net, digits(16, 3, 1032), cross_entropy, epochs=20)}


def efficientnet() -> dict[str, Trained]:
    return {"efficientnet": train(EfficientNet(num_classes=10), digits(32, 3, 200), cross_entropy, epochs=3)}


def resnet() -> dict[str, Trained]:
    net = torchvision.models.resnet50(num_classes=10)
    return {"resnet50": train(net, digits(64, 3, 112), cross_entropy, epochs=3)}


def vit() -> dict[str, Trained]:
    net = torchvision.models.VisionTransformer(32, 4, 12, 4, 64, 256, num_classes=10)
    # It begins with a head of zeros, behind which no gradient comes through in the first step.
    nn.init.normal_(net.heads.head.weight, std=0.02)
    return {"vit": train(net, digits(32, 3, 200), cross_entropy, epochs=3)}


class RowsReader(nn.Module):
    """Reads an image of 8 rows from top to bottom, and classifies it by the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 64, num_layers=3, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.gru(images.squeeze(1))
        return self.head(self.norm(states[:, -1]))


def gru() -> dict[str, Trained]:
    return {"gru": train(RowsReader(), digits(8, 1, 1000), cross_entropy, epochs=10)}


def llama() -> dict[str, Trained]:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        print("llama: left out, as transformers is not installed")
        return {}
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=12,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    content = torch.frombuffer(bytearray(README.read_bytes()), dtype=torch.uint8).long()
    pieces = content[: 200 * 64].view(200, 64)

    def loss_of(net: nn.Module, tokens: Tensor) -> Tensor:
        return net(input_ids=tokens, labels=tokens).loss

    return {"llama": train(LlamaForCausalLM(config), [pieces], loss_of, epochs=3, size=16)}


def generator() -> nn.Module:
    """Of DCGAN (Radford et al. 2016), for images of 32 × 32."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(32, 128, 4, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
    for before, after in ((128, 64), (64, 32)):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh())


def discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
    for before, after in ((32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 1, 4), nn.Flatten(0))


def gan() -> dict[str, Trained]:
    """Each step trains the discriminator on real and on invented images, then the generator against it.

    What is recorded of the discriminator is of both passes.
    """
    images, _ = digits(32, 1, 200)
    nets = {"generator": generator(), "discriminator": discriminator()}
    for module in itertools.chain(*(net.modules() for net in nets.values())):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
    initial = copy.deepcopy(nets)
    optimizers = {name: torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for name, net in nets.items()}
    judge = functional.binary_cross_entropy_with_logits
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in nets}
    with SignalProbe(nets["generator"]) as making, SignalProbe(nets["discriminator"]) as judging:
        for epoch in range(6):
            making.epoch = judging.epoch = epoch
            for (real,) in batches([images], 32):
                fake = nets["generator"](torch.randn(len(real), 32, 1, 1))
                scores = nets["discriminator"](torch.cat([real, fake.detach()]))
                right = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
                optimizers["discriminator"].zero_grad()
                judge(scores, right).backward()
                optimizers["discriminator"].step()
                optimizers["generator"].zero_grad()
                judge(nets["discriminator"](fake), torch.ones(len(real))).backward()
                optimizers["generator"].step()
                frames["generator"].append(making.collect())
                frames["discriminator"].append(judging.collect())
    inputs = {"generator": torch.randn(32, 32, 1, 1), "discriminator": images[:32]}
    return {
        f"gan_{name}": Trained(initial[name], inputs[name], pd.concat(frames[name], ignore_index=True)) for name in nets
    }


def figures_of(trained: Trained) -> Iterator[tuple[str, Figure]]:
    history = trained.history
    yield "spp", plot_spp(history)
    yield "gradient", plot_gradient(history)
    yield "heatmap", plot_heatmap(history, "gradient")
    yield "heatmap_per_sample", plot_heatmap(history, "gradient", per_sample=True)
    first = history[history["step"] == 0]
    expected = expectation(trained, first)
    if expected is not None:
        yield "expected", plot_spp(first, expected=expected)


def expectation(trained: Trained, first: pd.DataFrame) -> pd.DataFrame | None:
    """What theory says of the first step, if it is something of most activations."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = expected_of_net(trained.initial, trained.inputs, first)
    except Exception as error:  # of any kind: theory does not follow every net
        print(f"    theory cannot follow: {error}".partition("\n")[0])
        return None
    activations = set(first.loc[first["signal"] == "activation", "layer"])
    known = table[(table["signal"] == "activation") & table["acv"].notna()]
    share = len(activations & set(known["layer"])) / len(activations)
    print(f"    theory says something of {share:.0%} of the activations")
    return table if share > 0.5 else None


def save(figure: Figure, path: Path) -> None:
    """As PNG with a palette: a quarter of the size."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    picture = Image.open(content).convert("RGB")
    picture.quantize(palette=palette(), dither=Image.Dither.NONE).save(path, optimize=True)


@functools.cache
def palette() -> Image.Image:
    """The color map, greys, and each color of curves and marks with its ways to white, where edges are smoothed."""
    grey = np.linspace(0, 1, 24)[:, None].repeat(3, axis=1)
    marks = np.array([to_rgb(color) for color in (*COLORS, SMALL_BATCH_COLOR, NOT_FINITE_COLOR)])
    ways = [1 - (1 - marks) * share for share in np.linspace(0.2, 1, 5)]
    rest = 256 - len(grey) - sum(map(len, ways))
    colors = np.concatenate([colormaps["viridis"](np.linspace(0, 1, rest))[:, :3], grey, *ways])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colors).round().astype(np.uint8).tobytes())
    return image


def page(names: Sequence[str], directory: Path) -> str:
    """What there is in the directory, in the order of the nets and figures, each picture with a sentence."""
    lines = ["# Gallery", "", *INTRODUCTION, ""]
    for name in names:
        there = {
            figure: caption
            for figure, caption in WHAT_ONE_SEES[name].items()
            if (directory / f"{name}_{figure}.png").exists()
        }
        lines += [f"## {NETS_IN_WORDS[name]}", ""] if there else []
        for figure, caption in there.items():
            what = f"{NETS_IN_WORDS[name]}: {FIGURES_IN_WORDS[figure]}"
            lines += [f"![{what}]({name}_{figure}.png)", "", f"*{caption}*", ""]
    return "\n".join(lines)


NETS: dict[str, Callable[[], dict[str, Trained]]] = {
    function.__name__: function for function in (ffnn, efficientnet, resnet, vit, gru, llama, gan)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "gallery")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for net in arguments.only:
        start = perf_counter()
        torch.manual_seed(0)
        for name, trained in NETS[net]().items():
            print(f"{name}: {trained.history['step'].nunique()} steps, {perf_counter() - start:.0f} s")
            for figure_name, figure in figures_of(trained):
                save(figure, arguments.output / f"{name}_{figure_name}.png")
        print(f"    drawn after {perf_counter() - start:.0f} s")
    (arguments.output / "index.md").write_text(page(list(WHAT_ONE_SEES), arguments.output))


if __name__ == "__main__":
    main()
