"""Training steps per second of one net in several processes at once, on one device, as a Markdown table.

    python benchmarks/several_at_once.py [--processes 1 4 6 8] [--seconds 6] [--compile reduce-overhead] [--mps]

A step of a small net leaves most of a GPU idle. Several runs of a sweep then share it, and what counts is the sum of
their speeds. Each process trains ``--net`` as a run does (Adam, fused, channels_last, our convolutions) on images that
are on the device already; all begin together, when the slowest has warmed up. ``--mps`` starts NVIDIA's MPS daemon for
the measurement, which lets kernels of several processes run at the same time, and ends it afterwards. A number of
processes that fails, as for lack of memory, is a row that says so.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import repeat
from multiprocessing.synchronize import Barrier

import torch
import torch.multiprocessing as mp

from machine import COMPILE, describe
from rounds import markdown
from sppbench.run.memory import prepare_memory
from training import NETS, Training

WAIT_SECONDS = 120.0  # for the slowest process to compile and warm up


@contextmanager
def mps() -> Iterator[None]:
    """NVIDIA's Multi-Process Service, with pipes and logs of its own."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        os.environ |= places
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False)
            for name in places:
                del os.environ[name]


def work(options: argparse.Namespace, begin: Barrier, results: "mp.Queue[float]") -> None:
    """One process: warms up, waits for the others, and reports its steps per second."""
    torch.set_num_threads(1)
    device = torch.device(options.device)
    if device.type == "cpu":
        prepare_memory()
    images = torch.randn(options.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(100, (options.batch_size,), device=device)
    settings = {"layout": torch.channels_last, "fused": True, "ours": True, "mode": options.compile}
    training = Training(options.net, repeat((images, labels)), device, **settings)
    for _ in range(3):
        training()
    begin.wait(WAIT_SECONDS)
    steps, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < options.seconds:
        training()  # two steps
        steps += 2
    results.put(steps / seconds)


def measure(processes: int, options: argparse.Namespace) -> list[float]:
    """Steps per second of each process; fewer than asked for where some have failed."""
    context = mp.get_context("spawn")
    begin, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(options, begin, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_SECONDS + 2 * options.seconds)
        if worker.is_alive():
            worker.kill()
            worker.join()
    return [results.get() for worker in workers if worker.exitcode == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 6, 8])
    parser.add_argument("--seconds", type=float, default=6.0, help="measured, of each number of processes")
    parser.add_argument("--net", choices=NETS, default="efficientnet_bn")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", help=COMPILE)
    parser.add_argument("--mps", action="store_true")
    options = parser.parse_args()
    rows = []
    with mps() if options.mps else nullcontext():
        for processes in options.processes:
            found = measure(processes, options)
            failed = processes - len(found)
            total = f"{sum(found):.1f}" if not failed else f"{failed} failed"
            each = f"{min(found):.1f} to {max(found):.1f}" if found else "-"
            rows.append([processes, total, each, f"{options.batch_size * sum(found):,.0f}"])
    how = f"compiled ({options.compile})" if options.compile else "not compiled"
    service = "with MPS" if options.mps else "without MPS"
    print(f"{describe()}; {options.net}, batch {options.batch_size}, {how}, {service}\n")
    print(markdown(["processes", "steps/s", "of each", "images/s"], rows), flush=True)


if __name__ == "__main__":
    main()
