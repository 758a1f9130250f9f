"""What works where only the base is installed, and what the rest says there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hatchling.metadata.core import load_toml

from sppbench.extras import PACKAGES, MissingExtra, need

PROJECT = load_toml(str(Path(__file__).parents[1] / "pyproject.toml"))["project"]
IMPORTED_AS = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pyyaml": "yaml"}
OF_TORCH = {"filelock", "jinja2"}  # torch itself brings them
HINT = 'pip install "sppbench[benchmark]"'

# Run in a process of its own, in which no package of an extra can be imported.
BASE = """
import contextlib, io, json, sys
sys.modules |= dict.fromkeys(json.loads(sys.argv[1]))

def say(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        return main(arguments), out.getvalue(), err.getvalue()

def refused(statement):
    try:
        exec(statement)
    except ImportError as error:
        return str(error)

import torch
from torch import nn
from sppbench.__main__ import COMMANDS, main
from sppbench.spp import *

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

sys.modules["here"] = sys.modules["__main__"]
net = Net()
with Recorder(net, "run", epochs=[]) as recorder:
    for _ in range(2):
        net(torch.randn(8, 4)).square().mean().backward()
        recorder.step()
with SignalProbe(net) as probe:
    net(torch.randn(8, 4)).square().mean().backward()
    frame = probe.collect()
told = {
    "layers": list(read_history("run/spp.parquet").layer.unique()),
    "findings": [one.kind for one in diagnose(frame, net)],
    "look": say("look", "here.Net"),
    "compare": say("compare", "run", "run"),
    "torchvision": say("look", "torchvision:resnet18"),
    "own": say("look", "sppbench:ffnn"),
    "dashboard": say("dashboard"),
    "commands": {name: say(name, "x", *["--output=x"] * (name == "keep")) for name in COMMANDS
                 if COMMANDS[name].extra == "benchmark"} | {"train": say("train", "model=ffnn")},
    "imports": {name: refused(f"from sppbench.{name}") for name in json.loads(sys.argv[2])},
}
print(json.dumps(told))
"""
IMPORTS = {  # → what says that it needs what, and the extra that brings it
    "spp import SPPCallback": ("SPPCallback needs Lightning", "lightning"),
    "spp.integrations import SPPTrainerCallback": ("SPPTrainerCallback needs transformers", "transformers"),
    "models import FFNN": ("sppbench.models needs Hydra, ", "benchmark"),
    "data import Digits": ("sppbench.data needs Hydra, ", "benchmark"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script tells, and under ``files`` what it has left."""
    names = sorted({name for names in PACKAGES.values() for name in names} - OF_TORCH)
    place = tmp_path_factory.mktemp("base")
    command = [sys.executable, "-c", BASE, json.dumps(names), json.dumps(list(IMPORTS))]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [str(file.relative_to(place)) for file in place.rglob("*.*")]
    return {**json.loads(done.stdout.splitlines()[-1]), "files": files}


def test_the_base_records_draws_and_diagnoses(base: dict[str, Any]) -> None:
    assert base["layers"] == ["0", "1", "2"]
    assert base["findings"] == []
    assert {"run/spp.parquet", "run/spp_heatmap_activation.png"} <= set(base["files"])


def test_the_base_looks_and_compares(base: dict[str, Any]) -> None:
    status, out, err = base["look"]
    assert (status, err) == (0, "")
    assert "nothing is wrong with its signals" in out
    status, out, err = base["compare"]
    assert (status, err) == (0, "")
    assert "identical" in out
    assert "outputs/look/here.Net/signals.png" in base["files"]


def test_a_command_that_lacks_its_extra_says_so_in_a_line(base: dict[str, Any]) -> None:
    assert set(base["commands"]) == {"train", "table", "figures", "claims", "report", "keep", "inspect"}
    for name, told in base["commands"].items():
        assert told == [2, "", f"sppbench: {name} needs Hydra, Lightning, W&B, torchvision and 8 more: {HINT}\n"]
    assert base["dashboard"][::2] == [
        2,
        'sppbench: dashboard needs wandb-workspaces: pip install "sppbench[dashboard]"\n',
    ]


def test_a_net_whose_library_is_missing_says_so_in_a_line(base: dict[str, Any]) -> None:
    line = "sppbench: torchvision:resnet18 needs torchvision: pip install torchvision\n"
    assert base["torchvision"] == [2, "", line]
    status, out, err = base["own"]
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sppbench: sppbench:ffnn needs Hydra, ")
    assert HINT in err


@pytest.mark.parametrize("name", IMPORTS)
def test_a_class_that_lacks_its_extra_says_so(base: dict[str, Any], name: str) -> None:
    beginning, extra = IMPORTS[name]
    assert base["imports"][name].startswith(beginning)
    assert base["imports"][name].endswith(f': pip install "sppbench[{extra}]"')


def test_what_is_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    need("train", "benchmark")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r'^train needs scikit-learn: pip install "sppbench\[benchmark\]"$'):
        need("train", "benchmark")


@pytest.mark.parametrize("extra", PACKAGES)
def test_extras_are_those_of_the_package(extra: str) -> None:
    extras = PROJECT["optional-dependencies"]
    lines = [line for one in extras[extra] for line in (extras["lightning"] if "sppbench[" in one else [one])]
    names = [re.split("[<>=;]", line)[0] for line in lines]
    packages = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    assert packages - set(PACKAGES[extra]) <= {"accelerate"}  # only Trainer asks for it
    assert set(PACKAGES[extra]) <= packages
    base = {re.split("[<>=;]", line)[0] for line in PROJECT["dependencies"]}
    assert not base & set(names)
