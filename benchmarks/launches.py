"""How many kernels a training step starts on a GPU, with and without recording, as a Markdown table. Needs no GPU.

    python benchmarks/launches.py [--models efficientnet_bn sn_efficientnet_mp ffnn_bn]

To start a kernel takes microseconds whatever it does, which is most of the time of a step of nets of this size. Counted
are the operations that are more than memory or another view of it, on torch's "meta" device, which holds no data; some
of them start more than one kernel. There the kernel in Triton cannot run: it is counted where it would. "at the end" is
what does not grow with the net: reading the weights and forming the statistics.
"""

import argparse
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_overhead import make_net
from machine import describe
from rounds import markdown
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.sums import gpu_kernel, statistics
from sppbench.spp.sums.batched import ROWS
from sppbench.spp.sums.cpu_kernel import inner_size


class Kernels(TorchDispatchMode):
    """Counts operations."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not (func.is_view or "empty" in func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def stand_in(kernels: Kernels, x: Tensor, axis: int) -> Tensor:
    """What ``sppbench.spp.sums.gpu_kernel.channel_rows`` starts, and a result of its shape."""
    channels, inner = x.shape[axis], inner_size(x, axis)
    kernels.number += 1 + (inner is None)
    *_, parts, _ = gpu_kernel._cut(channels, x.numel() // channels, inner or 1)
    out = torch.empty(parts, len(ROWS), channels, dtype=torch.float64, device=x.device)
    return out[0] if parts == 1 else out.sum(0)


def count(net: nn.Module, batch: int, triton: bool, signals: bool, gains: bool) -> tuple[int, int]:
    """Operations of forward and backward, and of what the probes do after it, in the second step (tables are there)."""
    probes: list[SignalProbe | BatchNormProbe] = [SignalProbe(net)] if signals else []
    probes += [BatchNormProbe(net)] if gains else []
    images = torch.empty(batch, 3, 32, 32, device="meta").to(memory_format=torch.channels_last)
    labels = torch.empty(batch, dtype=torch.int64, device="meta")
    for _ in range(2):
        net.zero_grad()
        with (
            Kernels() as during,
            mock.patch.object(
                statistics, "_sums_on_device", partial(stand_in, during) if triton else statistics._sums_on_device
            ),
        ):
            F.cross_entropy(net(images), labels).backward()
        with Kernels() as after:
            for probe in probes:
                probe.readings()
    for probe in probes:
        probe.close()
    return during.number, after.number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["efficientnet_bn", "sn_efficientnet_mp", "ffnn_bn"])
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    print(f"{describe()}; batch {options.batch}, eager\n")
    variants = {
        "forward and backward": (True, False, False),
        "with SignalProbe": (True, True, False),
        "and BatchNormProbe": (True, True, True),
        "the same without Triton": (False, True, True),
    }
    rows: list[list[object]] = []
    for model in options.models:
        net = make_net(model, torch.device("cpu")).to("meta")
        found = [count(net, options.batch, *variant) for variant in variants.values()]
        rows.append([model, *(f"{during:,} + {after}" if after else f"{during:,}" for during, after in found)])
    print(markdown(["kernels of a step, and at its end", *variants], rows))


if __name__ == "__main__":
    main()
