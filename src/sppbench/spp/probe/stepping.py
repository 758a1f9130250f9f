"""What every probe does: count steps, record some of them, and come off the model again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from torch.utils.hooks import RemovableHandle

Probe = TypeVar("Probe", bound="SteppingProbe")


class SteppingProbe(ABC):
    """A context manager over hooks that record each n-th step.

    Args:
        every_n_steps: Record each n-th step only.

    Attributes:
        epoch: What is written into the column ``epoch``; to be set by whoever knows it.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.epoch = 0
        self._handles: list[RemovableHandle] = []
        self.step = 0

    @property
    def step(self) -> int:
        """Index of the current step."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        # A plain attribute: compiled graphs are guarded by it.
        self._recording = bool(self._handles) and step % self.every_n_steps == 0

    def _attached(self, handles: list[RemovableHandle]) -> None:
        """Takes charge of the probe's hooks; from now on it records."""
        self._handles = handles
        self.step = self._step

    def __enter__(self: Probe) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes every hook off the model; what was collected stays valid."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._recording = [], False
        self._clear()

    @abstractmethod
    def _clear(self) -> None:
        """Forgets what was gathered in the current step."""
