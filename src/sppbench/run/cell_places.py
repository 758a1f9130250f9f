"""Where the cells of a sweep are: folders ``<key>=<value>`` for what tells them apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

LONGEST = 120  # characters of a folder's name; file systems allow 255 bytes
# In every place anyway: a net, a learning rate and a seed have ``<name>/lr=<lr>/seed=<seed>``.
ALWAYS = frozenset({"model", "name", "optimizer.lr", "seed"})
_HASHED = "~"  # which no other folder's name has


def cell_folders(values: Mapping[str, Any]) -> str:
    """What is between ``<name>`` and ``lr=<lr>`` in the place of a cell; empty if there is nothing more to tell.

    Args:
        values: By dotted key or group, the value or the choice of the cell.

    Example:
        >>> cell_folders({"model.hidden_features": 50, "data": "digits"})
        '/data=digits/model.hidden_features=50'
    """
    return "".join(f"/{folder(key, values[key])}" for key in sorted(values))


def folder(key: str, value: Any) -> str:
    """A folder's name that can be read and stands for this key and value alone.

    Characters that paths or shells know are written as ``%2F``; of a name that would be too long the end is replaced
    by a hash.

    Example:
        >>> folder("data.root", "a/b")
        'data.root=a%2Fb'
    """
    name = f"{_quoted(key)}={_quoted(as_text(value))}"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 20]}{_HASHED}{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def shown(folder: str) -> str:
    """A folder's name as text: ``data.root=a/b``."""
    return unquote(folder)


def _quoted(text: str) -> str:
    return quote(text, safe="+,").replace(_HASHED, "%7E")


def as_text(value: Any) -> str:
    """A value as on the command line: a text as it is, unless it could be taken for another value."""
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False) if not value or value[0] in '"[{' or _is_json(value) else value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
