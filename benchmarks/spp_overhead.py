"""What recording signals costs: the same training step with and without, in pairs in one run, as a Markdown table.

    python benchmarks/spp_overhead.py [--rounds 7] [--cases ffnn_bn:512 efficientnet_bn:128 efficientnet_bn:512]

All layers, activations, gradients and weights, at every step, fp32, with the settings of a run (channels_last, fused
Adam, on a CPU memory that is kept); eager, or with ``--compile MODE`` compiled, the statistics in the same graph. The
variants take turns within a round, so that a disturbance of the machine hits all of them; each does two steps, and the
second one counts, so that none pays for what the variant before it left behind. The ratio is the median of the pairs.
The floor is the time to read every activation, gradient and weight once, from their bytes and the bandwidth
measured in the same run. Memory (``--memory``) is the peak of what PyTorch holds within a step, weights and the
optimizer's state included; the resident memory of a process varies by several percent from one run to the next.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import wandb
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from machine import COMPILE, describe, how_to_compile
from rounds import in_turns, markdown, ratio, spread, timed
from sppbench.files import config_directory
from sppbench.run.memory import prepare_memory
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.probe import Readings, SignalProbe
from sppbench.spp.probe.readings import to_frame

FLUSH = 50


class Step:
    """A net and its optimizer; a call does one training step on the same batch."""

    def __init__(self, name: str, batch: int, device: torch.device, mode: str | None = None) -> None:
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = compose("train", [f"model={name}", "name=benchmark"])
        torch.manual_seed(0)
        self.net: nn.Module = instantiate(cfg.model).to(device, memory_format=torch.channels_last)
        if mode is not None:
            self.net.compile(**how_to_compile(mode))  # at its first call: with the hooks that are there then
        self.optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer)(self.net.parameters())
        self.images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        self.labels = torch.randint(100, (batch,), device=device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimizer.step()


class Plain(Step):
    """Without any recording."""


class Probe(Step):
    """SignalProbe, its statistics fetched and made a table every 50 steps."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.probe, self.pending = SignalProbe(self.net), list[Readings]()

    def __call__(self) -> None:
        super().__call__()
        readings = self.probe.readings()
        if readings is not None:
            self.pending.append(readings)
        if len(self.pending) == FLUSH:
            to_frame(self.pending)
            self.pending.clear()


class WithGains(Probe):
    """Also the backward gain of each batch normalization, as the callback records it by default."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gains = BatchNormProbe(self.net)

    def __call__(self) -> None:
        super().__call__()
        self.gains.readings()


class Watch(Step):
    """``wandb.watch(log="all", log_freq=1)``: histograms of weights and their gradients; no activations."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(silent=True))
        self.run.watch(self.net, log="all", log_freq=1)

    def __call__(self) -> None:
        super().__call__()
        self.run.log({})


class ToNumpy(Step):
    """Hooks that move each activation and gradient to NumPy and reduce there, as one writes it at first."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for module in self.net.modules():
            if not list(module.children()):
                module.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.reduce(output)
        if output.requires_grad:
            output.register_hook(self.reduce)

    @staticmethod
    def reduce(x: Tensor) -> None:
        values = x.detach().cpu().numpy()
        others = (0, *range(2, x.ndim))
        (np.mean(values, axis=others) ** 2).mean(), np.var(values, axis=others).mean()

    def __call__(self) -> None:
        super().__call__()
        for weight in self.net.parameters():
            self.reduce(weight)


VARIANTS: dict[str, Callable[..., Step]] = {
    "plain": Plain,
    "SignalProbe": Probe,
    "SignalProbe and BatchNormProbe": WithGains,
    "wandb.watch": Watch,
    "hooks to NumPy": ToNumpy,
}
with suppress(ImportError):
    import torchlens

    class Lens(Step):
        """TorchLens: keeps every operation's activation of a forward pass, without statistics or gradients."""

        def __call__(self) -> None:
            super().__call__()
            torchlens.trace(self.net, self.images)

    VARIANTS["TorchLens"] = Lens


def bytes_to_read(step: Step) -> int:
    """Bytes of every leaf's output, its gradient, and every weight."""
    total = 0

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * output.element_size()

    handles = [m.register_forward_hook(hook) for m in step.net.modules() if not list(m.children())]
    step()
    for handle in handles:
        handle.remove()
    return total + sum(weight.numel() * weight.element_size() for weight in step.net.parameters())


def bandwidth(device: torch.device) -> float:
    """Bytes per second of reading a tensor that no cache holds."""
    x = torch.ones(64 * 2**20, device=device)
    return max(x.numel() * 4 / timed(x.max, device) for _ in range(5))


def second_step(step: Step, device: torch.device) -> float:
    """Seconds of the second of two steps."""
    step()
    return timed(step, device)


def peak_memory(step: Step) -> float:
    """Peak MiB that PyTorch holds on the CPU within a step, from every allocation that its profiler sees."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    states = [value for state in step.optimizer.state.values() for value in state.values()]
    before = [*step.net.parameters(), *step.net.buffers(), *states]
    return (peak + sum(tensor.numel() * tensor.element_size() for tensor in before)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after one to warm up")
    parser.add_argument("--cases", nargs="+", default=["ffnn_bn:512", "efficientnet_bn:128", "efficientnet_bn:512"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", help=COMPILE)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    options = parser.parse_args()
    os.environ["WANDB_SILENT"] = "true"
    if options.device.type == "cpu":
        prepare_memory()
    cases = [(name, int(batch)) for name, _, batch in (case.partition(":") for case in options.cases)]
    print(f"{describe()}; device {options.device}\n")
    for name, batch in cases:
        if options.memory:
            steps = ((variant, VARIANTS[variant](name, batch, options.device)) for variant in options.variants)
            peaks = {variant: peak_memory(step) for variant, step in steps}
            rows = [[variant, f"{peak:,.1f}", f"{peak / peaks['plain']:.3f}"] for variant, peak in peaks.items()]
            print(markdown([f"{name}, batch {batch}", "peak MiB", "ratio"], rows))
        else:
            measure(name, batch, options)
        print(flush=True)


def measure(name: str, batch: int, options: argparse.Namespace) -> None:
    """Prints the table of one net and batch size."""
    arguments = (name, batch, options.device, options.compile)
    steps = {variant: VARIANTS[variant](*arguments) for variant in options.variants}
    times = in_turns(
        {variant: partial(second_step, step, options.device) for variant, step in steps.items()}, options.rounds
    )
    plain = times["plain"]
    floor = bytes_to_read(Plain(name, batch, options.device)) / bandwidth(options.device)
    rows: list[list[object]] = [
        [variant, f"{1e3 * median(values):.1f}", spread(values, 1e3), f"{ratio(values, plain):.2f}"]
        for variant, values in times.items()
    ]
    least = median(plain) + floor
    rows.append(["floor: plain + one reading", f"{1e3 * least:.1f}", "", f"{least / median(plain):.2f}"])
    print(markdown([f"{name}, batch {batch}", "ms a step", "range", "ratio to plain"], rows))


if __name__ == "__main__":
    main()
