"""The layers in the order of their first execution, what is known of each, and why some are not recorded.

Dynamo calls what is decorated with ``assume_constant_result`` while it traces and takes the results as constants: what
is registered here is registered when a graph is made. These are methods that return nothing, as not all versions of
torch take objects as arguments of such a function, or tensors as results of several calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch

from sppbench.spp.names import OF_BATCH, shortened
from sppbench.spp.probe.readings import Row
from sppbench.spp.probe.reasons import NEVER, NO_GRAD


class LayerOrder:
    """The order of the layers.

    Attributes:
        depths: Layer → its place in the order of first execution, from 0.
        skipped: Layer → why it is not recorded.
    """

    def __init__(self) -> None:
        self.depths: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._not_called: set[str] = set()
        self._of_their_kind: list[str] = []
        self._has_warned = False

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def skip(self, layer: str, reason: str) -> None:
        """Notes why a call is not recorded."""
        self.depths.setdefault(layer, len(self.depths))
        self.skipped[layer] = reason

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def note(self, layer: str, reason: str) -> None:
        """Notes why some calls of a layer, which may have others, are not recorded."""
        self.skipped[layer] = reason

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def skip_kind(self, layer: str) -> None:
        """Notes that no call of a layer will be recorded, as its kind cannot be."""
        if layer not in self._of_their_kind:
            self._of_their_kind.append(layer)

    def warn_of_kinds(self) -> None:
        """Says once, at the end of the first step that has such layers, which they are."""
        if self._of_their_kind and not self._has_warned:
            self._has_warned = True
            first = self._of_their_kind[0]
            message = f"not measured: {shortened(self._of_their_kind)} ({first}: {self.skipped.get(first)})"
            warnings.warn(message, RuntimeWarning, stacklevel=5)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def enter(self, layer: str) -> None:
        """Notes that a call is recorded."""
        self.depths.setdefault(layer, len(self.depths))
        self.skipped.pop(layer, None)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def note_call_without_gradients(self, layer: str) -> None:
        """Notes that a layer was called in training mode, but is not recorded."""
        if layer not in self.depths and layer not in self.skipped:
            self.skipped[layer] = NO_GRAD
            self._not_called.add(layer)

    def note_what_never_ran(self, layers: Iterable[str], why: Callable[[str], str] = lambda layer: NEVER) -> None:
        """Gives layers that have not been called yet a reason, and takes it from those that now have been."""
        for layer in layers:
            if layer not in self.depths:
                if layer not in self.skipped:
                    self.skipped[layer] = why(layer)
                    self._not_called.add(layer)
            elif layer in self._not_called:
                self._not_called.remove(layer)
                self.skipped.pop(layer, None)


class LayerRows(LayerOrder):
    """The order of the layers, and the rows that they have in the table of a step.

    Attributes:
        rows: Signal and layer → row.
        state: A hash of what is known of the layers that are recorded.
        guessed: Layers whose channel axis only the sizes of their outputs told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, str], Row] = {}
        self.state = 0
        self.guessed: list[str] = []
        self._unreached: set[str] = set()
        self._shapes: dict[str, tuple[str, int, int]] = {}

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def register(self, layer: str, kind: str, ndim: int, channels: int) -> None:
        """Notes what a call returned."""
        shape = (kind, ndim, channels)
        if self._shapes.get(layer) == shape:
            return  # as in nearly all steps
        self._shapes[layer] = shape
        self.state = hash(tuple(self._shapes.items()))
        if layer not in self.depths:
            self.depths[layer] = len(self.depths)
            # Depths of weights follow from those of modules.
            self.rows = {key: row for key, row in self.rows.items() if row.signal in OF_BATCH}
        for signal in OF_BATCH:
            self.rows[signal, layer] = Row(self.depths[layer], layer, kind, signal, ndim, channels)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def guess(self, layer: str) -> None:
        """Notes that the channel axis of a layer is not known for sure."""
        if layer not in self.guessed:
            self.guessed.append(layer)

    def note_what_has_no_gradient(self, layers: Mapping[str, str]) -> None:
        """Gives the layers that only have activations in this step a reason, and takes it from those that had one."""
        for layer in self._unreached - layers.keys():
            self.skipped.pop(layer, None)
        self._unreached = {*layers} - (self.skipped.keys() - self._unreached)
        self.skipped.update({layer: layers[layer] for layer in self._unreached})

    def warn_of_guesses(self) -> None:
        """Says once, at the end of the first step that has such layers, which they are."""
        if not self.guessed or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"the channel axis of {shortened(self.guessed)} was guessed from the sizes of the outputs, because no "
            "layer returned the tensors that they were given: where the guess is wrong, set channel_axis",
            RuntimeWarning,
            stacklevel=6,
        )
