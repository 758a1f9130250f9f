"""Published numbers to set ours beside, from a YAML file such as conf/published/poster_table1.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppbench.evidence.protocol import departures
from sppbench.evidence.runs import EvidenceError
from sppbench.files import config_directory
from sppbench.stored_files import is_number, read_yaml
from sppbench.study.common.intervals import Summary


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        source: Where it is from; texts and numbers by name, in the order in which they are cited.
        n: Runs behind each value.
        note: What the reader must know about the values.
        protocols: By model: dotted keys of a configuration and the values that a run must have to be comparable.
        titles: By model: what the published table calls it; in the order of its columns.
        values: Mean and sample standard deviation in percent, by model and learning rate.
    """

    source: dict[str, Any]
    n: int
    note: str
    protocols: dict[str, dict[str, Any]]
    titles: dict[str, str]
    values: dict[tuple[str, float], Summary]

    @property
    def citation(self) -> str:
        return ", ".join(str(part) for part in self.source.values())

    def departures(self, model: str, settings: Mapping[str, Any]) -> dict[str, str]:
        """The keys in which a flat configuration departs from the protocol of a model, with both values in words."""
        found = departures(settings, self.protocols[model])
        return {key: f"{key} is {ours!r}, not {theirs!r}" for key, (ours, theirs) in found.items()}


def read_published(file: Path | None = None) -> Published:
    """Reads a published table, by default the study's.

    Raises:
        UserError: It cannot be read, or lacks something.
    """
    file = file or config_directory() / "published" / "poster_table1.yaml"
    content = read_yaml(file)
    try:
        n, models = content["n"], content["models"]
        if not isinstance(n, int) or n < 2:
            raise ValueError(f"n is {n!r}, but must be a number of runs of at least 2")
        values = {
            (str(model), float(lr)): _summary(value, n, f"{model}, {lr}")
            for model, column in models.items()
            for lr, value in column["cells"].items()
        }
        protocols = {str(model): content["protocol"] | column["protocol"] for model, column in models.items()}
        titles = {str(model): str(column["title"]) for model, column in models.items()}
        return Published(dict(content["source"]), n, str(content["note"]), protocols, titles, values)
    except KeyError as error:
        raise EvidenceError(f"cannot read {file}: it has no key {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise EvidenceError(f"cannot read {file}: {error}") from error


def _summary(value: Any, n: int, cell: str) -> Summary:
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_number, value)) or value[1] < 0:
        raise ValueError(f"the value of {cell} is {value!r}, but must be [mean, standard deviation]")
    return Summary(float(value[0]), float(value[1]), n)
