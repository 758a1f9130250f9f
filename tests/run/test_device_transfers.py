"""A training step must not keep a device from working: by waiting for it (to read from it, or to copy to it from memory
that is not pinned), or by many small kernels where few do."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sppbench.data.augmentation import CropFlip
from sppbench.data.loader import TensorLoader
from sppbench.models import FFNN, EfficientNet
from sppbench.run.callbacks import StopOnNonFiniteLoss
from sppbench.run.classifier import Classifier
from sppbench.spp import SignalProbe
from sppbench.spp.probe.batchnorm import BatchNormProbe

STEPS = 4
WARM_UP = 2  # steps that lay out tables of what there is to record


class Transfers(TorchDispatchMode):
    """Notes each operation between the host and a device, and each tensor that is made of Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if len(devices) > 1 or ("lift_fresh" in str(func) and devices != {"cpu"}):
            self.found.append(f"{func} {sorted(devices)}")
        return out


class Training:
    """Steps of a run, with all that its callbacks do at every step."""

    def __init__(self, net: nn.Module, device: str) -> None:
        make_optimizer = partial(torch.optim.Adam, lr=1e-3, fused=device != "meta")  # as runs; not there for "meta"
        self.classifier = Classifier(net, make_optimizer, num_classes=10).to(device)
        self.classifier.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
        self.optimizer = self.classifier.configure_optimizers()
        self.probe, self.gains = SignalProbe(net), BatchNormProbe(net)
        self.divergence = StopOnNonFiniteLoss(every_n_steps=2 * STEPS)
        images = torch.zeros(8 * STEPS, 32, 32, 3, dtype=torch.uint8, device=device)
        labels = torch.zeros(len(images), dtype=torch.int64, device=device)
        self.labels = labels[:8]
        loader = TensorLoader(images, labels, 8, (0.5,) * 3, (0.5,) * 3, shuffle=True, augmentation=CropFlip(4))
        self.batches = iter(loader)
        self.trainer: Any = SimpleNamespace(
            global_step=0, is_last_batch=False, fit_loop=SimpleNamespace(_should_accumulate=lambda: False)
        )

    def step(self, number: int) -> None:
        batch = next(self.batches)
        self.probe.start_pass()
        out = self.classifier.training_step(batch, number)
        self.optimizer.zero_grad()
        out["loss"].backward()
        self.optimizer.step()
        self.divergence.on_train_batch_end(self.trainer, self.classifier, out, batch, number)
        assert self.probe.readings() is not None
        assert (self.gains.readings() is not None) == bool(self.gains.layers)


NETS = {
    "efficientnet_bn": lambda: EfficientNet(in_channels=3, num_classes=10, width_mult=0.25, depth_mult=0.1),
    "ffnn_bn_noaffine": lambda: FFNN(
        num_classes=10, hidden_features=8, depth=2, normalization="batch_norm", affine=False
    ),
    "ffnn": lambda: FFNN(num_classes=10, hidden_features=8, depth=2),
}


@pytest.mark.parametrize("name", NETS)
def test_a_step_moves_nothing_between_host_and_device(name: str) -> None:
    """On torch's "meta" device, which holds no data: to read from it is an error there."""
    training = Training(NETS[name](), "meta")
    for number in range(STEPS):
        if number < WARM_UP:
            training.step(number)
            continue
        with Transfers() as transfers:
            training.step(number)
        assert transfers.found == []


class Kernels(TorchDispatchMode):
    """Counts the operations on a device that are more than another view of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.number += not func.is_view
        return out


def test_kernels_at_the_end_of_a_step_are_as_many_for_any_net() -> None:
    """For each of hundreds of weights and sums, a kernel or ten would take longer than the training step itself."""
    numbers = []
    for depth in (2, 7):
        training = Training(FFNN(num_classes=10, hidden_features=8, depth=depth, normalization="batch_norm"), "meta")
        for number in range(WARM_UP):
            training.step(number)
        F.cross_entropy(training.classifier.net(torch.empty(8, 3, 32, 32, device="meta")), training.labels).backward()
        with Kernels() as kernels:
            training.probe.read_parameters()
            training.probe.readings()
            training.gains.readings()
        numbers.append(kernels.number)
    assert numbers[0] == numbers[1] < 100


def test_transfers_are_noticed() -> None:
    with Transfers() as transfers:
        torch.ones(3).to("meta")
    assert transfers.found
    x = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError), Transfers():
        x.sum().item()


@pytest.mark.skipif(
    torch.__version__ < (2, 15), reason="torch 2.11 does not tell; which is the first that does is not known"
)
def test_numbers_that_become_tensors_are_noticed() -> None:
    with Transfers() as transfers:
        torch.tensor([1.0, 2.0], device="meta")
    assert transfers.found


if torch.cuda.is_available():

    @pytest.mark.parametrize("name", NETS)
    def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
        training = Training(NETS[name](), "cuda")
        try:
            for number in range(STEPS):
                torch.cuda.set_sync_debug_mode("error" if number >= WARM_UP else "default")
                training.step(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
