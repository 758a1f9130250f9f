"""The saved view is checked against what a small run and a table really log, and what is sent to W&B."""

from __future__ import annotations

import ast
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sppbench.dashboard
from sppbench.files import config_directory
from tests.commands import Say, saying
from tests.spp.test_callback import read_wandb, records

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # in wandb_workspaces

Json = dict[str, Any]
say = saying("dashboard")

BATCHNORM_NET = ("name=ffnn_bn", "model=ffnn_bn", "model.hidden_features=16", "model.depth=2")


@pytest.fixture
def view(say: Say) -> Json:
    status, out, err = say("--dry-run")
    assert (status, err) == (0, "")
    content: Json = json.loads(out)
    return content


def sections(view: Json) -> dict[str, Json]:
    return {section["name"]: section for section in view["spec"]["section"]["panelBankConfig"]["sections"]}


def panels(view: Json) -> Iterator[tuple[str, str | None, list[str]]]:
    """Of each panel what kind of values it shows, over which x axis, and their keys."""
    for section in sections(view).values():
        for panel in section["panels"]:
            config = panel["config"]
            match panel["viewType"]:
                case "Run History Line Plot":
                    yield "number", config["xAxis"], config["metrics"]
                case "Bar Chart":
                    yield "number", None, config["metrics"]
                case "Media Browser":
                    yield "image", None, config["mediaKeys"]
                case "Weave":
                    yield "table", None, [config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]]
                case other:
                    raise AssertionError(f"what keys does a {other} show?")


def kinds(row: Json) -> dict[str, str]:
    """Key → number, image or table, of a row of a .wandb file."""
    media = {"images/separated": "image", "image-file": "image", "table-file": "table"}
    found = {key.removesuffix("._type"): media[kind] for key, kind in row.items() if key.endswith("._type")}
    parts = tuple(f"{key}." for key in found)  # their width, path and so on
    numbers = (key for key, value in row.items() if isinstance(value, int | float) and not key.startswith(parts))
    return found | dict.fromkeys(numbers, "number")


def read_run(directory: Path, last: str) -> tuple[list[Json], Any]:
    """The rows and the settings of the run in ``directory``, when the key ``last`` is in them."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = (directory / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30
    while all(last not in kinds(row) for row in read_wandb(file)):
        assert time.monotonic() < deadline, f"{last} is not logged"
        time.sleep(0.05)  # W&B's own process writes the file, sometimes after wandb.finish() has returned
    for content in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "run":
            return read_wandb(file), record.run
    raise AssertionError("there is no run in it")


def test_every_panel_shows_what_is_logged(
    view: Json, config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppbench.study.table.cells import read_table
    from sppbench.study.table.formats import log_table
    from sppbench.study.table.table_figures import draw_figures
    from sppbench.train import train
    from tests.fabricate.runs import write_cell

    monkeypatch.setenv("WANDB_SILENT", "true")
    train(config("logger=wandb", "trainer.max_epochs=1", "sweeps.name=small", net=BATCHNORM_NET, spp="every_step"))
    write_cell(tmp_path / "table1", "efficientnet_bn", 0.001, [33.0, 33.5], curve=[10.0, 33.0])
    table = read_table(tmp_path / "table1")
    log_table(table, draw_figures(table))
    rows, run = read_run(tmp_path / "run", last="test/accuracy")
    logged = [kinds(row) for row in (*rows, *read_run(tmp_path / "table1", last="table")[0])]

    unknown = set()
    for kind, x, keys in panels(view):
        for key in keys:
            found = [row for row in logged if key in row]
            assert all(row[key] == kind and (x is None or row.get(x) == "number") for row in found), key
            unknown |= {key} if not found else set()
    assert all(key.startswith("report/") for key in unknown)

    shown = {key for _, _, keys in panels(view) for key in keys}
    for row in logged:
        assert {key for key in row if key.startswith(("spp/", "batchnorm/"))} <= shown
        assert {key for key, kind in row.items() if kind != "number"} <= shown
    check_grouping(view, run)


def test_the_report_has_what_is_shown_of_it(view: Json) -> None:
    """Its keys are names of figures, which the code has as literals or the file of the published figures lists."""
    source = Path(sppbench.dashboard.__file__).parent / "study"
    trees = [ast.parse(file.read_text()) for part in ("figures", "report") for file in (source / part).glob("*.py")]
    names = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    published = yaml.safe_load((config_directory() / "published" / "poster_figures.yaml").read_text(encoding="utf-8"))
    figures = {name for figure in published["figures"].values() for name in figure["drawn"]}
    shown = {(key, kind) for kind, _, keys in panels(view) for key in keys if key.startswith("report/")}
    assert {key for key, kind in shown if kind == "table"} == {"report/claims"}
    assert "report/claims" in names
    images = {key.removeprefix("report/") for key, kind in shown if kind == "image"}
    assert figures <= images
    assert images - figures <= names


def check_grouping(view: Json, run: Any) -> None:
    """The keys lead to the cell of the run in the configuration as W&B keeps it: each value in a ``value``."""
    stored = {item.key: {"value": json.loads(item.value_json)} for item in run.config.update}
    cell = []
    [runs] = view["spec"]["section"]["runSets"]
    for group in runs["grouping"]:
        assert group["section"] == "config"
        value: Any = stored
        for part in group["name"].split("."):
            value = value[part]
        cell.append(value)
    assert cell == ["small", "ffnn_bn", "", 0.001]  # of a sweep over more: what that is
    assert run.project == view["project"]


def test_the_sections(view: Json) -> None:
    found = sections(view)
    assert list(found) == ["Training", "Signals", "BN gain", "Table"]
    for name, section in found.items():
        flow = section["flowConfig"]
        assert 0 < len(section["panels"]) <= flow["columnsPerPage"] * flow["rowsPerPage"], f"{name} is one page"
        assert section["isOpen"]
    assert not view["spec"]["section"]["settings"]["shouldAutoGeneratePanels"]


def test_curves_are_means_over_the_seeds_of_all_cells_of_table_1(view: Json) -> None:
    settings = view["spec"]["section"]["settings"]
    assert settings["useRunsTableGroupingInPanels"]
    assert settings["maxRuns"] > 4 * 3
    assert settings["xAxis"] == "trainer/global_step"
    plots = [
        panel for section in sections(view).values() for panel in section["panels"] if "metrics" in panel["config"]
    ]
    assert {(panel["config"]["groupAgg"], panel["config"]["groupArea"]) for panel in plots} == {("mean", "minmax")}


# -- saving ------------------------------------------------------------------------------------------------------------


class Server:
    """Stands in for W&B and for ``wandb.Api``, and takes one view."""

    app_url = "https://wandb.example/"
    default_entity: str | None = "me"

    def __init__(self) -> None:
        self._service_api = self
        self.settings: dict[str, str | None] = {"entity": None}
        self.taken: list[Json] = []
        self.problem: Exception | None = None

    def execute_graphql(self, query: str, variables: Json) -> Json:
        assert "upsertView" in query
        if self.problem is not None:
            raise self.problem
        self.taken.append(variables)
        return {"upsertView": {"view": {"id": "1", "name": variables["name"]}, "inserted": True}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr("wandb.Api", lambda: server)
    monkeypatch.delenv("WANDB_MODE")
    return server


def without_ids(part: Any) -> Any:
    """W&B's library gives each panel an identifier at random."""
    if isinstance(part, dict):
        return {key: without_ids(value) for key, value in part.items() if key != "__id__"}
    return [without_ids(value) for value in part] if isinstance(part, list) else part


def test_what_is_printed_is_what_is_saved(server: Server, say: Say, view: Json) -> None:
    status, out, _ = say()
    assert status == 0
    [sent] = server.taken
    assert without_ids(json.loads(sent["spec"])) == without_ids(view["spec"])
    assert (sent["projectName"], sent["displayName"], sent["entityName"]) == ("sppbench", "sppbench", "me")
    identifier = sent["name"].removeprefix("nw-").removesuffix("-v")
    assert out == f"https://wandb.example/me/sppbench?nw={identifier}\n"


def test_names_are_taken(server: Server, say: Say) -> None:
    server.settings["entity"] = "of WANDB_ENTITY"
    assert say("--project", "p", "--name", "n")[0] == 0
    assert say("--entity", "e")[0] == 0
    assert [(sent["entityName"], sent["projectName"], sent["displayName"]) for sent in server.taken] == [
        ("of WANDB_ENTITY", "p", "n"),
        ("e", "sppbench", "sppbench"),
    ]


def refusal(answer: tuple[int, str, str]) -> str:
    status, out, err = answer
    assert (status, out) == (2, "")
    assert err.startswith("sppbench: ")
    assert err.count("\n") == 1
    return err


def test_a_wrong_entity_is_told_in_a_line(server: Server, say: Say) -> None:
    server.problem = RuntimeError("permission denied\nand more")
    assert "not saved in other/sppbench: permission denied\n" in refusal(say("--entity", "other"))


def test_no_entity(server: Server, say: Say) -> None:
    server.default_entity = None
    assert "--entity" in refusal(say())
    assert not server.taken


def test_no_api_key(server: Server, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        import wandb

        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr("wandb.Api", refuse)
    assert "wandb login" in refusal(say())


def test_offline(server: Server, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "WANDB_MODE is 'offline'" in refusal(say())
    assert not server.taken


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_a_missing_extra(say: Say, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert 'pip install "sppbench[dashboard]"' in refusal(say(*arguments))


def test_a_bad_name(say: Say) -> None:
    assert "no emoji" in refusal(say("--dry-run", "--name", "signals 🚀"))


def test_a_bad_argument(say: Say) -> None:
    assert "--what" in refusal(say("--what"))
