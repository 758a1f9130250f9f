"""What the wheel, the source distribution and the index get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.core import load_toml

import sppbench

ROOT = Path(__file__).parents[1]
PROJECT = load_toml(str(ROOT / "pyproject.toml"))
ADDRESS = "https://github.com/sppbench/sppbench"


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    builder = WheelBuilder(str(ROOT))
    forced = builder.recurse_forced_files(builder.config.get_force_include())
    return {file.distribution_path for files in (builder.recurse_included_files(), forced) for file in files}


def test_the_wheel_has_all_that_is_read_when_it_runs(wheel: set[str]) -> None:
    source = ROOT / "src"
    kept = {file for file in source.rglob("*.*") if file.is_file() and "__pycache__" not in file.parts}
    kept = {str(file.relative_to(source)) for file in kept if ".egg-info" not in str(file)}
    kept |= {f"sppbench/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert wheel == kept
    assert {"sppbench/py.typed", "sppbench/spp/sums/kernel.c", "sppbench/conf/train.yaml"} <= wheel


def test_the_wheel_has_nothing_else(wheel: set[str]) -> None:
    assert {name.partition("/")[0] for name in wheel} == {"sppbench", "hydra_plugins"}
    assert {Path(name).suffix for name in wheel} <= {".py", ".pyi", ".typed", ".c", ".yaml", ".css", ".j2"}


def test_the_source_distribution_makes_that_wheel(wheel: set[str]) -> None:
    files = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {name.partition("/")[0] for name in files} <= {
        *("src", "conf", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "pyproject.toml", ".gitignore"),
    }
    assert {"README.md", "CHANGELOG.md", "LICENSE"} <= files
    made = {name.removeprefix("src/") for name in files if name.startswith("src/")}
    assert made | {f"sppbench/{name}" for name in files if name.startswith("conf/")} == wheel


def test_the_readme_on_the_index_has_no_relative_address() -> None:
    text = readme_on_the_index((ROOT / "README.md").read_text(encoding="utf-8"))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    addresses = re.findall(r'\]\(([^)\s]+)|(?:src|href|srcset)="([^"\s]+)', prose)
    found = ["".join(one) for one in addresses]
    assert found
    assert not [one for one in found if not one.startswith(("https://", "#"))]
    for one in found:
        if one.startswith((ADDRESS + "/blob/main/", "https://raw.githubusercontent.com/sppbench/sppbench/main/")):
            assert (ROOT / one.partition("/main/")[2].partition("#")[0]).exists(), one


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("![a](docs/a.png)", "![a](https://raw.githubusercontent.com/sppbench/sppbench/main/docs/a.png)"),
        (
            '<img alt="a" src="a.svg">',
            '<img alt="a" src="https://raw.githubusercontent.com/sppbench/sppbench/main/a.svg">',
        ),
        ("[a](docs/a.md#b)", f"[a]({ADDRESS}/blob/main/docs/a.md#b)"),
        ("[a](LICENSE)", f"[a]({ADDRESS}/blob/main/LICENSE)"),
        ("[a](docs/)", f"[a]({ADDRESS}/blob/main/docs/)"),
        (
            "[![a](docs/a.png)](docs/a.md)",
            f"[![a](https://raw.githubusercontent.com/sppbench/sppbench/main/docs/a.png)]({ADDRESS}/blob/main/docs/a.md)",
        ),
        ("[a](https://a.org/b.md) [b](#b) net[0](x)", "[a](https://a.org/b.md) [b](#b) net[0](x)"),
        ("![a](https://a.org/b.png)", "![a](https://a.org/b.png)"),
    ],
)
def test_addresses_are_made_absolute(here: str, there: str) -> None:
    assert readme_on_the_index(here) == there


def readme_on_the_index(text: str) -> str:
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_one_version() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sppbench.__version__}\n" in citation
    assert f"## [{sppbench.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_python_versions_are_the_same_everywhere() -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [int(line[len(prefix) :]) for line in PROJECT["project"]["classifiers"] if line.startswith(prefix)]
    first, last = min(minors), max(minors)
    assert PROJECT["project"]["requires-python"] == f">=3.{first}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"(3, {first}) <= v <= (3, {last})" in makefile
    assert f"Python 3.{first} to 3.{last}" in makefile


def test_addresses_of_the_project_are_one() -> None:
    assert all(address.startswith(ADDRESS) for address in PROJECT["project"]["urls"].values())
    assert f"repository-code: {ADDRESS}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
