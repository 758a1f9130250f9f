from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from sppbench.errors import UserError
from sppbench.evidence.runs import EvidenceError
from sppbench.run.run_directory import RunDirectory, identity
from sppbench.study.common.intervals import Summary
from sppbench.study.common.published import read_published
from sppbench.study.table.cells import Cell, Table, read_sweep, read_table
from sppbench.study.table.notes import notes
from tests.fabricate.histories import ffnn_layers, lose_steps, write_signals
from tests.fabricate.runs import MODELS, SEEDS, VERSIONS, configuration, write_cell, write_run


def cell(table: Table, model: str = "efficientnet_bn", lr: float = 0.001) -> Cell:
    found = table.cell(model, lr)
    assert found is not None
    return found


def note(table: Table, begin: str) -> str:
    """The one note that begins so."""
    [found] = [text for text in notes(table) if text.startswith(begin)]
    return found


def test_a_complete_cell(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0, 33.5, 34.0, 32.5, 33.0])
    found = cell(read_table(tmp_path))
    # Mean 166 / 5 = 33.2; deviations -0.2, 0.3, 0.8, -0.7, -0.2; their squares sum up to 1.3; 1.3 / 4 = 0.325.
    assert found.ours is not None
    assert found.ours.mean == pytest.approx(33.2)
    assert found.ours.std == pytest.approx(0.325**0.5)
    assert (found.n, found.expected, found.missing, found.verdict) == (5, 5, 0, "reproduced")
    assert found.published == Summary(33.5, 0.8, 5)
    assert [run.seed for run in found.runs] == sorted(SEEDS)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [([38.0, 38.5, 39.0, 37.5, 38.0], "higher"), ([28.0, 28.5, 29.0, 27.5, 28.0], "lower"), ([33.0] * 4, "incomplete")],
)
def test_verdicts(tmp_path: Path, accuracies: list[float], expected: str) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, accuracies)
    assert cell(read_table(tmp_path)).verdict == expected


def test_the_margin_is_the_user_s(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0, 33.5, 34.0, 32.5, 33.0])
    table = read_table(tmp_path, margin=0.5)
    assert cell(table).verdict == "undecided"
    assert "± 0.5 points" in note(table, "Verdicts")


def test_the_cells_of_the_study_are_shown_before_they_were_run(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    table = read_table(tmp_path)
    assert list(table.titles) == list(MODELS)
    assert table.lrs == [0.1, 0.01, 0.001]
    assert [(cell.lr, cell.model) for cell in table.cells] == [(lr, model) for lr in table.lrs for model in MODELS]
    missing = cell(table, "sn_efficientnet_mp", 0.1)
    assert (missing.n, missing.ours, missing.verdict, missing.missing) == (0, None, "incomplete", 5)
    one = cell(table)
    assert one.ours == Summary(33.0, None, 1)
    assert (one.verdict, one.missing, one.missing_seeds) == ("incomplete", 4, ())
    assert note(table, "Missing, 4 runs with other seeds") == (
        "Missing, 4 runs with other seeds: efficientnet_bn at lr 0.001."
    )
    rest = "efficientnet_nobn, sn_efficientnet_nomp, sn_efficientnet_mp at lr 0.1, 0.01, 0.001"
    assert note(table, "Missing, all 5") == f"Missing, all 5 runs: {rest}; efficientnet_bn at lr 0.1, 0.01."


def test_other_nets_and_rates_are_compared_with_nothing(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0])
    write_cell(tmp_path, "efficientnet_bn", 0.003, [20.0])
    write_cell(tmp_path, "ffnn", 0.003, [19.0])
    table = read_table(tmp_path)
    for other in (cell(table, "efficientnet_bn", 0.003), cell(table, "ffnn", 0.003)):
        assert (other.published, other.comparison, other.verdict, other.expected) == (None, None, None, 1)
    assert cell(table, "ffnn", 0.001).n == 0, "found nets are expected at all found rates"
    assert table.cell("ffnn", 0.1) is None
    assert list(table.titles) == [*MODELS, "ffnn"]


def test_more_seeds_than_the_study_s(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.5, 33.0, 33.2, 33.4, 33.1, 33.3])
    write_cell(tmp_path, "sn_efficientnet_mp", 0.001, [29.2] * 5)
    table = read_table(tmp_path)
    assert cell(table).verdict == "reproduced"
    other = cell(table, "sn_efficientnet_mp")
    assert (other.expected, other.missing_seeds, other.verdict) == (6, (1,), "incomplete")
    assert "Missing, seed 1: sn_efficientnet_mp at lr 0.001." in notes(table)


def test_diverged_runs_count_and_others_do_not(tmp_path: Path) -> None:
    nan = {"classes_predicted": 1, "logits_finite": False}
    model = "sn_efficientnet_mp"
    write_run(tmp_path, model, 0.1, 868, 1.0, "diverged", test=nan)
    write_run(tmp_path, model, 0.1, 67, 1.0, test={"classes_predicted": 1, "logits_finite": True})
    failed = write_run(tmp_path, model, 0.1, 472, 50.0, "failed")
    write_run(tmp_path, model, 0.1, 362, None, "interrupted")
    write_run(tmp_path, model, 0.1, 970, None, None)
    table = read_table(tmp_path)
    found = cell(table, model, 0.1)
    assert (found.n, found.missing, found.verdict) == (2, 0, "incomplete")
    assert found.ours == Summary(1.0, 0.0, 2)
    for state in ("completed", "diverged", "failed", "interrupted", "unfinished"):
        assert found.count(state) == 1, state
    assert found.kinds == {"NaN": 1, "constant prediction": 1}
    assert note(table, "NaN") == "NaN in 1 of 2 runs: sn_efficientnet_mp at lr 0.1."
    assert note(table, "Failed") == f"Failed: {failed / 'traceback.txt'} (RuntimeError: out of memory)"
    assert note(table, "Not finished (i") == "Not finished (interrupted): sn_efficientnet_mp at lr 0.1, seed 362."
    assert note(table, "Not finished (u").endswith("killed): sn_efficientnet_mp at lr 0.1, seed 970.")
    assert note(table, "† Runs that diverged")


@pytest.mark.parametrize(("last", "expected"), [(1.0, "reproduced"), (1.1, "reproduced"), (1.2, "higher")])
def test_a_chance_cell(tmp_path: Path, last: float, expected: str) -> None:
    constant = {"classes_predicted": 1, "logits_finite": True}
    write_cell(tmp_path, "efficientnet_nobn", 0.001, [1.0] * 4, test=constant)
    write_run(
        tmp_path, "efficientnet_nobn", 0.001, SEEDS[4], last, test={"classes_predicted": 2, "logits_finite": True}
    )
    found = cell(read_table(tmp_path), "efficientnet_nobn")
    assert found.verdict == expected
    assert found.kinds == {"constant prediction": 4, "2 classes predicted": 1}


def test_how_a_net_predicts_is_told_where_it_is_dead_only(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0] * 5, test={"classes_predicted": 100, "logits_finite": True})
    assert cell(read_table(tmp_path)).kinds == {}


@pytest.mark.parametrize(
    "change",
    [
        "{",
        {"status": "done"},
        {"test": None},
        {"test": {"accuracy": None}},
        {"test": {"accuracy": 133.0}},
        {"test": {"accuracy": "33"}},
        {"test": [33.0]},
        {"versions": None},
        {"seed": 1},
        {"lr": 0.01},
        {"model": "efficientnet_nobn"},
    ],
)
def test_a_damaged_result_does_not_count_and_is_named(tmp_path: Path, change: Any) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0, 33.5, 34.0, 32.5, 33.0])
    file = tmp_path / "efficientnet_bn" / "lr=0.001" / "seed=67" / "result.json"
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    table = read_table(tmp_path)
    found = cell(table)
    assert (found.n, found.count("damaged"), found.verdict) == (4, 1, "incomplete")
    assert note(table, "Damaged").startswith(f"Damaged, so not counted: cannot read {file}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_epochs=8"], "trainer.max_epochs (20 and 8)"),
        (["data.batch_size=128", "data.flip=false"], "data.batch_size (512 and 128), data.flip (True and False)"),
        (["model.dropout=0.5"], "model.dropout (0.2 and 0.5)"),
    ],
)
def test_mixed_configurations_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    one = write_run(tmp_path, "efficientnet_bn", 0.001, 67, 33.0)
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    other = write_run(tmp_path, "efficientnet_bn", 0.01, 1, None, None, overrides=overrides)
    with pytest.raises(EvidenceError) as refusal:
        read_table(tmp_path)
    text = str(refusal.value)
    assert (
        text == f"{one} and {other} have different configurations (config.yaml), which a table never mixes: {message}"
    )


def test_nets_may_differ_in_the_model_only(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    other = write_run(tmp_path, "ffnn", 0.01, 1, 20.0)
    assert len(read_sweep(tmp_path)) == 2
    shutil.rmtree(other)
    write_run(tmp_path, "ffnn", 0.01, 1, 20.0, overrides=["optimizer.weight_decay=0.1"])
    with pytest.raises(EvidenceError, match=r"optimizer\.weight_decay \(0\.0 and 0\.1\)$"):
        read_sweep(tmp_path)


def test_where_a_run_took_place_is_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    write_run(tmp_path, "efficientnet_bn", 0.001, 67, 33.0, overrides=["trainer=cpu", "data.root=/d", "spp=none"])
    assert len(read_sweep(tmp_path)) == 2


def test_a_configuration_is_read_as_a_run_wrote_it(tmp_path: Path) -> None:
    config = configuration("sn_efficientnet_mp", 1e-05, 868)
    run = RunDirectory(tmp_path / "a" / "lr=b" / "seed=c", config | {"new": [1e-08, "1e-8", "on", "0x1", "a: b", None]})
    run.path.mkdir(parents=True)
    run.begin()
    [found] = read_sweep(tmp_path)
    assert (found.model, found.lr, found.seed, found.state) == ("sn_efficientnet_mp", 1e-05, 868, "unfinished")
    free = {"seed", "data.seed", "name", "optimizer.lr"}
    assert found.settings == {key: value for key, value in identity(run.config).items() if key not in free}


def test_a_run_without_a_configuration_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    (path / "config.yaml").unlink()
    with pytest.raises(EvidenceError, match=r"seed=868 has a result\.json but no config\.yaml"):
        read_table(tmp_path)


def test_a_hole_in_a_history_is_said_and_the_run_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, MODELS[0], 0.001, 868, 20.0)
    write_signals(run, lambda layer, depth, epoch, signal: (1.0, 1.0), ffnn_layers())
    whole = read_table(tmp_path)
    assert not [text for text in notes(whole) if text.startswith("Recorded")]
    lose_steps(run)
    table = read_table(tmp_path)
    assert note(table, "Recorded, but now missing").endswith("(steps=)")
    assert str(run / "spp.parquet") in note(table, "Recorded")
    assert [cell.n for cell in table.cells if cell.runs] == [cell.n for cell in whole.cells if cell.runs] == [1]


@pytest.mark.parametrize("content", ["a: [", "- 1", "title: my thesis", "", "\0"])
def test_a_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    path = write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    (path / "config.yaml").write_text(content)
    with pytest.raises(EvidenceError, match=r"config\.yaml") as refusal:
        read_table(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("change", [{"data": {"num_classes": 0}}, {"data": None}, {"optimizer": {"lr": "fast"}}])
def test_a_configuration_that_no_run_has_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    (path / "config.yaml").write_text(yaml.dump(configuration("efficientnet_bn", 0.001, 868) | change))
    with pytest.raises(EvidenceError, match=r"config\.yaml is not the configuration of a run"):
        read_table(tmp_path)


def test_a_failed_run_may_say_what_it_likes_of_its_test(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 50.0, "failed", test={"classes_predicted": 1})
    [run] = cell(read_table(tmp_path)).runs
    assert (run.accuracy, run.kind) == (None, None)


def test_a_copied_run_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    shutil.copytree(path, path.with_name("seed=868 copy"))
    with pytest.raises(EvidenceError, match="are runs of the same net and seed"):
        read_table(tmp_path)


def test_runs_of_other_sweeps_are_named(tmp_path: Path) -> None:
    for sweep in ("table1", "figures"):
        write_cell(tmp_path / sweep, "ffnn", 0.001, [20.0, 21.0])
    write_cell(tmp_path / "other", "ffnn_bn", 0.001, [20.0])
    found = {
        sweep: [note for note in notes(read_table(tmp_path / sweep)) if "too" in note]
        for sweep in ("table1", "figures")
    }
    places = [f"ffnn/lr=0.001/seed={seed}" for seed in (67, 868)]
    assert found["table1"] == [
        f"Run in another sweep, too (these do not count): {', '.join(f'figures/{place}' for place in places)}."
    ]
    assert found["figures"] == [
        "Run in another sweep, too (for the claims and the report, these count): "
        f"{', '.join(f'table1/{place}' for place in places)}."
    ]


def test_names_are_those_of_the_configuration(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    (tmp_path / "efficientnet_bn").rename(tmp_path / "renamed")
    assert cell(read_table(tmp_path)).n == 1


def test_files_that_are_no_runs_are_ignored(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    (tmp_path / "efficientnet_bn" / "lr=0.001" / "seed=67").mkdir()
    (tmp_path / "efficientnet_bn" / "lr=0.001" / "seed=67" / ".owner").touch()
    (tmp_path / "wandb" / "lr=1").mkdir(parents=True)
    (tmp_path / "wandb" / "lr=1" / "seed=1").touch()
    (tmp_path / "table.md").touch()
    assert len(read_sweep(tmp_path)) == 1


def test_a_directory_without_runs(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"no runs in .*: looked for <model>/lr=<lr>/seed=<seed>"):
        read_table(tmp_path)
    with pytest.raises(EvidenceError, match="is not a directory"):
        read_table(tmp_path / "nowhere")


def test_runs_on_other_data_are_compared_with_nothing(tmp_path: Path) -> None:
    write_cell(tmp_path, "sn_efficientnet_mp", 0.001, [90.0, 91.0], overrides=["data=digits"])
    table = read_table(tmp_path)
    assert table.published is None
    assert len(table.cells) == 1
    assert (cell(table, "sn_efficientnet_mp").published, cell(table, "sn_efficientnet_mp").verdict) == (None, None)
    reason = note(table, "Not compared with the published values")
    assert "data._target_ is 'sppbench.data.Digits', not 'sppbench.data.CIFAR100'" in reason
    assert "data.batch_size is 128, not 512" in reason
    assert "optimizer" not in reason
    assert "sn_efficientnet_mp" not in reason, "it is not about this net"
    assert not [text for text in notes(table) if text.startswith(("Verdicts", "Published", "Missing"))]


def test_a_changed_net_is_not_the_published_one(tmp_path: Path) -> None:
    write_cell(tmp_path, "efficientnet_bn", 0.001, [33.0] * 5)
    write_cell(tmp_path, "sn_efficientnet_mp", 0.001, [29.0] * 5, overrides=["model.mp_weight=0.3"])
    table = read_table(tmp_path)
    assert cell(table).verdict == "reproduced"
    assert cell(table, "sn_efficientnet_mp").verdict is None
    assert table.cell("sn_efficientnet_mp", 0.1) is None
    assert note(table, "Not compared").endswith(": sn_efficientnet_mp: model.mp_weight is 0.3, not 0.5.")


def test_none_of_the_published_nets(tmp_path: Path) -> None:
    write_cell(tmp_path, "ffnn", 0.001, [20.0])
    table = read_table(tmp_path)
    assert (table.published, len(table.cells)) == (None, 1)
    assert note(table, "Not compared") == "Not compared with the published values: none of its nets is here."


def test_different_machines_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "efficientnet_bn", 0.001, 868, 33.0)
    write_run(tmp_path, "efficientnet_bn", 0.001, 67, 33.0)
    assert not [text for text in notes(read_table(tmp_path)) if text.startswith("Runs ")]
    other = VERSIONS | {"torch": "2.14.0"}
    write_run(tmp_path, "efficientnet_bn", 0.001, 472, 33.0, device="NVIDIA H200", versions=other)
    write_run(tmp_path, "efficientnet_bn", 0.001, 970, None, "failed", device="NVIDIA A100")
    table = read_table(tmp_path)
    assert note(table, "Runs on") == "Runs on different devices: NVIDIA H200, cpu."
    assert note(table, "Runs with") == "Runs with different versions of torch: 2.14.0, 2.15.0."


def test_the_study_s_protocol_is_the_default_configuration() -> None:
    published = read_published()
    assert list(published.titles) == list(MODELS)
    for model in MODELS:
        assert published.departures(model, identity(configuration(model, 0.001, 868))) == {}


def test_the_study_s_values() -> None:
    """Table 1 of the poster, row by row."""
    table = {
        0.1: ["1.0 ± 0.0", "1.2 ± 0.4", "1.0 ± 0.0", "1.0 ± 0.0"],
        0.01: ["1.0 ± 0.0", "13.9 ± 3.4", "1.0 ± 0.0", "1.0 ± 0.0"],
        0.001: ["1.0 ± 0.0", "33.5 ± 0.8", "30.0 ± 0.2", "29.2 ± 0.5"],
    }
    values = read_published().values
    assert len(values) == 12
    for lr, row in table.items():
        for model, text in zip(MODELS, row, strict=True):
            mean, std = map(float, text.split(" ± "))
            assert values[model, lr] == Summary(mean, std, 5)


PUBLISHED = """
source: {title: A paper, year: 2024}
n: 2
note: made up
protocol: {trainer.max_epochs: 20}
models:
  ffnn: {title: The net, protocol: {}, cells: {0.001: [20.0, 1.0]}}
"""


def test_another_published_table(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text(PUBLISHED)
    write_cell(tmp_path / "runs", "ffnn", 0.001, [20.0, 20.1])
    write_cell(tmp_path / "runs", "efficientnet_bn", 0.001, [33.0, 33.1])
    table = read_table(tmp_path / "runs", tmp_path / "paper.yaml")
    assert cell(table, "ffnn").title == "The net"
    assert cell(table, "ffnn").verdict == "undecided"
    assert cell(table, "efficientnet_bn").verdict is None
    assert note(table, "Published") == "Published values: A paper, 2024 (n = 2); made up."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n: 2", "n: 1", "n is 1, but must be a number of runs of at least 2"),
        ("[20.0, 1.0]", "20.0", r"the value of ffnn, 0\.001 is 20\.0, but must be"),
        ("[20.0, 1.0]", "[20.0, -1.0]", "but must be"),
        ("[20.0, 1.0]", "[20.0, .nan]", "but must be"),
        ("note: made up", "", "it has no key 'note'"),
        ("models:", "nets:", "it has no key 'models'"),
        ("{0.001: [20.0, 1.0]}", "[]", "cannot read"),
        ("0.001:", "small:", "cannot read"),
        ("source:", "source: [", "cannot read"),
    ],
)
def test_a_damaged_published_table(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PUBLISHED
    (tmp_path / "paper.yaml").write_text(PUBLISHED.replace(old, new))
    with pytest.raises(UserError, match=message) as refusal:
        read_published(tmp_path / "paper.yaml")
    assert str(tmp_path / "paper.yaml") in str(refusal.value)
    assert "\n" not in str(refusal.value)
