"""The site builds without a warning: all links and references lead somewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    # In a process of its own: Sphinx changes locale, warnings and logging. Two thirds of the time are imports.
    flags = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--builder", "html"]
    command = [sys.executable, "-m", "sphinx", *flags, str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "record.html").read_text(encoding="utf-8")
    assert "Reads ACSM, ACV and second moment" in page
