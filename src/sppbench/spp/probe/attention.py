"""Measures the logits and the entropy of the attention of any module, head by head. Only tables need pandas."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sppbench.spp.names import ATTENTION_COLUMNS, ATTENTION_STATISTICS
from sppbench.spp.probe.bypass import why_bypassed
from sppbench.spp.probe.calls import in_backward
from sppbench.spp.probe.layers import named_modules, unwrapped
from sppbench.spp.probe.order import LayerOrder
from sppbench.spp.probe.processes import ProcessGroup
from sppbench.spp.probe.reasons import NeverCalled
from sppbench.spp.probe.softmax import Watch, attends, heads_of, may_attend
from sppbench.spp.probe.stepping import Handle, SteppingProbe, after_any_forward, before_forward
from sppbench.spp.schedule import EveryNSteps, Schedule
from sppbench.spp.sums.attention_sums import LARGEST, SUMS, head_sums, statistics, with_more

if TYPE_CHECKING:
    import pandas as pd

ASK = "its weights stay inside a fused kernel: AttentionProbe(model, multihead=True) computes its logits again"
FUSED = "scaled_dot_product_attention hides its weights: use an implementation that calls softmax"
HIDDEN = "it called no softmax over (N, H, L, S): use an implementation that does"
EAGER = 'attention of kind "{}" hides its weights: load the model with attn_implementation="eager"'
IN_GRAPH = "in a compiled graph its logits are not seen: do not compile the steps that are recorded"
TENSOR_PARALLEL = "each tensor-parallel process has only some of its heads"


@dataclass(frozen=True)
class AttentionReadings:
    """The statistics of one step, still on the device: ``values`` (len(heads), 3), float64, in the order of
    ``ATTENTION_STATISTICS``; ``heads`` are (depth, layer, head)."""

    step: int
    epoch: int
    heads: tuple[tuple[int, str, int], ...]
    values: Tensor


class AttentionProbe(SteppingProbe):
    """Measures the logits and the entropy of every attention of a model, head by head, while it trains.

    Logits are the input of the softmax over the keys: scaled, with biases and masks. Of them it takes the second moment
    and the largest magnitude; and of the weights w before dropout the entropy -Σ w ln w in nats, from 0 (one key has
    all the weight) to ln S (all S keys have the same weight), averaged over the queries and the batch: the attention
    entropy of `Zhai et al. 2023 <https://arxiv.org/abs/2303.06296>`_, section 3, who see it collapse where the training
    of transformers becomes unstable. Masked keys (logits of -inf, or of the smallest number of a type) are left out,
    and so are queries that see no key; queries at padding that see keys are not.

    It sees what modules compute with a softmax of torch over (N, H, L, S), or over (N·H, L, S) where ``num_heads`` or
    the like says what H is: eager attention of transformers (``attn_implementation="eager"``) and most hand-written
    attention. What fused kernels hide is listed with the way out in :attr:`skipped`. It records the passes in training
    mode with gradients enabled; calls and accumulated batches of a step add up as one. Compiled graphs and
    tensor-parallel layers are skipped. Training is not touched; copies of the model come without the probe. Where it
    records, it computes the softmax again and holds a few more tensors of the size of the logits for a moment.

    With ``torch.distributed`` running, all processes must call :meth:`collect`, and get the statistics over those that
    share the batch.

    Args:
        model: Any module.
        every_n_steps, start, stop: Which steps are measured; as in ``SignalProbe``.
        process_group: The processes that share the batch; as in ``SignalProbe``.
        multihead: Whether to measure ``nn.MultiheadAttention``, too. Its own output comes from the kernel that it uses
            anyway; the logits come from a second run without gradients, at about the cost of its forward pass.

    Attributes:
        step: Index of the current step, from 0; counted by :meth:`collect`; it may be set.
        epoch: What is written into the column ``epoch``; set it when an epoch begins.
        skipped: Layer → reason.

    Raises:
        ValueError: ``every_n_steps``, ``start`` or ``stop`` is impossible.

    Example:
        >>> import math, torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> with AttentionProbe(model, multihead=True) as probe:
        ...     model(torch.randn(4, 6, 8)).mean().backward()
        ...     frame = probe.collect()
        >>> frame[["step", "depth", "layer", "head"]]
           step  depth      layer  head
        0     0      0  self_attn     0
        1     0      0  self_attn     1
        >>> bool(frame["entropy"].between(0, math.log(6)).all())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        every_n_steps: EveryNSteps = 1,
        process_group: ProcessGroup = "auto",
        start: int = 0,
        stop: int | None = None,
        multihead: bool = False,
    ) -> None:
        super().__init__(model, Schedule(every_n_steps, start, stop), LayerOrder(), process_group)
        self._model = unwrapped(model)
        self._never_called = NeverCalled(self._model, is_compiled=hasattr(model, "_orig_mod"))
        self._watches: list[Watch] = []  # those that are on, from the outermost
        self._clear()
        modules = named_modules(self._model)
        self._modules = {name: module for name, module in modules.items() if may_attend(module)}
        for name, module in modules.items():
            if isinstance(module, nn.MultiheadAttention):
                if multihead:
                    self._modules[name] = module
                else:
                    self._order.note(name, ASK)
        self._attach(self._hooks())

    def _hooks(self) -> Iterator[Handle]:
        for name, module in self._modules.items():
            yield before_forward(module, self._input_hook(name, module))
            yield from after_any_forward(module, self._output_hook(name, module))

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        # Calls without gradients, which reentrant checkpointing repeats with them.
        self._silent: Counter[str] = Counter()

    # -- during the forward pass --------------------------------------------------------------------------------------

    def _input_hook(self, name: str, own: nn.Module) -> Callable[..., None]:
        is_attention = attends(own) or heads_of(own) is not None

        def hook(module: Any, arguments: Any) -> None:
            if not self._recording or module is not own or not self._model.training:
                return
            reason = why_bypassed()
            if reason is None and torch.compiler.is_compiling():
                reason = IN_GRAPH
            if reason is not None:
                if is_attention:
                    self._order.note(name, reason)
            elif self._spread.tensor_parallel:
                self._order.note(name, TENSOR_PARALLEL)
            elif self._counts(name, is_attention):
                self._enter(name, own)

        return hook

    def _counts(self, name: str, is_attention: bool) -> bool:
        """Whether a call is one of training: with gradients, and if it runs in a backward pass, for the first time."""
        repeats = in_backward()
        if torch.is_grad_enabled():
            counts = not repeats or self._silent[name] > 0
            self._silent[name] -= repeats and counts
            return counts
        if not repeats:
            self._silent[name] += 1
            if is_attention:
                self._order.note_call_without_gradients(name)
        return False

    def _enter(self, name: str, module: nn.Module) -> None:
        heads = heads_of(module)

        def see(logits: Callable[[], Tensor]) -> None:
            try:
                self._add(name, heads, logits())
            except Exception as error:  # nothing that a tensor cannot do ends a run
                self._order.note(name, f"its logits cannot be read: {type(error).__name__}: {error}".partition("\n")[0])

        watch = Watch(name, see, lambda one: bool(self._watches) and one is self._watches[-1])
        watch.__enter__()  # type: ignore[no-untyped-call]
        self._watches.append(watch)

    def _add(self, name: str, heads: int | None, logits: Tensor) -> None:
        if logits.ndim == 3:
            if heads is None:
                return
            logits = logits.view(-1, heads, *logits.shape[1:])
        sums, earlier = head_sums(logits), self._sums.get(name)
        if earlier is not None and earlier.shape != sums.shape:
            raise ValueError("its number of heads changed")
        self._order.enter(name)
        self._sums[name] = sums if earlier is None else with_more(earlier, sums)

    def _output_hook(self, name: str, own: nn.Module) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            if torch.compiler.is_compiling() or module is not own:
                return
            if self._watches and self._watches[-1].layer == name:
                watch = self._watches.pop()
                watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                if not watch.has_seen and output is not None and (attends(own) or watch.is_fused):
                    self._order.skip(name, _why_hidden(own, watch))

        return hook

    # -- after it -----------------------------------------------------------------------------------------------------

    def readings(self) -> AttentionReadings | None:
        """Ends the step and returns its statistics without waiting for the device; None for a step not measured."""
        recorded, sums, processes = self._recording, self._sums, self._processes()
        if recorded:
            called = self._order.depths
            attention = (name for name, module in self._modules.items() if attends(module))
            self._order.note_what_never_ran(attention, lambda name: self._never_called(name, called))
        self._clear()
        self.step += 1
        if not recorded or not (sums or processes.groups):  # the others wait for one that recorded nothing
            return None
        device = processes.device([one.device for one in sums.values()])
        rows = tuple((self._order.depths[name], name, len(one)) for name, one in sums.items())
        if processes.groups and not processes.agree(zlib.crc32(repr(rows).encode()), device):
            rows = _united(processes.gather(rows))
        if not rows:
            return None
        parts = [_in_shape(sums.get(name), heads, device) for _, name, heads in rows]
        vector = torch.cat(parts).flatten()
        processes.add_up(vector, torch.arange(LARGEST, len(vector), SUMS, device=device))
        heads = tuple((depth, name, head) for depth, name, number in rows for head in range(number))
        return AttentionReadings(self.step - 1, self.epoch, heads, statistics(vector.view(-1, SUMS)))

    def collect(self) -> pd.DataFrame:
        """Ends the step and returns its table, one row per head that was measured.

        Columns: step, epoch, depth (order of first execution among the modules of attention, from 0), layer, head (from
        0), logit_second_moment, logit_absmax, entropy (nats); NaN for a head all of whose logits are masked.
        """
        found = self.readings()
        return to_frame([] if found is None else [found])


def _why_hidden(module: nn.Module, watch: Watch) -> str:
    kind = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if isinstance(kind, str) and kind != "eager":
        return EAGER.format(kind)
    return FUSED if watch.is_fused else HIDDEN


def _united(everywhere: Sequence[Sequence[tuple[int, str, int]]]) -> tuple[tuple[int, str, int], ...]:
    """The layers of all processes; of one that has not the same heads everywhere, the most."""
    found: dict[str, tuple[int, str, int]] = {}
    for depth, name, heads in (row for rows in everywhere for row in rows):
        first, _, most = found.get(name, (depth, name, heads))
        found[name] = (first, name, max(most, heads))
    return tuple(sorted(found.values()))


def _in_shape(sums: Tensor | None, heads: int, device: torch.device) -> Tensor:
    found = torch.zeros(heads, SUMS, dtype=torch.float64, device=device)
    if sums is not None:
        found[: len(sums)] = sums
    return found


def to_frame(readings: Sequence[AttentionReadings]) -> pd.DataFrame:
    """The statistics of some steps, one row per (step, layer, head), sorted by step, depth and head; fetched from the
    device at once.

    The columns are those of :meth:`AttentionProbe.collect`.
    """
    import pandas as pd

    if not readings:
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in ATTENTION_COLUMNS.items()})
    keys = [(one.step, one.epoch, *head) for one in readings for head in one.heads]
    frame = pd.DataFrame(keys, columns=["step", "epoch", "depth", "layer", "head"])
    frame[list(ATTENTION_STATISTICS)] = torch.cat([one.values for one in readings]).cpu().numpy()
    return frame.sort_values(["step", "depth", "head"], ignore_index=True).astype(ATTENTION_COLUMNS)
