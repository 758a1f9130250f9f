"""Where the table goes: files in a directory, and Weights & Biases."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppbench.files import write_atomically
from sppbench.table.cells import Table
from sppbench.table.data import tidy, to_csv, to_json
from sppbench.table.latex import latex
from sppbench.table.runs import TableError
from sppbench.table.text import markdown, terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {"terminal": terminal, "markdown": markdown, "csv": to_csv, "latex": latex, "json": to_json}
_SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex", "json": "json"}


def write_table(table: Table, figures: dict[str, Figure], directory: Path) -> list[Path]:
    """Writes table.md, table.csv, table.tex, table.json, and each figure as PNG and PDF; makes the directory.

    Each file is whole, or is what it was before.

    Returns:
        The files.

    Raises:
        TableError: The directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, suffix in _SUFFIXES.items():
            paths.append(directory / f"table.{suffix}")
            with write_atomically(paths[-1]) as file:
                file.write(FORMATS[name](table) + "\n")
        for name, figure in figures.items():
            for suffix in ("png", "pdf"):
                paths.append(directory / f"{name}.{suffix}")
                _write_bytes(paths[-1], _rendered(figure, suffix))
    except OSError as error:
        raise TableError(f"cannot write to {directory}: {error.strerror or error}") from error
    return paths


def _rendered(figure: Figure, suffix: str) -> bytes:
    file = io.BytesIO()
    # Without the date the same table gives the same file.
    figure.savefig(file, format=suffix, metadata={"CreationDate": None} if suffix == "pdf" else None)
    return file.getvalue()


def _write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def log_table(table: Table, figures: dict[str, Figure]) -> None:
    """Logs one W&B run, with the key ``table`` and one for each figure; offline unless WANDB_MODE says otherwise.

    Its files are in ``wandb/`` of the table's directory. It is in the group of the sweep's name, and tagged with it.

    Raises:
        TableError: W&B refuses it, or cannot be reached.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from PIL import Image

    mode: Any = os.environ.get("WANDB_MODE", "offline")
    if mode not in ("online", "offline", "disabled", "shared"):
        raise TableError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    rows = tidy(table)
    images = {name: Image.open(io.BytesIO(_rendered(figure, "png"))) for name, figure in figures.items()}
    try:
        run = wandb.init(
            project="sppbench",
            job_type="table",
            group=table.name,
            tags=[table.name[:64]],  # W&B's limit
            name="table",
            dir=table.directory,
            mode=mode,
        )
        content = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        run.log({"table": content, **{name: wandb.Image(image) for name, image in images.items()}})
    except (wandb.Error, OSError) as error:
        raise TableError(f"W&B: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    finally:
        wandb.finish()
