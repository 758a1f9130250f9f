"""Where figures and tables go beside the terminal: image files that are whole or not there, and Weights & Biases."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppbench.errors import UserError
from sppbench.files import write_bytes
from sppbench.wandb_modes import WANDB_MODES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_TAG = 64  # W&B's limit
DPI = 130  # 910 pixels, the width of a panel in W&B


class OutputError(UserError):
    """W&B refuses something, or cannot be reached; the message says what, in a line."""


def rendered(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of this kind, "png" or "pdf"; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format=suffix, dpi=DPI, metadata={"CreationDate": None} if suffix == "pdf" else None)
    return file.getvalue()


def write_figures(figures: Mapping[str, Figure], directory: Path) -> list[Path]:
    """Writes each figure as ``<name>.png`` and ``<name>.pdf``, and returns these files.

    Raises:
        OSError: The directory cannot be written to.
    """
    paths = []
    for name, figure in figures.items():
        for suffix in ("png", "pdf"):
            paths.append(directory / f"{name}.{suffix}")
            write_bytes(paths[-1], rendered(figure, suffix))
    return paths


def log_run(
    directory: Path,
    job_type: str,
    group: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, Figure],
) -> None:
    """Logs one W&B run of the project sppbench; offline unless WANDB_MODE says otherwise.

    Args:
        directory: Its files are in ``wandb/`` of this directory.
        job_type: And the run's name.
        group: And its tag.
        tables: By key: rows with the same columns each. A table without rows is left out.
        figures: By key.

    Raises:
        OutputError: W&B refuses it, or cannot be reached.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from PIL import Image

    mode: Any = os.environ.get("WANDB_MODE", "offline")
    if mode not in WANDB_MODES:
        raise OutputError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    images = {key: Image.open(io.BytesIO(rendered(figure, "png"))) for key, figure in figures.items()}
    try:
        run = wandb.init(
            project="sppbench",
            job_type=job_type,
            group=group,
            tags=[group[:LONGEST_TAG]],
            name=job_type,
            dir=directory,
            mode=mode,
        )
        contents = {
            key: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            for key, rows in tables.items()
            if rows
        }
        run.log({**contents, **{key: wandb.Image(image) for key, image in images.items()}})
    except (wandb.Error, OSError) as error:
        raise OutputError(f"W&B: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        wandb.finish()
