"""Which layer of one net is which layer of another.

By name; layers without a namesake by the order of execution: those between the same two namesakes, if they are of the
same kinds and dimensions in the same order, where kinds that only one of the two has there (a Dropout, a GELU of its
own) are passed over. Nets without any common name, such as two libraries' ports, are matched as a whole, likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from sppbench.spp.history.schema import HistoryError

Net = list[tuple[str, str, int]]  # name, kind and number of dimensions of each layer, in the order of execution


@dataclass(frozen=True)
class Matching:
    """Attributes:
    pairs: Name in a → name in b, in the order of execution in a.
    by_order: Those of them that are not namesakes.
    only_a, only_b: Layers that only one of them has, in the order of execution.
    other_kind: Name in a → kind in a and kind in b, of pairs in which these differ.
    """

    pairs: dict[str, str]
    by_order: dict[str, str]
    only_a: list[str]
    only_b: list[str]
    other_kind: dict[str, tuple[str, str]]


def net_of(frame: pd.DataFrame) -> Net:
    """The layers of a history."""
    net = frame[["depth", "layer", "kind", "ndim"]].drop_duplicates("layer").sort_values("depth", kind="stable")
    return [(str(row.layer), str(row.kind), int(row.ndim)) for row in net.itertuples()]


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """The name with the first of the prefixes that it has replaced; prefixes are whole components of a dotted name.

    Example:
        >>> renamed("layers.1.act#2", {"layers.1": "blocks.1"}), renamed("layers.10.act", {"layers.1": "blocks.1"})
        ('blocks.1.act#2', 'layers.10.act')
        >>> renamed("head", {"": "model"}), renamed("model.head", {"model": ""})
        ('model.head', 'head')
    """
    for old, new in prefixes.items():
        if not old:
            return f"{new}.{name}" if new else name
        if name == old or name.startswith((f"{old}.", f"{old}#")):
            rest = name[len(old) :]
            return new + rest if new else rest.lstrip(".")
    return name


def match_layers(a: Net, b: Net, prefixes: Mapping[str, str] | None = None) -> Matching:
    """Matches two nets.

    Args:
        a, b: Their layers.
        prefixes: Beginnings of names in a → in b, such as ``{"layers": "model.blocks"}``; see `renamed`.

    Raises:
        HistoryError: They have no common name, and do not match by the order of execution either; or a prefix is of no
            layer of a, or makes two of its layers one.
    """
    names = {name: renamed(name, prefixes or {}) for name, _, _ in a}
    for old in prefixes or {}:
        if not any(renamed(name, {old: "\0"}) != name for name in names):
            raise HistoryError(
                f"no layer name of a begins with {old!r}; there are, for example, {', '.join([*names][:4])}"
            )
    if len({*names.values()}) < len(names):
        raise HistoryError("the new names give two layers of a the same name")
    places = {name: place for place, (name, _, _) in enumerate(b)}
    anchors = [(place, places[names[name]]) for place, (name, _, _) in enumerate(a) if names[name] in places]
    ordered = sorted(y for _, y in anchors) == [y for _, y in anchors]
    pairs = dict(anchors)
    if not anchors:
        pairs = _matched_whole(a, b)
    elif ordered:
        for (x0, y0), (x1, y1) in pairwise([(-1, -1), *anchors, (len(a), len(b))]):
            pairs |= _matched_between(a, b, range(x0 + 1, x1), range(y0 + 1, y1))
    found = [(a[x], b[pairs[x]]) for x in sorted(pairs)]
    matched_b = {*pairs.values()}
    return Matching(
        {one[0]: two[0] for one, two in found},
        {one[0]: two[0] for one, two in found if names[one[0]] != two[0]},
        [layer[0] for x, layer in enumerate(a) if x not in pairs],
        [layer[0] for y, layer in enumerate(b) if y not in matched_b],
        {one[0]: (one[1], two[1]) for one, two in found if one[1] != two[1]},
    )


def _of_common_kinds(a: Net, b: Net, of_a: range, of_b: range) -> tuple[list[int], list[int]]:
    """Of these places in a and b those of kinds that both have there."""
    common = {a[x][1] for x in of_a} & {b[y][1] for y in of_b}
    return [x for x in of_a if a[x][1] in common], [y for y in of_b if b[y][1] in common]


def _matched_between(a: Net, b: Net, of_a: range, of_b: range) -> dict[int, int]:
    """Which place in a is which in b, of those given; none if that is in doubt."""
    in_a, in_b = _of_common_kinds(a, b, of_a, of_b)
    alike = [a[x][1:] for x in in_a] == [b[y][1:] for y in in_b]
    return dict(zip(in_a, in_b, strict=True)) if alike else {}


def _matched_whole(a: Net, b: Net) -> dict[int, int]:
    """The same of all places, with an error if that is in doubt."""
    in_a, in_b = _of_common_kinds(a, b, range(len(a)), range(len(b)))
    for x, y in zip(in_a, in_b, strict=False):
        if a[x][1:] != b[y][1:]:
            raise _no_match(f"{_described(a[x])} of a and {_described(b[y])} of b are the first that do not match")
    if len(in_a) != len(in_b):
        more, name = ((a, "a"), (b, "b"))[len(in_b) > len(in_a)]
        first = (in_a if name == "a" else in_b)[min(len(in_a), len(in_b))]
        raise _no_match(f"{_described(more[first])} of {name} is the first that the other lacks")
    if not in_a:
        raise _no_match(f"they have no kind of layer in common: {_described(a[0])} of a, {_described(b[0])} of b")
    return dict(zip(in_a, in_b, strict=True))


def _no_match(what: str) -> HistoryError:
    return HistoryError(
        f"no layer has the same name in both, and they do not match by order of execution either: {what}; say which "
        "beginnings of names correspond (rename, or --map OLD=NEW)"
    )


def _described(layer: tuple[str, str, int]) -> str:
    name, kind, ndim = layer
    return f"{name} ({kind}, {ndim} dimensions)"
