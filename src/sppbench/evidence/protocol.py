"""Whether a run was made as a protocol says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sppbench.files import config_directory
from sppbench.stored_files import read_yaml

# Options of Lightning's trainer that do not change what is computed; a run that max_time ends says so.
_FREE = frozenset({"trainer.detect_anomaly", "trainer.max_time", "trainer.profiler"})


def departures(settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of a flat configuration that depart from a protocol, with the values that they have and should have.

    What is added to the configuration of optimizer and trainer departs, too: no protocol can name all that could be,
    such as a callback that lets the learning rate fall.

    Example:
        >>> departures({"trainer.max_epochs": 5, "optimizer.amsgrad": True}, {"trainer.max_epochs": 20})
        {'trainer.max_epochs': (5, 20), 'optimizer.amsgrad': (True, None)}
    """
    named = _known() | _FREE | protocol.keys()
    added = [key for key in settings if key.startswith(("optimizer.", "trainer.")) and key not in named]
    wanted = {**protocol, **dict.fromkeys(added)}
    pairs = {key: (settings.get(key), value) for key, value in wanted.items()}
    return {key: (ours, theirs) for key, (ours, theirs) in pairs.items() if ours != theirs}


@cache
def _known() -> frozenset[str]:
    """The keys of the optimizers and trainers in conf/; the protocol names those of them that matter."""
    return frozenset(
        f"{group}.{key}"
        for group in ("optimizer", "trainer")
        for file in (config_directory() / group).glob("*.yaml")
        for key in read_yaml(file)
    )
