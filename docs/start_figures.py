"""Draws the figures of docs/start/plain.md by running its program: ``python docs/start_figures.py``."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent.absolute()
PAGE = HERE / "start" / "plain.md"
FIGURES = {"run/spp_epoch=2.png": "plain_sick.png", "cured/spp_epoch=2.png": "plain_cured.png"}
WIDTH = 1100  # pixels


def main() -> None:
    program = "\n".join(
        re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(program, PAGE, "exec"), {"__name__": "__main__"})
        for drawn, kept in FIGURES.items():
            image = Image.open(drawn).convert("RGB")
            image = image.resize((WIDTH, image.height * WIDTH // image.width), Image.Resampling.LANCZOS)
            image.quantize(48, dither=Image.Dither.NONE).save(PAGE.with_name(kept), optimize=True)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
