"""The files of published values agree with the nets that they are set beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from sppbench.evidence.runs import read_run
from sppbench.files import config_directory
from sppbench.study.common.published import read_published
from sppbench.study.table.cells import read_table
from tests.fabricate.runs import SEEDS, write_cell, write_run

FOLDER = config_directory() / "published"


@pytest.mark.parametrize("name", ["poster_table1", "thesis_ffnn"])
def test_runs_of_the_nets_as_they_are_follow_the_protocol(name: str, tmp_path: Path) -> None:
    published = read_published(FOLDER / f"{name}.yaml")
    for model in published.titles:
        run = read_run(write_run(tmp_path, model, 0.001, SEEDS[0], 20.0))
        assert published.departures(model, run.settings) == {}, model


def test_both_accuracies_of_the_thesis_stand_beside_each_width(tmp_path: Path) -> None:
    """Ours depend on the width and not on the affine part; each published value agrees with one width."""
    for width, accuracy in (("_h100", 18.5), ("", 24.0)):
        for net in ("ffnn_bn", "ffnn_bn_noaffine"):
            write_cell(tmp_path, f"{net}{width}", 0.001, [accuracy + spread for spread in (-0.4, -0.2, 0, 0.2, 0.4)])
    table = read_table(tmp_path, FOLDER / "thesis_ffnn.yaml")
    verdicts = {cell.title: cell.verdict for cell in table.cells}
    assert verdicts == {
        "h = 100 (affine off)": "reproduced",
        "h = 100 (affine on)": "lower",
        "h = 512 (affine off)": "higher",
        "h = 512 (affine on)": "reproduced",
    }


def test_nets_of_which_no_value_is_known_get_no_verdict(tmp_path: Path) -> None:
    for net in ("cnn", "cnn_bn_conv"):
        write_cell(tmp_path, net, 0.001, [40.0, 41.0])
    table = read_table(tmp_path)
    assert [cell.verdict for cell in table.cells] == [None, None]
    assert table.departures == ("none of its nets is here",)
