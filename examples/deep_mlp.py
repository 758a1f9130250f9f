"""A deep net that does not train: sppbench look examples.deep_mlp.DeepMLP says why before anything is trained."""

from __future__ import annotations

from torch import nn


class DeepMLP(nn.Sequential):
    """Thirty layers of ``Linear`` and ``ReLU`` with PyTorch's own initialization, and a classifier of ten classes.

    That initialization draws weights of variance 1/(3 fan_in); a ReLU lets half of the second moment pass. So of each
    layer's signal a sixth arrives at the next, forward and backward (He et al. 2015, section 2.2), but for biases.
    """

    def __init__(self, width: int = 256, depth: int = 30) -> None:
        layers = (layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU()))
        super().__init__(*layers, nn.Linear(width, 10))
