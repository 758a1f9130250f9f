"""The losses of the first 50 steps of every net, which no change for the sake of speed may alter.

    python -m tests.losses            compares with the stored ones, on this machine and with any option
    python -m tests.losses --write    stores them anew: only where the arithmetic was meant to change, with the reason

A training is a chain of steps, each of which takes over the rounding of the last: in float32 two machines, or two ways
to compute the same, come apart by 1e-7 in the first step and by half within fifty. There only equal bits mean
something, on the same machine. In float64 what is computed differently stays apart by less than 1e-5, and what is
computed wrongly does not.

With ``--types float32 --write`` the losses in float64 stay as they are, to be compared with what was computed before.
The stored losses are those of one thread. ``--compile``, ``--device cuda``, ``--threads 2`` and ``--override
optimizer.fused=false`` compare other ways to compute them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn import functional as F

from sppbench.files import config_directory
from sppbench.run.assembly import make_data_and_net

STORED = Path(__file__).with_name("losses.json")
NETS = tuple(sorted(file.stem for file in (config_directory() / "model").glob("*.yaml")))
STEPS = 50
OTHER_WAYS = ("compile", "device", "threads", "override")
TYPES = {"float32": torch.float32, "float64": torch.float64}


def losses(
    name: str,
    dtype: torch.dtype,
    device: str = "cpu",
    compiled: bool = False,
    overrides: tuple[str, ...] = (),
    steps: int = STEPS,
) -> list[float]:
    """The losses of the first steps of Adam at 0.001 on batches of 16 augmented digits, by the parts of a run."""
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        fixed = [f"model={name}", "name=losses", "data=digits", "data.batch_size=16", "optimizer.lr=0.001"]
        cfg = compose("train", [*fixed, *overrides])
    data, net = make_data_and_net(cfg)
    data.prepare_data()
    data.setup()
    net.to(device, dtype)
    if compiled:
        net.compile()
    optimizer = instantiate(cfg.optimizer)(net.parameters())
    found = []
    for images, labels in islice(chain.from_iterable(repeat(data.train_dataloader())), steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images.to(device, dtype)), labels.to(device))
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return [float(loss) for loss in found]


def machine() -> dict[str, Any]:
    """What the bits of a result on the CPU depend on, apart from the number of threads and the environment."""
    file = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in (file.read_text().splitlines() if file.exists() else ())]
    known = {key.strip(): value.strip() for key, _, value in lines}
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "caches": [file.read_text().strip() for file in caches],
        **{key: known.get(key) for key in ("cpu family", "model", "model name", "stepping", "flags")},
    }


def distance(found: list[float], stored: list[float], last: int = STEPS) -> float:
    """The largest relative difference in the first ``last`` steps."""
    pairs = list(zip(found[:last], stored[:last], strict=True))
    return max(abs(a - b) / abs(b) if math.isfinite(a) else math.inf for a, b in pairs)


def read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(STORED.read_text())
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--override", action="append", default=[])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    options = parser.parse_args()
    changed = any(getattr(options, key) != parser.get_default(key) for key in ("nets", *OTHER_WAYS))
    if options.write and (changed or "float32" not in options.types):
        parser.error("--write stores all nets, in float32 at least, of one thread and of the settings of a run")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    if not options.write:
        print("| net | type | equal bits, of 50 | difference, step 1 | 1 to 10 | 1 to 20 | 1 to 50 |")
        print("|---|---|---:|---:|---:|---:|---:|")
    found: dict[str, dict[str, list[float]]] = {}
    for name in options.nets:
        for kind in options.types:
            ours = losses(name, TYPES[kind], options.device, options.compile, tuple(options.override))
            found.setdefault(kind, {})[name] = ours
            if not options.write:
                stored = read()["losses"][kind][name]
                parts = [f"{distance(ours, stored, last):.1e}" for last in (1, 10, 20, STEPS)]
                equal = sum(a == b for a, b in zip(ours, stored, strict=True))
                print(f"| {name} | {kind} | {equal} | {' | '.join(parts)} |", flush=True)
    if options.write:
        STORED.write_text(json.dumps({"machine": machine(), "losses": read()["losses"] | found}, indent=0) + "\n")


if __name__ == "__main__":
    main()
