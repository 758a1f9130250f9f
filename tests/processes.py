"""Processes that tests start. They are forked from one that has imported torch, which takes seconds, once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Only what is installed: the process that imports it looks nowhere else.
multiprocessing.set_forkserver_preload(["lightning", "sppbench.spp.probe.probe", "sppbench.spp.callback"])
CONTEXT: Any = multiprocessing.get_context("forkserver")


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """A process that calls a function; it is running."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def in_processes(worker: Callable[..., Any], number: int, directory: Path) -> list[Any]:
    """What each of some processes returns from ``worker(rank, number)``, with torch.distributed (gloo) running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (worker, number, port, str(directory))
    torch.multiprocessing.start_processes(_start, arguments, nprocs=number, start_method="forkserver")
    return [pickle.loads((directory / f"{rank}.pickle").read_bytes()) for rank in range(number)]


def _start(rank: int, worker: Callable[[int, int], Any], number: int, port: int, directory: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=number)
    Path(directory, f"{rank}.pickle").write_bytes(pickle.dumps(worker(rank, number)))
    dist.barrier()
    dist.destroy_process_group()
