"""The tests' thresholds and the protocol that runs must follow, from a YAML file: by default conf/claims.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sppbench.errors import UserError
from sppbench.files import config_directory
from sppbench.stored_files import is_number, read_yaml
from sppbench.study.common.published import read_published

T = TypeVar("T")


class RulesError(UserError):
    """A file of rules that cannot be used; the message names the key, in a line."""


@dataclass(frozen=True)
class Rule:
    """What every claim has: its sentence, and where claim and test are from."""

    statement: str
    source: str


@dataclass(frozen=True)
class Forward(Rule):
    """Of C1."""

    nets: tuple[str, ...]
    relative_error: float


@dataclass(frozen=True)
class Affine:
    """Nets of one width, by what is learned of batch normalization in the hidden blocks."""

    both: str
    neither: str
    scale: str
    shift: str


@dataclass(frozen=True)
class Backward(Rule):
    """Of C2."""

    widths: dict[int, Affine]
    layers: str
    epochs: tuple[int, ...]
    ratio: float
    accuracies: str
    accuracy_margin: float
    gain_layers: str
    closure: float
    gain_change: float
    gain_share: float


@dataclass(frozen=True)
class Stable(Rule):
    """Of C3."""

    nets: tuple[str, ...]
    better: str
    accuracy_above: float


@dataclass(frozen=True)
class Magnitude(Rule):
    """Of C4."""

    with_mp: str
    with_mp_equal_init: str
    without_mp: str
    margin: float


@dataclass(frozen=True)
class Lifeless(Rule):
    """Of C5."""

    net: str
    lrs: tuple[float, ...]
    seeds: int
    control: str
    control_accuracy: float
    moved: float
    moves: str


@dataclass(frozen=True)
class Rates(Rule):
    """Of C6."""

    survives: str
    nets: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds_at_chance: int
    context_lrs: tuple[float, ...]


@dataclass(frozen=True)
class Superior(Rule):
    """Of C7."""

    net: str
    better: str
    nets: tuple[str, ...]
    margin: float
    one_sided_confidence: float
    seeds: int
    rival_seeds: int
    context_lrs: tuple[float, ...]


@dataclass(frozen=True)
class Claims:
    C1: Forward
    C2: Backward
    C3: Stable
    C4: Magnitude
    C5: Lifeless
    C6: Rates
    C7: Superior


@dataclass(frozen=True)
class Rules:
    """The content of the file; conf/claims.yaml explains it.

    Attributes:
        protocol: By net: dotted keys of the configuration and the values that a run must have to count.
    """

    seeds: int
    confidence: float
    study_seeds: tuple[int, ...]
    lr: float
    chance: float
    chance_tolerance: float
    protocol: dict[str, dict[str, Any]]
    claims: Claims


def read_rules(file: Path | None = None) -> Rules:
    """Reads and checks a file of rules, by default conf/claims.yaml.

    Raises:
        RulesError: It cannot be read, or a key is missing, unknown or has an impossible value.
    """
    file = file or config_directory() / "claims.yaml"
    try:
        content = read_yaml(file)
        nets = content.pop("nets", {})
        if "protocol" in content:
            content["protocol"] = _protocols(content["protocol"], nets)
        rules = _read(Rules, content, "")
        _check(rules)
    except (UserError, _DamageError) as error:
        text = str(error)
        raise RulesError(text if text.startswith("cannot read") else f"cannot read {file}: {text}") from error
    return rules


class _DamageError(Exception):
    pass


def _protocols(published: Any, nets: Any) -> dict[str, dict[str, Any]]:
    """The nets of the published table, with its protocol, and then others, with its settings but those of the model."""
    if not isinstance(published, str):
        raise _DamageError(f"protocol is {published!r}, but must be a file name")
    known = read_published(config_directory() / published).protocols
    shared = {key: value for key, value in next(iter(known.values())).items() if not key.startswith("model.")}
    if not isinstance(nets, dict):
        raise _DamageError(f"nets is {nets!r}, but must be a mapping")
    for net, settings in nets.items():
        if not isinstance(settings, dict):
            raise _DamageError(f"nets.{net} is {settings!r}, but must be a mapping")
        own = dict(settings)
        like, free = own.pop("like", None), own.pop("free", [])
        if like is not None and like not in known:
            raise _DamageError(f"nets.{net}.like is {like!r}, which is not the name of an earlier net")
        if not isinstance(free, list):
            raise _DamageError(f"nets.{net}.free is {free!r}, but must be a list of keys")
        merged = (known[like] if like is not None else shared) | own
        known = known | {str(net): {key: value for key, value in merged.items() if key not in free}}
    return known


def _check(rules: Rules) -> None:
    shares = {
        "confidence": rules.confidence,
        "claims.C2.ratio": rules.claims.C2.ratio,
        "claims.C7.one_sided_confidence": rules.claims.C7.one_sided_confidence,
    }
    for place, share in shares.items():
        if not 0 < share < 1:
            raise _DamageError(f"{place} is {share}, but must be between 0 and 1")
    c7 = rules.claims.C7
    counted = {"seeds": rules.seeds, "claims.C7.seeds": c7.seeds, "claims.C7.rival_seeds": c7.rival_seeds}
    for place, seeds in counted.items():
        if seeds < 2:
            raise _DamageError(f"{place} is {seeds}, but an interval needs two")
    if len(rules.claims.C6.lrs) != 3:
        raise _DamageError(f"claims.C6.lrs is {list(rules.claims.C6.lrs)}, but must be three learning rates")
    for claim, rule in vars(rules.claims).items():
        for net in _names(rule):
            if net not in rules.protocol:
                raise _DamageError(f"claims.{claim} names the net {net!r}, which nets does not define")


def _names(rule: Rule) -> list[str]:
    """The nets that a claim is about."""
    found: list[str] = []
    for name, value in vars(rule).items():
        if name in ("net", "control", "better", "survives", "with_mp", "with_mp_equal_init", "without_mp"):
            found.append(value)
        elif name == "nets":
            found.extend(value)
        elif name == "widths":
            found.extend(net for nets in value.values() for net in vars(nets).values())
    return found


def _read(kind: type[T], content: Any, place: str) -> T:
    """Makes a dataclass from a mapping with exactly its fields as keys."""
    if not isinstance(content, Mapping):
        raise _DamageError(f"{place.rstrip('.')} is {content!r}, but must be a mapping")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in names:
        if name not in content:
            raise _DamageError(f"it has no key {place}{name}")
    for name in content:
        if name not in names:
            raise _DamageError(f"it has the key {place}{name}, which no rule reads")
    return kind(**{name: _value(hints[name], content[name], f"{place}{name}") for name in names})


def _value(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read(hint, value, f"{place}.")  # type: ignore[arg-type]
    if hint == dict[int, Affine]:
        if not isinstance(value, dict) or not value or not all(_is_count(width) for width in value):
            raise _DamageError(f"{place} is {value!r}, but must map widths to nets")
        return {width: _read(Affine, nets, f"{place}.{width}.") for width, nets in value.items()}
    if hint == dict[str, dict[str, Any]]:
        return value  # was made by _protocols
    check, words, convert = _KINDS[hint]
    if not check(value):
        raise _DamageError(f"{place} is {value!r}, but must be {words}")
    return convert(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_epoch(value: Any) -> bool:
    return _is_count(value) or (value == 0 and value is not False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(of, value))


_KINDS: dict[Any, tuple[Callable[[Any], bool], str, Callable[[Any], Any]]] = {
    int: (_is_count, "a whole number of at least 1", int),
    float: (is_number, "a number", float),
    str: (_is_text, "a string", str),
    tuple[int, ...]: (_is_list(_is_epoch), "a list of whole numbers", tuple),
    tuple[float, ...]: (_is_list(is_number), "a list of numbers", lambda values: tuple(map(float, values))),
    tuple[str, ...]: (_is_list(_is_text), "a list of strings", tuple),
}
