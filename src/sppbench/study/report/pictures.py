"""Figures as pictures inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def picture(figure: Figure) -> str:
    """A figure as a data URI, at a resolution for paper.

    An indexed picture: a fifth of the size of one in SVG where layers are many.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    return _indexed(file, 32)


def stored_picture(path: Path) -> str:
    """A figure that a run has drawn, as a data URI; with more colors, as a heat map has.

    Raises:
        OSError: It cannot be read, or is no picture.
    """
    return _indexed(path, 64)


def _indexed(source: Any, colors: int) -> str:
    from PIL import Image

    file = io.BytesIO()
    with Image.open(source) as image:
        image.convert("RGB").quantize(colors).save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
