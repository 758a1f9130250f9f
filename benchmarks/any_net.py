"""The probe on nets and loops of all kinds: is training untouched, are the numbers right, is anything missing?

    python benchmarks/any_net.py [--only GLOB ...] [--loops plain compiled] [--output benchmarks/any_net.md]

Needs timm, transformers, diffusers, peft and torch_geometric beside sppbench. Each net, small or with small inputs and
with random weights, is trained for two steps of SGD by each loop, with and without a probe of all signals:

- plain;
- accumulated: a batch in two parts;
- autocast: under bfloat16;
- compiled: by ``torch.compile`` (backend ``aot_eager``, with what graph breaks there are); on request.

*Untouched*: losses and all states are bit for bit those without the probe. *Right*: of the last step, second moment,
largest magnitude and share of zeros of activations, gradients, weights, their gradients and their updates are those of
the tensors themselves, which this script keeps whole and reduces in double precision (not activations and gradients of
the loop ``compiled``, where its hooks would change the graph). *Missing*: leaves that were called and weights that have
a gradient must be in the table or in ``skipped``.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from machine import describe
from nets import NETS, Batch
from sppbench.spp import SignalProbe

SIGNALS = ("activation", "gradient", "parameter", "parameter_gradient", "update")
STEPS = 2


def loss_of(output: Any) -> Tensor:
    """A loss that reaches every tensor that a net returns."""
    tensors = [x for x in flat(output) if x.is_floating_point() and x.requires_grad]
    return torch.stack([x.float().square().mean() for x in tensors]).sum()


def flat(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for one in output.values():
            yield from flat(one)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from flat(one)


class Loop:
    """A net that is trained in one way."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Callable[[int], Batch]]], way: str) -> None:
        torch.manual_seed(0)
        self.net, self.batch = make()
        self.net.train()
        self.way = way
        self.called: Any = self.net
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        self.losses: list[float] = []

    def compile(self) -> None:
        torch._dynamo.reset()
        self.called = torch.compile(self.net, backend="aot_eager")

    def step(self, step: int) -> None:
        torch.manual_seed(step)  # of dropout
        self.optimizer.zero_grad()
        parts = 2 if self.way == "accumulated" else 1
        for part in range(parts):
            arguments, keywords = self.batch(step * parts + part)
            autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.way == "autocast")
            with autocast:
                loss = loss_of(self.called(*arguments, **keywords)) / parts
            loss.backward()
            self.losses.append(float(loss))
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.net.state_dict().items() if isinstance(x, Tensor)}


class CannotTrain(Exception):
    """The net cannot be trained in a way, without a probe."""


class Whole:
    """Keeps outputs and their gradients of the last step, call by call, and reduces them in double precision."""

    def __init__(self, net: nn.Module) -> None:
        self.active, self.calls = False, {}
        self.found: dict[tuple[str, str], list[Tensor]] = {}
        self.leaves_called: set[str] = set()
        net.register_forward_pre_hook(lambda module, arguments: self.calls.clear())
        for name, module in net.named_modules():
            module.register_forward_hook(self.hook(name or type(module).__name__, module))

    def hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        is_leaf = next(module.children(), None) is None

        def keep(own: nn.Module, arguments: Any, output: Any) -> None:
            if not self.active or not torch.is_grad_enabled():
                return
            tensors = [x for x in flat(output) if x.is_floating_point() and x.ndim and x.numel()]
            if not tensors:
                return
            if is_leaf:
                self.leaves_called.add(name)
            self.calls[name] = call = self.calls.get(name, 0) + 1
            label = name if call == 1 else f"{name}#{call}"
            self.found.setdefault(("activation", label), []).append(tensors[0].detach().clone())
            if tensors[0].requires_grad:
                tensors[0].register_hook(
                    lambda gradient: self.found.setdefault(("gradient", label), []).append(gradient.detach().clone())
                )

        return keep


def moments(tensors: list[Tensor]) -> tuple[float, float, float]:
    """Second moment, largest magnitude and share of zeros of some tensors as one."""
    x = torch.cat([one.double().reshape(-1) for one in tensors])
    return float(x.square().mean()), float(x.abs().max()), float((x == 0).double().mean())


def wrong_numbers(frame: pd.DataFrame, expected: dict[tuple[str, str], tuple[float, ...]]) -> list[str]:
    """Rows that differ from what is expected by more than a millionth, or of which nothing is known."""
    wrong = []
    for row in frame.itertuples():
        known = expected.get((row.signal, row.layer))
        if known is None:
            continue
        for name, value in zip(("second_moment", "absmax", "zeros"), known, strict=False):
            got = getattr(row, name)
            if not abs(got - value) <= 1e-6 * abs(value) + 1e-30 and not (got != got and value != value):
                wrong.append(f"{row.signal} of {row.layer}: {name} {got:.7g}, not {value:.7g}")
                break
    return wrong


def weights_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """As the probe names them."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in net.named_parameters():
        own = name.rpartition(".")[2]
        if own == "bias" or own.startswith("bias_") or own.endswith("_bias") or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        found[name.removesuffix(".weight") if own == "weight" else name] = parameter
    return found


def check(make: Callable[[], tuple[nn.Module, Callable[[int], Batch]]], way: str) -> dict[str, Any]:
    """One net by one loop."""
    plain = Loop(make, way)
    if way == "compiled":
        plain.compile()
    try:
        for step in range(STEPS):
            plain.step(step)
    except Exception as error:
        raise CannotTrain(f"{type(error).__name__}: {error}".partition("\n")[0][:80]) from error

    loop = Loop(make, way)
    with SignalProbe(loop.net, signals=SIGNALS) as probe:
        if way == "compiled":
            loop.compile()
        whole = None if way == "compiled" else Whole(loop.net)
        for step in range(STEPS):
            last = step == STEPS - 1
            before = {name: x.detach().clone() for name, x in weights_of(loop.net).items()}
            if whole is not None:
                whole.active = last
            loop.step(step)
            frame = probe.collect()
        skipped = dict(probe.skipped)
    untouched = loop.losses == plain.losses and all(
        torch.equal(one, other) or bool((one.isnan() & other.isnan()).any())
        for one, other in zip(loop.state().values(), plain.state().values(), strict=True)
    )

    expected = {key: moments(tensors) for key, tensors in (whole.found if whole else {}).items()}
    if whole is not None and way == "accumulated":  # a call in each part: one tensor of both
        expected = {key: value for key, value in expected.items() if len(whole.found[key]) == 2}
    weights = weights_of(loop.net)
    for name, x in weights.items():
        if not x.is_floating_point() or not x.numel():
            continue
        expected["parameter", name] = moments([before[name]])
        expected["update", name] = moments([x.detach() - before[name]])
        if x.grad is not None and x.grad.layout == torch.strided:
            expected["parameter_gradient", name] = moments([x.grad])
    known = set(frame.layer) | set(skipped)
    called = whole.leaves_called if whole is not None else set()
    passed = {name for name, module in loop.net.named_modules() if is_handing_on(module)}
    missing = sorted(called - known - passed)
    recorded = set(frame.loc[frame.signal == "parameter", "layer"])
    missing += sorted(
        f"weight {name}" for name, x in weights.items() if x.grad is not None and name not in recorded | set(skipped)
    )
    return {
        "untouched": untouched,
        "wrong": wrong_numbers(frame, expected),
        "missing": missing,
        "rows": len(frame),
        "compared": sum((row.signal, row.layer) in expected for row in frame.itertuples()),
        "skipped": skipped,
    }


def is_handing_on(module: nn.Module) -> bool:
    """What the probe leaves out by default."""
    return isinstance(module, nn.Identity) or (type(module).__name__.startswith("Dropout") and module.p == 0)


def versions() -> str:
    """Of the libraries that the nets are from."""
    names = ("timm", "torchvision", "transformers", "peft", "diffusers", "torch_geometric")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], help="nets, as globs")
    parser.add_argument("--loops", nargs="+", default=["plain", "accumulated", "autocast"])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines, faults, start = [], [], perf_counter()
    for name, make in NETS.items():
        if not any(fnmatch.fnmatch(name, glob) for glob in arguments.only):
            continue
        cells = []
        for way in arguments.loops:
            try:
                with contextlib.redirect_stdout(None):
                    found = check(make, way)
            except CannotTrain as error:
                cells.append(f"does not train without a probe: {error}")
                continue
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
                faults.append(f"- {name}, {way}: {reason} ({Path(where.filename).name}:{where.lineno})")
                cells.append("failed")
                print(name, way, reason, flush=True)
                continue
            problems = [] if found["untouched"] else ["training changed"]
            problems += [f"{len(found['wrong'])} wrong"] if found["wrong"] else []
            problems += [f"{len(found['missing'])} missing"] if found["missing"] else []
            cells.append(", ".join(problems) or f"{found['rows']} rows, {found['compared']} compared")
            for kind in ("wrong", "missing"):
                faults += [f"- {name}, {way}, {kind}: {one}" for one in found[kind][:3]]
            print(name, way, cells[-1], found["wrong"][:2], found["missing"][:3], flush=True)
        lines.append(f"| {name} | {' | '.join(cells)} |")
        write(arguments, lines, faults, perf_counter() - start)


def write(arguments: argparse.Namespace, lines: list[str], faults: list[str], seconds: float) -> None:
    loops, chosen = arguments.loops, "" if arguments.only == ["*"] else " --only " + " ".join(map(repr, arguments.only))
    head = [
        "# The probe on nets of all kinds",
        "",
        f"`python benchmarks/any_net.py{chosen}`; {versions()}; {describe()}; {seconds / 60:.0f} minutes.",
        "",
        "A cell names what is wrong, or else how many rows the table of a step has and how many of them were compared.",
        "",
        f"| net | {' | '.join(loops)} |",
        f"|---|{'---|' * len(loops)}",
    ]
    tail = ["", "What is wrong:", "", *faults] if faults else []
    arguments.output.write_text("\n".join([*head, *lines, *tail, ""]))


if __name__ == "__main__":
    main()
