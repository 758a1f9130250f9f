"""The machine that a timing was taken on, in a line, and how nets are compiled there."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

COMPILE = "a mode of torch.compile, or its options that are to be true: triton.cudagraphs,combo_kernels"


def describe() -> str:
    """Processor, cores, threads, GPU and PyTorch's version."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def how_to_compile(value: str) -> dict[str, Any]:
    """Arguments of ``torch.compile`` from what ``COMPILE`` says."""
    if value in torch._inductor.list_mode_options():
        return {"mode": value}
    return {"options": dict.fromkeys(value.split(","), True)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
