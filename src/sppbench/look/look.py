"""One forward and backward pass of a net as it was built, and what it shows."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from sppbench.look.nets import LookError, Net
from sppbench.run.error_text import one_line
from sppbench.spp.diagnosis.diagnose import diagnose
from sppbench.spp.diagnosis.finding import Findings
from sppbench.spp.names import DEFAULT_SIGNALS
from sppbench.spp.probe.batchnorm import BatchNormProbe
from sppbench.spp.probe.outputs import recorded_tensor
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.theory.net import expected_of_net

NEAR = 0.3  # relative difference up to which an expected value counts as met


@dataclass(frozen=True)
class View:
    """What a look at a net shows.

    Attributes:
        name: Of the net.
        shape: Of what it was called with.
        loss: What was differentiated, in words.
        frame: One row per (layer, signal), as from ``SignalProbe.collect``.
        expected: The activations that ``expected_of_net`` gives; without rows where theory says nothing. What it gives
            for gradients is for other questions: behind batch normalization it is too low.
        findings: What is wrong.
        notes: What is to be known of the numbers, such as where the channel axis is not known for sure.
        skipped: Layer → why it was not recorded.
        parameters: Their number.
        seconds: That it took.
    """

    name: str
    shape: tuple[int, ...]
    loss: str
    frame: pd.DataFrame
    expected: pd.DataFrame
    findings: Findings
    notes: tuple[str, ...]
    skipped: Mapping[str, str]
    parameters: int
    seconds: float

    def agreement(self) -> tuple[int, int, int]:
        """The number of recorded activations, of those that theory gives, and of those within 30 % of it."""
        recorded = self.frame[self.frame["signal"] == "activation"].set_index("layer")["second_moment"]
        expected = self.expected.set_index("layer")["second_moment"].reindex(recorded.index)
        near = (expected - recorded).abs() <= NEAR * recorded
        return len(recorded), int(np.isfinite(expected).sum()), int(near.sum())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block whose random numbers follow from a seed; outside it they go on as if it had not been."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def on_device(net: Net, inputs: Tensor, device: str) -> Tensor:
    """Moves a net to a device and returns its inputs there.

    Raises:
        LookError: There is no such device, or it is too small.
    """
    try:
        net.module.to(device)
        return inputs.to(device)
    except Exception as error:
        raise LookError(f"--device={device}: {one_line(error)}") from error


def look(net: Net, inputs: Tensor) -> View:
    """Calls a net in training mode and takes the gradient of a loss, with a probe attached.

    Args:
        net: As built.
        inputs: A batch of what it takes, on its device.

    Raises:
        LookError: The net cannot be called with it, or its output has no gradient.
    """
    start = time.perf_counter()
    module = net.module.train()
    with (
        SignalProbe(module, signals=(*DEFAULT_SIGNALS, "parameter_gradient")) as probe,
        BatchNormProbe(module) as gains,
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of libraries, on how the net is built
                output = module(**dict.fromkeys(net.arguments, inputs)) if net.arguments else module(inputs)
        except Exception as error:
            raise LookError(
                f"{net.name} cannot be called with a tensor of shape {tuple(inputs.shape)}: {one_line(error)}; "
                "give the shape of one sample, as in --input 3,32,32"
            ) from error
        loss, words = loss_of(net, inputs, output)
        torch.autograd.backward(loss)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frame = probe.collect()
        batchnorm = gains.collect() if gains.layers else None
        skipped = dict(probe.skipped)
    if frame.empty:
        raise LookError(f"{net.name} called no layer that can be recorded")
    expected, stops = _expected(net, inputs)
    return View(
        name=net.name,
        shape=tuple(inputs.shape),
        loss=words,
        frame=frame,
        expected=expected,
        findings=diagnose(frame, module, batchnorm=batchnorm),
        notes=(*(str(one.message) for one in caught), *stops),
        skipped=skipped,
        parameters=sum(one.numel() for one in module.parameters()),
        seconds=time.perf_counter() - start,
    )


def loss_of(net: Net, inputs: Tensor, output: Any) -> tuple[Tensor, str]:
    """A loss like that of its task, and what it is: of the next tokens, of classes drawn at random, or, of an output
    that is neither, its product with noise.

    Args:
        net: What was called.
        inputs: With what.
        output: What it returned: a tensor, or something that holds tensors.

    Raises:
        LookError: No tensor in it has a gradient.
    """
    x = recorded_tensor(output)
    if x is None or not x.requires_grad:
        raise LookError(f"{net.name} returns no floating-point tensor that has a gradient")
    if not inputs.is_floating_point() and x.ndim == 3 and x.shape[:2] == inputs.shape and x.shape[2] == net.tokens:
        return functional.cross_entropy(x[:, :-1].flatten(0, 1), inputs[:, 1:].flatten()), "cross-entropy, next tokens"
    if x.ndim == 2 and x.shape[1] > 1:
        classes = torch.randint(x.shape[1], (len(x),), device=x.device)
        return functional.cross_entropy(x, classes), "cross-entropy, random classes"
    return (x * torch.randn_like(x)).mean(), "mean of the output times noise"


def _expected(net: Net, inputs: Tensor) -> tuple[pd.DataFrame, list[str]]:
    """What theory says, without rows where it cannot follow the net at all; and where it stopped."""
    batch = dict.fromkeys(net.arguments, inputs) if net.arguments else inputs
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            table = expected_of_net(net.module, batch)
        except Exception as error:
            return pd.DataFrame({"layer": [], "second_moment": []}), [f"theory cannot follow it: {one_line(error)}"]
    notes = [str(one.message) for one in caught if str(one.message).startswith(expected_of_net.__name__)]
    return table[table["signal"] == "activation"], notes
