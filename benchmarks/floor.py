"""The least that a training step can take on this machine, what it takes, and what it is spent on, as Markdown tables.

    python benchmarks/floor.py [--nets efficientnet_bn ffnn_bn] [--batch-size 512] [--device cuda]

The floor is the larger of two times. Memory: the output of every convolution and linear layer is moved five times
(written and read forward, read again backward, its gradient written and read), with everything between two of them
merged into them, and each weight ten times (read forward, backward and by Adam, and written; its gradient written and
read; Adam's two moments read and written); at the bandwidth of a copy. Arithmetic: the multiplications and additions of
convolutions and linear layers (without the taps that are left out), for the output and the gradients of weight and of
input (not of the images), at the rate of a large matrix product in float32. It is an estimate: what a cache holds need
not be moved, and products with padding are counted. Both rates are measured in the same run, as is the step: the
settings of a run without probe, median of the rounds. The second table sorts the operations' time, from PyTorch's
profiler; what passes between them in Python is not in it.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from machine import describe
from rounds import markdown, timed
from spp_overhead import Plain
from sppbench.models.convolution import Conv2d
from sppbench.run.memory import prepare_memory

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "cudnn_convolution", "_conv_depthwise2d"),
    "batch normalization, backward": ("batch_norm_backward", "batchnorm_backward"),
    "batch normalization, forward": ("native_batch_norm", "cudnn_batch_norm"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "activations, both ways": ("silu", "elu", "threshold", "clamp_min", "sigmoid"),
    "optimizer": ("fused_adam", "Optimizer."),
}
OTHER = "other: sums, products and copies of tensors"


def least(step: Plain) -> tuple[int, int]:
    """Bytes and floating-point operations, as above."""
    outputs = operations = 0

    def hook(module: nn.Conv2d | nn.Linear, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal outputs, operations
        [x] = arguments
        weights = module.weight[0].numel()
        if isinstance(module, Conv2d):
            (top, bottom), (left, right) = module.taps(0, x.shape[-2]), module.taps(1, x.shape[-1])
            weights = module.weight.shape[1] * (bottom - top) * (right - left)
        outputs += output.numel() * output.element_size()
        operations += (3 if x.requires_grad else 2) * 2 * output.numel() * weights

    layers = [module for module in step.net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    step()
    for handle in handles:
        handle.remove()
    return 5 * outputs + 10 * sum(
        weight.numel() * weight.element_size() for weight in step.net.parameters()
    ), operations


def best(action: Callable[[], object], device: torch.device) -> float:
    return min(timed(action, device) for _ in range(7))


def rates(device: torch.device) -> tuple[float, float]:
    """Bytes that a copy moves in a second, and floating-point operations of a matrix product."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.ones(size, size, device=device)
    bandwidth = 2 * 4 * source.numel() / best(lambda: target.copy_(source), device)
    return bandwidth, 2 * size**3 / best(lambda: torch.mm(matrix, matrix), device)


def shares(step: Plain, device: torch.device) -> dict[str, float]:
    """Share of the operations' time by kind."""
    kinds = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *kinds]) as profiler:
        timed(step, device)
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU or event.is_user_annotation:
            continue  # a kernel's time is also that of the operation that started it
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), OTHER)
        found[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    total = sum(found.values())
    return {kind: value / total for kind, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--nets", nargs="+", default=["efficientnet_bn", "sn_efficientnet_mp", "ffnn_bn", "ffnn_bn_h100"]
    )
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after two to warm up")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.device.type == "cpu":
        prepare_memory()
    bandwidth, speed = rates(options.device)
    rows, parts = [], {}
    for name in options.nets:
        step = Plain(name, options.batch_size, options.device)
        moved, operations = least(step)
        memory, arithmetic = moved / bandwidth, operations / speed
        took = median([timed(step, options.device) for _ in range(options.rounds + 2)][2:])
        floor = max(memory, arithmetic)
        rows.append([name, *(f"{1e3 * value:.1f}" for value in (memory, arithmetic, took)), f"{took / floor:.1f}"])
        parts[name] = shares(step, options.device)
    print(
        f"{describe()}; device {options.device}, batch {options.batch_size}; copy {bandwidth / 1e9:.1f} GB/s, "
        f"matrix product {speed / 1e9:,.0f} GFLOP/s\n"
    )
    print(markdown(["ms", "floor: memory", "floor: arithmetic", "a step", "step / floor"], rows))
    print()
    table = [[kind, *(f"{100 * parts[name][kind]:.0f} %" for name in parts)] for kind in (*KINDS, OTHER)]
    print(markdown(["share of a step", *parts], table))


if __name__ == "__main__":
    main()
