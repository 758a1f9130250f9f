"""Lightning callbacks of a run: one a file."""

from sppbench.run.callbacks.adaptive_clipping import AdaptiveGradientClipping
from sppbench.run.callbacks.averaging import WeightAverage
from sppbench.run.callbacks.checkpointing import Checkpointing, Interrupted
from sppbench.run.callbacks.cosine_schedule import CosineSchedule
from sppbench.run.callbacks.divergence import StopOnNonFiniteLoss
from sppbench.run.callbacks.progress import Progress
from sppbench.run.callbacks.stopwatch import Stopwatch

__all__ = [
    "AdaptiveGradientClipping",
    "Checkpointing",
    "CosineSchedule",
    "Interrupted",
    "Progress",
    "StopOnNonFiniteLoss",
    "Stopwatch",
    "WeightAverage",
]
