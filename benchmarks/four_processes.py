"""The probe on a net that four processes (gloo) train by HSDP and by FSDP2 with tensor and sequence parallelism.

    python -m benchmarks.four_processes

Prints, for each, how many rows differ from what one process sees on the whole batch, and whether the losses are those
without a probe. It ends with status 1 if one differs. Two processes are among the tests; four take too long for them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.spp.probe.sharding import SIGNALS, Net, in_processes, seen, train, ways_of_four
from tests.spp.reference import seeded

from sppbench.spp import SignalProbe

NUMBERS = ("acsm", "acv", "mean", "absmax", "zeros")


def worker(rank: int, number: int) -> dict[str, Any]:
    """What a process sees."""
    return {name: seen(way, parts) for name, (way, parts) in ways_of_four().items()}


def main() -> int:
    net = seeded(Net)
    with SignalProbe(net, signals=SIGNALS) as probe:
        expected = train(net, probe).set_index(["step", "layer", "signal"]).sort_index()
    with tempfile.TemporaryDirectory() as directory:
        found = in_processes(worker, 4, Path(directory))
    wrong = False
    for name, (frame, skipped, untouched) in found[0].items():
        frame = frame.set_index(["step", "layer", "signal"]).sort_index()
        same_rows = list(frame.index) == list(expected.index)
        differing = 0
        if same_rows:
            scale = expected["second_moment"].clip(lower=1e-12)
            errors = [
                (frame[one] - expected[one]).abs() / (scale if one in ("acsm", "acv") else scale**0.5 + 1e-6)
                for one in NUMBERS
            ]
            differing = int((sum((error > 1e-4).astype(int) for error in errors) > 0).sum())
        print(
            f"{name}: {len(frame)} rows{'' if same_rows else ', not those of one process'}, {differing} differ, "
            f"skipped {skipped or 'nothing'}, training {'untouched' if untouched else 'changed'}"
        )
        wrong |= not same_rows or differing > 0 or not untouched or bool(skipped)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
