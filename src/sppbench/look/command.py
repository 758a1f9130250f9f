"""The command ``sppbench look``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser, path: Callable[[str], Path]) -> None:
    """Its arguments; ``path`` makes a path of one of them."""
    parser.add_argument(
        "net",
        metavar="NET",
        help="timm:resnet50, torchvision:vit_b_16, hf:path/to/config.json, sppbench:sn_efficientnet_mp, or a class of "
        "your own such as mypackage.Net, which is called without arguments",
    )
    parser.add_argument("--images", type=path, metavar="DIR", help="the first images of a folder instead of noise")
    parser.add_argument(
        "--input", type=_shape, metavar="3,32,32", help="shape of one sample, if the net's library does not give it"
    )
    parser.add_argument("--batch", type=_at_least(2), default=8, metavar="N", help="samples (default: %(default)s)")
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="seed of the weights and of the noise (default: 0)"
    )
    parser.add_argument("--device", default="cpu", help="device to run it on, such as cuda (default: %(default)s)")
    parser.add_argument(
        "--output", type=path, metavar="OUT", help="folder for the figure and the table (default: outputs/look/<net>)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Looks at a net, prints what it shows, and writes the figure and the whole table."""
    from sppbench.look.inputs import images, noise
    from sppbench.look.look import look, on_device, seeded
    from sppbench.look.nets import find_net
    from sppbench.look.saving import write_view
    from sppbench.look.text import text_of

    folder = arguments.output or Path("outputs", "look", re.sub(r"[^\w.=-]+", "-", arguments.net).strip("-."))
    with seeded(arguments.seed):
        net = find_net(arguments.net)
        if arguments.images:
            inputs = images(net, arguments.images, arguments.batch, arguments.input)
        else:
            inputs = noise(net, arguments.batch, arguments.input)
        view = look(net, on_device(net, inputs, arguments.device))
    named = str(arguments.images) if arguments.images else "noise" if inputs.is_floating_point() else "random tokens"
    print(text_of(view, named))
    for path in write_view(view, folder):
        print(f"Written: {path}")
    return 1 if view.findings else 0


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) if size.strip().isdigit() else 0 for size in text.split(","))
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be positive integers such as 3,32,32, got {text!r}")
    return sizes


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")
        return int(text)

    return number
