"""What `diagnose` finds in nets of timm that nobody has broken: at the start, and after some steps of AdamW on noise.

    python benchmarks/diagnose_nets.py [--held-out] [--only 'vit*' ...] [--steps 3]

The limits of `diagnose` were chosen with the first nets at hand, and not with those of `--held-out`. All signals of all
leaves and blocks are recorded, so that everything can be judged. Needs timm.
"""

from __future__ import annotations

import argparse
import fnmatch
import warnings
from importlib import metadata
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from torch import nn

from machine import describe
from nets import IMAGES, timm_net
from sppbench.spp import BatchNormProbe, SignalProbe, diagnose
from sppbench.spp.diagnosis.finding import Findings
from sppbench.spp.names import SIGNALS
from sppbench.spp.probe.blocks import find_blocks
from sppbench.spp.probe.layers import choose_layers, named_modules

CLASSES, BATCH = 10, 4
HELD_OUT = (  # name, pixels
    *(("fbnetc_100", 64), ("tinynet_e", 64), ("lcnet_050", 64), ("semnasnet_075", 64), ("rexnet_100", 64)),
    *(("hrnet_w18_small", 64), ("dpn48b", 64), ("skresnet18", 64), ("eca_nfnet_l0", 64), ("selecsls42", 64)),
    *(("inception_next_atto", 64), ("poolformerv2_s12", 64), ("mobilevitv2_050", 64), ("efficientvit_b0", 64)),
    *(("pit_ti_224", 224), ("gmixer_12_224", 224), ("coat_lite_tiny", 224), ("crossvit_tiny_240", 240)),
    *(("swin_s3_tiny_224", 224), ("vit_relpos_small_patch16_224", 224), ("eva02_tiny_patch14_224", 224)),
)
HEAD = """# What `diagnose` finds in healthy nets

`python benchmarks/diagnose_nets.py{options}`; timm {timm}; {machine}; {minutes:.0f} minutes.

Nets as timm makes them, without pretrained weights, on noise and random labels, batches of {batch}, AdamW with a
learning rate of 1e-3. Leaves and blocks, all signals, and the gains of batch normalizations.

| net | at the start | after {steps} steps | seconds |
|---|---|---|---:|
"""


def recorded(net: nn.Module, pixels: int, steps: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Signals and gains of the first steps: the first of them is that of the net as it was made."""
    chosen = {*choose_layers(net), *find_blocks(named_modules(net))}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    signals, gains = [], []
    with (
        SignalProbe(net, lambda name, module: name in chosen, signals=SIGNALS) as probe,
        BatchNormProbe(net) as batchnorm_probe,
    ):
        for step in range(steps + 1):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(BATCH, 3, pixels, pixels, generator=generator)
            y = torch.randint(CLASSES, (BATCH,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            signals.append(probe.collect())
            gains.append(batchnorm_probe.collect())
    return pd.concat(signals, ignore_index=True), pd.concat(gains, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], help="nets, as globs")
    parser.add_argument("--held-out", action="store_true", help="other nets")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    ending = "_held_out.md" if arguments.held_out else ".md"
    output = arguments.output or Path(__file__).with_name(f"{Path(__file__).stem}{ending}")
    warnings.simplefilter("ignore")
    options = " --held-out" * arguments.held_out
    options += "" if arguments.only == ["*"] else " --only " + " ".join(map(repr, arguments.only))
    options += f" --steps {arguments.steps}" * (arguments.steps != parser.get_default("steps"))
    lines, said, begin = [], [], perf_counter()
    for name, pixels in dict(HELD_OUT if arguments.held_out else IMAGES).items():
        if not any(fnmatch.fnmatch(name, glob) for glob in arguments.only):
            continue
        torch.manual_seed(0)
        net, _ = timm_net(name, pixels)()
        signals, gains = recorded(net.train(), pixels, arguments.steps)
        start = perf_counter()
        found: list[Findings] = []
        for last in (0, arguments.steps):
            some, of_gains = signals[signals["step"] <= last], gains[gains["step"] <= last]
            found.append(diagnose(some, net, batchnorm=of_gains if len(of_gains) else None))
        seconds = perf_counter() - start
        lines.append(f"| {name} | {len(found[0])} | {len(found[1])} | {seconds:.2f} |\n")
        said += [f"- {name}: {line}\n" for one in found if one for line in str(one).splitlines()]
        print(lines[-1], *said, sep="", end="", flush=True)
        head = HEAD.format(
            options=options,
            timm=metadata.version("timm"),
            machine=describe(),
            minutes=(perf_counter() - begin) / 60,
            batch=BATCH,
            steps=arguments.steps,
        )
        output.write_text("".join([head, *lines, *(["\nWhat it finds:\n\n", *dict.fromkeys(said)] if said else [])]))


if __name__ == "__main__":
    main()
