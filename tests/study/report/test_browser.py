"""The page in a real browser: it draws, logs no error, shows the files' numbers, and fits a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sppbench.study.report.page import write_report
from tests.study.report.reading import read_page
from tests.study.report.test_page import make_content, outputs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome on this machine")
__all__ = ["outputs"]


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after scripts have run, and the console's lines."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
        *("--virtual-time-budget=20000", "--enable-logging=stderr", "--v=0", *flags, "--dump-dom", page.as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def test_it_draws_and_shows_the_numbers_of_the_files(outputs: Path, tmp_path: Path) -> None:
    content = make_content(outputs)
    write_report(content, tmp_path / "report.html")
    dom, console = browse(tmp_path / "report.html", tmp_path / "profile")
    assert console == []
    page = read_page(dom)
    for drawing in content.drawings:
        plot = page.one(id=f"plot-{drawing.name}")
        assert "js-plotly-plot" in plot.attributes["class"]
        lines = [path for path in plot.all("path") if "js-line" in path.attributes.get("class", "")]
        assert len([path for path in lines if path.attributes.get("d")]) >= 2
        texts = {text.text for text in plot.all("text")}
        assert set(drawing.curves["curve"]) <= texts, "every curve is in the legend"
        if len(drawing.panels) > 1:
            assert {panel.name for panel in drawing.panels} <= texts
    titles = {element.attributes["data-title"] for element in page.all(data_title=None)}
    assert "Zoom in" in titles
    assert not [title for title in titles if "hare" in title], "nothing is offered that would send the data away"
    for row in page.all("tr", data_run=None):
        test = json.loads((outputs / row.attributes["data-run"] / "result.json").read_text())["test"]
        assert row.one(data_column="accuracy").values == ([test["accuracy"]] if test else [])
    assert page.one("article", id="C2").values[:3] == [0.8123456789, 0.7, 0.91]


def test_a_phone_scrolls_tables_and_not_the_page(outputs: Path, tmp_path: Path) -> None:
    write_report(make_content(outputs), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    probe = (
        "<script>addEventListener('load', () => { const page = document.documentElement; "
        "const places = (plot, name) => [...plot.querySelectorAll(name)].map((one) => one.getBoundingClientRect()); "
        "let buttons = 0, entries = 0, covered = 0; "
        "for (const plot of document.querySelectorAll('.js-plotly-plot')) "
        "  for (const bar of places(plot, '.modebar-group')) { buttons++; "
        "    for (const entry of places(plot, '.legend .traces')) { entries++; "
        "      covered += bar.left < entry.right && entry.left < bar.right && bar.top < entry.bottom "
        "        && entry.top < bar.bottom } } "
        "console.log('widths ' + page.clientWidth + ' ' + page.scrollWidth + ', covered ' + covered + ' of '"
        "  + (buttons && entries)) })</script></body>"
    )
    (tmp_path / "probed.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    # A window of the browser has a least width; a frame has none.
    (tmp_path / "phone.html").write_text('<iframe src="probed.html" style="width: 390px; height: 800px; border: 0">')
    _, console = browse(tmp_path / "phone.html", tmp_path / "profile", "--blink-settings=preferredColorScheme=0")
    [line] = console
    found = re.search(r"widths (\d+) (\d+)", line)
    assert found is not None, line
    covered = re.search(r"covered 0 of (\d+)", line)
    assert covered is not None, line
    assert int(covered[1]) > 0
    assert (int(found[1]), int(found[2])) == (390, 390) or (int(found[1]) < 390 and found[1] == found[2])
