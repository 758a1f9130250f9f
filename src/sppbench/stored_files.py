"""Files that somebody else may have written, read within limits: YAML without code, of a bounded size."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from sppbench.errors import UserError

LARGEST = 4_000_000  # bytes of a file; a configuration has some 3,000
MOST_VALUES = 100_000  # of a YAML file, each alias written out


def read_yaml(file: Path) -> dict[Any, Any]:
    """Reads a YAML file that holds keys and values; interpolations are left as they are.

    Only plain values are made: numbers, texts, lists and mappings. A file of more than `LARGEST` bytes is refused, and
    so is one that grows to more than `MOST_VALUES` values when its aliases are written out.

    Raises:
        UserError: It cannot be read, or holds something else.

    Example:
        >>> read_yaml(Path("outputs/figures/ffnn/lr=0.001/seed=868/config.yaml"))["seed"]
        868
    """
    import yaml

    try:
        loader = _loader()(read_text(file))
        try:
            node = loader.get_single_node()
            _count(node, {})
            content = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {file}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read {file}: it is not a mapping of keys to values")
    return content


def read_text(file: Path) -> str:
    """The text of a file of at most `LARGEST` bytes, without the mark of byte order that some editors put first.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger, or is not UTF-8.
    """
    with file.open("rb") as opened:
        content = opened.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    return content.decode("utf-8-sig")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from a file is a finite number; true and false are none."""
    largest = sys.float_info.max  # of what has no place in a float nothing can be computed
    return isinstance(value, int | float) and not isinstance(value, bool) and -largest <= value <= largest


@cache
def _loader() -> Any:
    """The class of PyYAML's loader; a date stays a text, as in OmegaConf."""
    import yaml

    # The parser in C reads a configuration in a tenth of OmegaConf's time.
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    known = base.yaml_implicit_resolvers
    resolvers = {first: [one for one in known[first] if not one[0].endswith("timestamp")] for first in known}
    return type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})


def _count(node: Any, known: dict[int, int]) -> int:
    """The number of values in a YAML node, with each alias written out; an alias inside itself is infinitely many.

    Args:
        known: What has been counted, by identity; 0 while it is being counted.
    """
    if id(node) not in known:
        known[id(node)] = 0
        inner = getattr(node, "value", None)
        children = inner if isinstance(inner, list) else []
        flat = (one for child in children for one in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_count(child, known) for child in flat)
    count = known[id(node)]
    if count == 0 or count > MOST_VALUES:
        raise ValueError(f"its aliases (*) make it more than {MOST_VALUES:,} values")
    return count


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
