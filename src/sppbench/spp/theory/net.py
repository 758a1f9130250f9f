"""Expected curves of a net that is at hand: its operations, and which feeds which, found by calling a copy of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn

from sppbench.spp.probe.layers import choose_layers, named_modules, unwrapped
from sppbench.spp.probe.outputs import recorded_tensor, tensors_in
from sppbench.spp.theory import trace_layers, trace_pointwise, trace_views  # noqa: F401 - they register their rules
from sppbench.spp.theory.chain import propagate, recorded_gradient
from sppbench.spp.theory.layer_rules import Unknown
from sppbench.spp.theory.layout import of_shape
from sppbench.spp.theory.trace import Trace, Value

Batch: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"


def expected_of_net(net: nn.Module, inputs: Batch, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Expected values for every layer of a net with the weights that it has, which should be its initial ones.

    A copy of the net is called once in training mode, without gradients, and each operation is followed, also those
    between modules and inside them. No activation is looked at: the theory starts from the second moment and the
    covariances of the batch itself, and takes from each weight its mean square (from biases, γ, position embeddings and
    class tokens as well), and from its shape the number of inputs and outputs.

    It follows

    - linear layers, convolutions (grouped, dilated, transposed), embeddings (He et al. 2015);
    - activation functions and what else is computed element by element (Poole et al. 2016), sums (De & Smith 2020),
      products and gates, means, dropout and stochastic depth;
    - batch normalization in training (Yang et al. 2019), LayerNorm, GroupNorm, InstanceNorm and RMSNorm (Xiong et al.
      2020);
    - attention at initialization, whose weights are uniform but for the variance of the logits (Noci et al. 2022), as
      ``nn.MultiheadAttention``, ``scaled_dot_product_attention`` or products of matrices, also causal;
    - max-pooling and average pooling, concatenation, slices, reshape, permute and other views.

    What comes after another operation is NaN, and so are the gradients of what comes before; one warning says how many
    layers it follows and where it stopped.

    It is exact for wide layers, homogeneous images and gradients at the output that have nothing to do with how alike
    two samples are, as at logits near 0. What it leaves out:

    - two signals with a layer of random weights between them are independent; a weight that is used twice counts as
      two;
    - neighboring pixels are as alike as any two of an image, which matters to max-pooling of photographs;
    - layers of few channels differ from the mean over all weights: in the gates of squeeze-and-excitation, with four
      channels, by a factor of 2, and now and then by more;
    - gradients through many layers of batch normalization add up what the mean over the weights leaves out: at the stem
      of ResNet-18 they are too low by a factor of 2.4, in DenseNet-121 by more. Through attention only the way through
      the values counts.

    Args:
        net: any module.
        inputs: a batch: a tensor whose first axis is samples, as ``(N, C, *places)``, (N, features) or (N, tokens) of
            integers; or a tuple or mapping of arguments.
        frame: a history of the net; the gradient at the net's last layer in its earliest step is where gradients start.
            None: activations only.

    Returns:
        the table of `sppbench.spp.theory.chain`.

    Example:
        >>> x, y = batches[0]
        >>> table = expected_of_net(model, x)  # before the first step of training
        >>> figure = plot_spp(read_history("run/spp.parquet"), expected=table)
    """
    trace, layers = _traced(net, inputs)
    last, end = None, 0
    if frame is not None:  # what is called after the last layer with a gradient has no part in the loss
        recorded = set(frame.loc[frame["signal"] == "gradient", "layer"])
        end = max((i for i, (layer, _) in enumerate(layers) if layer in recorded), default=0)
        last = recorded_gradient(frame, layers[end][0])
    if message := _where_it_stopped(trace, layers):
        warnings.warn(message, stacklevel=2)
    return propagate(trace.nodes, layers, last, end)


def _where_it_stopped(trace: Trace, layers: list[tuple[str, int]]) -> str:
    """One line, empty if all layers are followed."""
    unknown: list[bool] = []
    for node in trace.nodes:
        unknown.append(isinstance(node.rule, Unknown) or any(unknown[i] for i in node.inputs))
    followed = sum(not unknown[number] for _, number in layers)
    if followed == len(layers):
        return ""
    layer, operation, reason = trace.stopped[0]
    more = f", and at {len(trace.stopped) - 1} more places" if len(trace.stopped) > 1 else ""
    return (
        f"expected_of_net follows {followed} of {len(layers)} layers; stopped at `{layer}` "
        f"({operation}): {reason}{more}"
    )


def _traced(net: nn.Module, inputs: Batch) -> tuple[Trace, list[tuple[str, int]]]:
    """The operations of a net in training, and the layers with their nodes, in the order of their calls."""
    model = copy.deepcopy(unwrapped(net)).train()
    trace = Trace()
    batch = copy.deepcopy(inputs)
    for x in (*model.parameters(), *model.buffers()):
        trace.begin(x, Value(()))
    for x in tensors_in(batch):
        trace.begin(x, Value(of_shape(x.shape), is_data=True))
    calls = _Calls(trace, choose_layers(model))
    for name, module in named_modules(model).items():
        module.register_forward_pre_hook(calls.enter(name))
        module.register_forward_hook(calls.leave(name))
    devices = sorted({x.device.index or 0 for x in model.parameters() if x.is_cuda})
    with warnings.catch_warnings(), torch.random.fork_rng(devices), torch.no_grad(), trace:
        warnings.simplefilter("ignore")  # what a net says of itself it says where it is trained
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            model(*(batch if isinstance(batch, tuple) else (batch,)))
    return trace, calls.layers


class _Calls:
    """Tells the trace which module is being called, and gathers the layers' outputs: name and number of the node."""

    def __init__(self, trace: Trace, chosen: Mapping[str, nn.Module]) -> None:
        self.layers: list[tuple[str, int]] = []
        self._trace, self._chosen = trace, chosen
        self._called: dict[str, int] = {}
        self._around: list[str] = []

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            self._around.append(self._trace.layer)
            self._trace.layer = name

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self._trace.layer = self._around.pop()
            x = recorded_tensor(output)
            if name not in self._chosen or x is None or not x.is_floating_point():
                return
            call = self._called[name] = self._called.get(name, 0) + 1
            node = self._trace.node_of(x)
            self.layers.append((name if call == 1 else f"{name}#{call}", node))

        return hook
