"""Writes what a look shows: the figure and the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sppbench.files import replacing, write_text
from sppbench.look.look import View
from sppbench.look.nets import LookError
from sppbench.look.text import table_of
from sppbench.spp.plots.panels import plot_spp


def write_view(view: View, folder: Path) -> list[Path]:
    """Writes ``signals.png`` and ``layers.csv`` into a folder, made if there is none, and returns their paths.

    Raises:
        LookError: They cannot be written.
    """
    figure, table = folder / "signals.png", folder / "layers.csv"
    expected = view.expected if np.isfinite(view.expected["second_moment"]).any() else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(figure) as file:
            plot_spp(view.frame, expected=expected).savefig(file, format="png")
        write_text(table, table_of(view).to_csv(index=False))
    except OSError as error:
        raise LookError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [figure, table]
