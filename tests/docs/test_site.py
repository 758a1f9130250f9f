"""The site builds without a warning: all links and references lead somewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs.pages import ROOT
from tests.processes import start


def build(target: Path) -> None:
    from sphinx.cmd.build import main

    flags = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--builder", "html"]
    with (target / "said.txt").open("w") as sys.stderr:
        sys.exit(main([*flags, str(ROOT / "docs"), str(target / "site")]))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """In a process of its own: Sphinx changes locale, warnings and logging."""
    process = start(build, tmp_path)
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "said.txt").read_text()
    page = (tmp_path / "site" / "api" / "record.html").read_text(encoding="utf-8")
    assert "Reads ACSM, ACV and second moment" in page
