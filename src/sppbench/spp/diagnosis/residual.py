"""Branches of residual nets that carry nothing beside their skip, or drown it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sppbench.spp.diagnosis.finding import LIMITS, Finding, finding
from sppbench.spp.diagnosis.kinds import is_activation, is_norm
from sppbench.spp.diagnosis.step_table import Array, Layer, Mask, StepTable, ends
from sppbench.spp.diagnosis.structure import Structure

# So many steps of training are a while, and the share of the limit that holds before.
_WHILE = 1000
_AT_START = 1e-4


@dataclass(frozen=True)
class Add:
    """A place where a branch is added to a skip, by the columns of what is recorded there.

    Attributes:
        inside: Where it is: the name of a module that has the branch.
        branch: The last layer of the branch.
        skip: What gives the skip, if that is recorded.
        total: What gives the sum, if that is recorded.
        share: Weight of the skip of a weighted sum.
    """

    inside: str
    branch: int
    skip: int | None
    total: int | None = None
    share: float = 0.5


def unbalanced(table: StepTable, structure: Structure | None) -> Iterator[Finding]:
    """Sums of which a branch or a skip is under 1 %."""
    moment = table.of("activation")
    adds = adds_of(table, structure)
    if not adds:
        return
    branch, skip = (np.stack([_part(one, moment, which) for one in adds], axis=1) for which in ("branch", "skip"))
    excused = np.array([_has_growing(table, one.inside) for one in adds], dtype=np.bool_)
    yield from _findings(
        table,
        "silent branch",
        adds,
        _is_silent(table, branch) & ~excused,
        branch,
        "the branch that ends at {layer}{{others}} is {number:.2g} of the second moment of the sum with its skip: look "
        "at its scale at the start, and at its updates",
    )
    yield from _findings(
        table,
        "drowned skip",
        adds,
        skip < LIMITS["drowned skip"].threshold,
        skip,
        "the skip is {number:.2g} of the second moment of its sum with the branch that ends at {layer}{{others}}: "
        "scale the branch down at the start, or normalize it",
    )


def _findings(table: StepTable, kind: str, adds: list[Add], where: Mask, share: Array, text: str) -> Iterator[Finding]:
    first = table.first(where, np.asarray(np.isfinite(share)))
    found = np.flatnonzero(first >= 0)
    if not len(found):
        return
    at = int(found[0])
    line, number = int(first[at]), float(share[first[at], at])
    names = [table.layers[adds[one].branch].name for one in found]
    said = text.format(layer=names[0], number=number)
    yield finding(kind, "activation", names, int(table.steps[line]), number, said)


def _part(add: Add, moment: Array, which: str) -> Array:
    """(steps,) share of the branch or of the skip in their sum; NaN where it is not known."""
    branch = moment[:, add.branch] * (1 - add.share) ** 2
    skip = moment[:, add.skip] * add.share**2 if add.skip is not None else None
    with np.errstate(divide="ignore", invalid="ignore"):
        if skip is not None:
            # Of parts that have nothing to do with each other the second moments add up.
            return np.asarray((branch if which == "branch" else skip) / (branch + skip))
        if which == "skip" or add.total is None:
            return np.full(len(moment), np.nan)
        return np.asarray(moment[:, add.branch] / moment[:, add.total])


def _has_growing(table: StepTable, inside: str) -> bool:
    start = f"{inside}." if inside else ""
    return any(table.growing[one.place] and one.name.startswith(start) for one in table.layers)


def _is_silent(table: StepTable, share: Array) -> Mask:
    """(steps, adds) where branches carry nothing, and do not begin to.

    Attention at the start, whose outputs are means over all tokens, carries 1e-4 of the sum, and learns to carry more:
    so the limit holds after a while, for what has not grown. Before, a branch must carry nothing at all.
    """
    limit = LIMITS["silent branch"].threshold
    first, last = ends(share)
    grows = (
        (last > 2 * first) | (table.shape[0] == 1) | (max(table.counts.sum(), table.steps.max(initial=0) + 1) < _WHILE)
    )
    return np.asarray(share < np.where(grows, limit * _AT_START, limit))


# -- where they are ----------------------------------------------------------------------------------------------------


def adds_of(table: StepTable, structure: Structure | None) -> list[Add]:
    """The sums of which enough is recorded."""
    recorded: Mask = np.asarray(table.recorded("activation").any(axis=0))
    layers = [layer for layer in table.layers if recorded[layer.place]]
    found = list(_of_sum_modules(layers, structure))
    if structure is not None:
        found += _of_projected(layers, structure)
        found += _of_blocks(table, layers, structure)
    return found


def _of_sum_modules(layers: list[Layer], structure: Structure | None) -> Iterator[Add]:
    """Those of modules Sum and MPSum (main, skip): the branch ran before, the skip before all of the parent."""
    sums: dict[str, int] = {}  # by parent, the last one
    for i, layer in enumerate(layers):
        if layer.kind not in ("Sum", "MPSum") or i == 0:
            continue
        parent = layer.module.rpartition(".")[0]
        start = next((k for k, one in enumerate(layers) if parent and one.name.startswith(f"{parent}.")), 0)
        skip = sums.get(parent, layers[start - 1].place if start else None)
        share = structure.shares.get(layer.module, 0.5) if structure is not None else 0.5
        yield Add(parent, layers[i - 1].place, skip, layer.place, share)
        sums[parent] = layer.place


def _of_projected(layers: list[Layer], structure: Structure) -> Iterator[Add]:
    """Those of ResNets: an activation function follows the sum, and the skip may be projected."""
    for name, projection in structure.skips.items():
        own = [i for i, one in enumerate(layers) if one.name.startswith(f"{name}.")]
        if not own or not is_activation(layers[own[-1]].kind) or is_norm(layers[own[-1]].kind):
            continue
        projected = [i for i in own if layers[i].name.startswith(f"{name}.{projection}.")]
        branch = [i for i in own[:-1] if i not in projected]
        skip = projected[-1] if projected else own[0] - 1
        if branch and skip >= 0:
            yield Add(name, layers[branch[-1]].place, layers[skip].place)


def _of_blocks(table: StepTable, layers: list[Layer], structure: Structure) -> Iterator[Add]:
    """Those of transformers whose blocks begin with a norm and whose outputs, the residual stream, are recorded."""
    streams = {one.block: one for one in layers if one.role == "." and "#" not in one.name}
    moment = table.of("activation")
    for block, stream in streams.items():
        inside = [one for one in layers if one.block == block and one.role != "."]
        if not is_transformer_block(inside) or stream.name in structure.weighted:
            continue
        *first, last = _branches(inside)
        if np.allclose(moment[:, last.place], moment[:, stream.place], rtol=1e-5, equal_nan=True):
            continue  # nothing is added to it
        earlier = streams.get(block - 1)
        for one in first:
            yield Add(stream.name, one.place, None, stream.place)
        yield Add(stream.name, last.place, earlier.place if earlier is not None else None, stream.place)


def is_transformer_block(inside: list[Layer]) -> bool:
    """Whether layers are those of a block that normalizes first, and has no convolution."""
    first = inside[0] if inside else None
    return first is not None and _is_own_norm(first) and not any("conv" in one.kind.lower() for one in inside)


def _is_own_norm(layer: Layer) -> bool:
    return is_norm(layer.kind) and "." not in layer.role


def _branches(inside: list[Layer]) -> list[Layer]:
    """The last layers of the branches of a block: each begins with a norm; one that ends with a norm has two."""
    found: list[Layer] = []
    is_alone = False
    for i, layer in enumerate(inside):
        if i and _is_own_norm(layer):
            if is_alone and found:
                found[-1] = inside[i - 1]
            else:
                found.append(inside[i - 1])
            is_alone = True
        else:
            is_alone = is_alone and i == 0
    if is_alone and found:
        found[-1] = inside[-1]
    else:
        found.append(inside[-1])
    return found
