"""Says what is wrong in a recorded training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sppbench.spp.diagnosis.finding import Finding, Findings
from sppbench.spp.diagnosis.learning import misfit_updates, small_gradients
from sppbench.spp.diagnosis.normalization import extreme_gains
from sppbench.spp.diagnosis.propagation import cut_off, drifting, lifeless
from sppbench.spp.diagnosis.residual import is_transformer_block, unbalanced
from sppbench.spp.diagnosis.saturation import collapsed_attention, dead_units, saturated
from sppbench.spp.diagnosis.step_table import StepTable
from sppbench.spp.diagnosis.structure import Structure, structure_of
from sppbench.spp.history.reader import read_history

if TYPE_CHECKING:
    from torch import nn


def diagnose(
    history: pd.DataFrame | str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    batchnorm: pd.DataFrame | None = None,
    attention: pd.DataFrame | None = None,
) -> Findings:
    """Finds what is wrong in a recorded training run: a short list, empty for a healthy run.

    Each finding names the layer where something starts or is worst, with the other layers in ``others``. What it says
    holds in at least half of the recorded steps from its first one on: an outlier is not a finding. Nor is a branch
    that begins at zero, or small by a scale of its own, as long as it grows.

    =========================  =====================  ==================================================================
    kind                       beyond                 of what
    =========================  =====================  ==================================================================
    not finite                 0                      elements that are NaN or infinite
    dead                       < 1e-30                second moment of activations and gradients
    overflowing                > 1e15                 second moment
    vanishing, exploding       < 1e-8, > 1e8          factor on a second moment from the first to the last of equal
                                                      layers (median of the factors between them), or of one layer
    saturated                  < 0.05                 mean slope of a tanh or sigmoid over its largest
    at its floor               > 0.9                  mean of SELU or ELU over its smallest value
    collapsed attention        < 0.1                  entropy in nats, mean of the heads
    dead units                 > 0.9                  share of zeros after a nonlinearity, where few units are not zero
    silent branch              < 0.01                 second moment of a residual branch over that of the sum; 1e-6
                                                      in the first 1,000 steps, or while it grows
    drowned skip               < 0.01                 second moment of a skip over that of the sum
    large, small update        > 0.1, < 1e-6          root mean square of the update over that of the weight
    underflow                  > 0.1                  share of subnormal ones among a gradient's elements that are not 0
    below epsilon              < 1e-8                 root mean square of a weight's gradient
    batch normalization gain   > 1e4, < 1e-4          median of the backward gain over the steps
    =========================  =====================  ==================================================================

    The sources are in ``LIMITS`` of ``sppbench.spp.diagnosis.finding`` and in each finding.

    Args:
        history: As from ``read_history``, ``SignalProbe.collect`` (also several joined) or ``epoch_mean``; or the path
            of a history. Updates are judged if it has the signal ``update``, Adam's ε if it has ``parameter_gradient``,
            and underflow in 16-bit types.
        model: The model that was recorded. With it, the scale of the weights is told apart from what lies between them,
            and the sums in residual blocks are found: in ResNets by their leaves, in transformers if the outputs of the
            blocks are recorded, too. Sum and MPSum modules are found without it. The model is not called.
        batchnorm: As from ``read_batchnorm``, ``BatchNormProbe.collect`` or ``batchnorm_epoch_mean``.
        attention: As from ``AttentionProbe.collect``.

    Returns:
        A list of `Finding`, which prints as one line each; its ``skipped`` says what could not be judged, and why.

    Raises:
        HistoryError: The frame lacks columns, or the history cannot be read.

    Example:
        >>> model[1].bias.data -= 100  # the ReLU after it now gives zeros
        >>> with SignalProbe(model) as probe:
        ...     x, y = batches[0]
        ...     criterion(model(x), y).backward()
        ...     findings = diagnose(probe.collect(), model)
        >>> [(one.kind, one.signal, one.layer, one.step) for one in findings]
        [('dead', 'activation', '2', 0), ('dead', 'gradient', '1', 0)]
    """
    table = StepTable(history if isinstance(history, pd.DataFrame) else read_history(history))
    known = structure_of(model) if model is not None else None
    structure = known or Structure()
    found: list[Finding] = []
    with np.errstate(invalid="ignore"):
        for family in (
            lifeless(table, structure),
            drifting(table, structure),
            cut_off(table, structure),
            saturated(table),
            dead_units(table),
            unbalanced(table, known),
            misfit_updates(table),
            small_gradients(table),
            extreme_gains(batchnorm) if batchnorm is not None else (),
            collapsed_attention(attention) if attention is not None else (),
        ):
            found += family
    return Findings(found, dict(_not_judged(table, known)))


def _not_judged(table: StepTable, structure: Structure | None) -> Iterator[tuple[str, str]]:
    absent = [signal for signal in ("update", "parameter_gradient") if signal not in table]
    if "parameter" not in table:
        absent.append("parameter")
    if absent:
        yield "steps of the optimizer", f"the frame lacks the signal {', '.join(absent)}"
    if structure is None:
        yield "residual branches other than those of Sum modules", "the model is not given"
        return
    layers = [one for one in table.layers if np.isfinite(table.of("activation")[:, one.place]).any()]
    blocks = {one.block for one in layers if one.block >= 0 and one.role != "."}
    streams = {one.block for one in layers if one.role == "."}
    for block in sorted(blocks - streams):
        if is_transformer_block([one for one in layers if one.block == block]):
            yield "residual branches of the blocks", "the outputs of the blocks are not recorded"
            return
