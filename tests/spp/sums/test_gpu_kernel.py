"""The GPU's kernel: on a GPU where there is one, otherwise by Triton's interpreter (see conftest.py)."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sppbench.spp import SignalProbe
from sppbench.spp.sums import statistics
from sppbench.spp.sums.cpu_kernel import Kernel
from sppbench.spp.sums.statistics import acsm_acv, channel_sums

pytest.importorskip("triton")
from sppbench.spp.sums.gpu_kernel import channel_rows

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """The kernel; that Triton's interpreter does not get on with the version of NumPy is no fault of its own."""
    try:
        channel_rows(torch.zeros(1, 1, device=DEVICE), 1)
    except Exception as error:
        if CUDA:
            raise
        pytest.skip(f"Triton's interpreter fails: {error}")
    return channel_rows


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def expected(x: Tensor, axis: int) -> Tensor:
    """The eight rows, each sum with one rounding."""
    tiny = torch.finfo(x.dtype).tiny if x.dtype in (torch.float16, torch.bfloat16) else math.nan
    channels = np.moveaxis(x.double().cpu().numpy(), axis, 0).reshape(x.shape[axis], -1)
    finite = np.isfinite(channels)
    rows = [
        [math.fsum(channel) if np.isfinite(channel).all() else math.nan for channel in channels],
        [math.fsum(np.square(channel)) for channel in channels],
        (~finite).sum(1),
        (channels == 0).sum(1),
        np.full(len(channels), math.nan) if math.isnan(tiny) else ((channels != 0) & (np.abs(channels) < tiny)).sum(1),
        finite.shape[1] * np.ones(len(channels)),
        x.shape[0] * np.ones(len(channels)),
        np.abs(channels).max(1),
    ]
    return torch.tensor(np.array(rows))


def check(kernel: Kernel, x: Tensor, axis: int) -> None:
    before = x.clone()
    found = kernel(x, axis)
    assert found is not None
    assert (found.dtype, found.device.type) == (torch.float64, DEVICE.type)
    right = expected(x.cpu(), axis)
    scale = torch.from_numpy(np.abs(np.moveaxis(x.double().cpu().numpy(), axis, 0)).reshape(x.shape[axis], -1).sum(1))
    found = found.cpu()
    finite = right[0].isfinite()
    assert torch.all((found - right)[0, finite].abs() <= 1e-13 * scale[finite])
    assert torch.all(~found[0, ~finite].isfinite())
    torch.testing.assert_close(found[1:], right[1:], rtol=1e-14, atol=0, equal_nan=True)
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))


LAYOUTS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "(N, C)": (lambda: normal(600, 40), 1),
    "(N, C), few": (lambda: normal(7, 5), 1),
    "(N, C), many channels": (lambda: normal(9, 1153), 1),
    "(N, C, L)": (lambda: normal(33, 41, 49), 1),
    "(N, L, C)": (lambda: normal(33, 49, 41), 2),
    "NCHW": (lambda: normal(65, 24, 7, 9), 1),
    "NCHW, small images": (lambda: normal(65, 50, 2, 2), 1),
    "channels_last": (lambda: normal(65, 24, 7, 9).to(memory_format=torch.channels_last), 1),
    "channels_last, many parts": (lambda: normal(128, 3, 32, 32).to(memory_format=torch.channels_last), 1),
    "one channel, many parts": (lambda: normal(70_000, 1), 1),
    "one element a channel": (lambda: normal(300), 0),
    "weight": (lambda: normal(96, 40, 3, 3), 0),
    "transposed": (lambda: normal(300, 20).T, 1),
    "gaps": (lambda: normal(65, 24, 14, 9)[:, ::2, ::2], 1),
    "expanded": (lambda: normal(65, 24, 1, 1).expand(65, 24, 5, 5), 1),
    "not at the start of its memory": (lambda: normal(10, 333)[3:].view(-1, 37), 1),
    "negated in passing": (lambda: torch._neg_view(normal(30, 6)), 1),
}
CONTENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "large mean, tiny variance": lambda x: 1e4 + 0.5 * x,
    "squares overflow float32": lambda x: 1e25 * x,
    "squares underflow float32": lambda x: 1e-30 * x,
    "float64": lambda x: x.double() + 0.3,
    "bfloat16": lambda x: (x + 0.5).bfloat16(),
    "float16": lambda x: (100 * x + 50).half(),
    "rectified": lambda x: (x - 0.5).relu(),
    "float16 that underflows": lambda x: (1e-6 * x**3).half(),
}
if CUDA:  # Triton's interpreter takes subnormal numbers of this type for others
    CONTENTS["bfloat16 that underflows"] = lambda x: (1e-38 * x.where(x > -1, 0)).bfloat16()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(kernel: Kernel, layout: str) -> None:
    make, axis = LAYOUTS[layout]
    check(kernel, make(), axis)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_contents(kernel: Kernel, content: str, memory_format: torch.memory_format) -> None:
    check(kernel, CONTENTS[content](normal(65, 24, 7, 9)).to(memory_format=memory_format), 1)


def test_elements_that_are_not_finite_are_counted(kernel: Kernel) -> None:
    x = normal(600, 40)
    x[0, 3], x[599, 3], x[300, 39] = math.nan, math.inf, -math.inf
    check(kernel, x, 1)
    check(kernel, x[:300], 1)


@pytest.mark.parametrize("x", [torch.ones(3, 2, device=DEVICE).long(), torch.empty(0, 3, device=DEVICE)])
def test_what_it_does_not_take(x: Tensor) -> None:
    assert channel_rows(x, 0) is None
    assert channel_rows(torch._efficientzerotensor(3, 2, device=DEVICE), 0) is None
    assert channel_rows(torch.nn.Parameter(torch.ones(2, device=DEVICE)), 0) is None


def test_statistics_are_right_with_it(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(65, 24, 7, 9).cpu() + 0.3
    right = acsm_acv(x), channel_sums(x, 1)
    monkeypatch.setattr(statistics, "kernel", lambda: kernel)
    assert acsm_acv(x.to(DEVICE)) == pytest.approx(right[0], rel=1e-12)
    torch.testing.assert_close(channel_sums(x.to(DEVICE), 1).cpu(), right[1], rtol=1e-12, atol=1e-9, equal_nan=True)


def test_a_probe_is_right_with_it(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in two parts of a batch."""

    def train(device: torch.device) -> pd.DataFrame:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)).to(device)
        frames = []
        with SignalProbe(net, signals=("activation", "gradient", "parameter", "parameter_gradient")) as probe:
            for step in range(2):
                for part in range(1 + step):
                    net(normal(5 + step, 3, 6, 6).to(device) + part).square().mean().backward()
                frames.append(probe.collect())
        return pd.concat(frames, ignore_index=True)

    right = train(torch.device("cpu"))
    if not CUDA:
        monkeypatch.setattr(statistics, "kernel", lambda: kernel)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # Of the net, where a GPU trains it: some means are nothing but rounding.
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if CUDA else {"rtol": 1e-9, "atol": 1e-14}
    pd.testing.assert_frame_equal(train(DEVICE), right, **tolerance)


def test_without_it_torch_forms_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sppbench.spp.sums.gpu_kernel", None)  # as without Triton
    assert statistics._gpu_kernel.__wrapped__() is None


def test_where_it_fails_torch_forms_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    def failing(x: Tensor, axis: int) -> Tensor:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("sppbench.spp.sums.gpu_kernel.channel_rows", failing)
    kernel = statistics._gpu_kernel.__wrapped__()
    assert kernel is not None
    assert [kernel(normal(3, 2), 1) for _ in range(3)] == [None] * 3
    assert attempts == 1


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sppbench.spp.sums.gpu_kernel import _join, _kernel
numbers = dict.fromkeys(("elements", "channels", "inner", "samples", "chunk"), "i32")

def compile(kernel, signature, constants, capability):
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True})
    assert made.asm["cubin"]

for kind, capability, block, columns, smallest, wide in (
    ("fp32", 80, 64, 32, 0.0, ()),
    ("fp32", 90, 2048, 1, 0.0, ()),
    ("bf16", 90, 256, 8, 1.1754943508222875e-38, ()),
    ("fp64", 90, 64, 32, 0.0, ("elements", "chunk", "inner")),
):
    constants = {"BLOCK": block, "COLUMNS": columns, "SMALLEST": smallest}
    signature = {"x": f"*{kind}", "out": "*fp64", **numbers, **dict.fromkeys(wide, "i64")}
    compile(_kernel, signature, constants, capability)
pointers = {"rows": "*fp64", "out": "*fp64", "parts": "i32", "channels": "i32"}
compile(_join, pointers, {"PARTS": 64, "PLACES": 32}, 90)
"""


@pytest.mark.skipif(CUDA, reason="the other tests compile it")
def test_it_compiles_for_gpus_that_are_not_there(tmp_path: Path) -> None:
    """What Triton's interpreter takes its compiler need not take."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
