"""Lightning callbacks of a run: one a file."""

from sppbench.callbacks.checkpointing import Checkpointing, Interrupted
from sppbench.callbacks.divergence import StopOnNonFiniteLoss
from sppbench.callbacks.progress import Progress
from sppbench.callbacks.stopwatch import Stopwatch

__all__ = ["Checkpointing", "Interrupted", "Progress", "StopOnNonFiniteLoss", "Stopwatch"]
