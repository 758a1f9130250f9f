"""The project's own Lightning logger: metrics.csv, one row per epoch, which a resumed run continues."""

from __future__ import annotations

import csv
import io
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from sppbench.files import write_text

log = logging.getLogger(__name__)


class CSVLogger(Logger):
    """Writes ``epoch, step`` and one column per metric, one row per epoch and a last one for the test.

    Lightning's own ``CSVLogger`` deletes the rows of a run that is resumed. This one rewrites the file as a whole, by
    an atomic rename, after each epoch; values of single steps (``*_step``) are left to the other loggers.

    Args:
        path: The CSV file. ``step`` in it is the number of optimizer steps that precede the row's last one.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._path = Path(path).expanduser()
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def resume(self, step: int, epochs: int) -> None:
        """Restores the rows that an earlier part of this run wrote before its checkpoint.

        Args:
            step: Number of optimizer steps before the checkpoint.
            epochs: How many epochs were completed by then; if there are any, a missing file has been lost.

        Raises:
            ValueError: The file is damaged.
        """
        if not self._path.exists():
            if epochs > 0:
                log.warning(f"{self._path} is gone: the new one will lack the epochs before step {step}")
            return
        try:
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
            self._rows = [row for row in rows if int(row["step"]) < step]
        except (KeyError, ValueError, csv.Error) as error:
            raise ValueError(f"{self._path} is damaged ({error!r})") from error

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        values = {key: value for key, value in metrics.items() if not key.endswith("_step")}
        if values.keys() <= {"epoch"}:
            return
        row = {"epoch": int(values.pop("epoch", 0)), "step": step, **values}
        if self._rows and all(int(self._rows[-1][key]) == row[key] for key in ("epoch", "step")):
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        self._write()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, file.getvalue())
