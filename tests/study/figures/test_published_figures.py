"""The numbers read off the published figures: those of the reference, and files that cannot be read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sppbench.evidence.runs import EvidenceError
from sppbench.study.figures.published_figures import read_published_figures
from tests.fabricate.figures import FIGURE1


def test_published_numbers_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "figures.yaml"
    file.write_text("source: {title: poster}\nnote: none\nepochs: [0]\n")
    with pytest.raises(EvidenceError, match=f"cannot read {file}: it has no key 'learning_rate'"):
        read_published_figures(file)
    text = (Path(__file__).parents[3] / "conf" / "published" / "poster_figures.yaml").read_text()
    for old, new, message in (
        ("{0: 8.9e-7,", "{0: 0,", "0 at block0.activation has no logarithm"),
        ("[0.5e-7, 0.65e-7]", "[0.65e-7, 0.5e-7]", "neither a value nor a range"),
        ("signal: activation", "signal: actuation", "there is no panel for signal 'actuation'"),
        ("layout: gradient", "layout: gradients", "the layout of figure1 is 'gradients'"),
    ):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(EvidenceError, match=message):
            read_published_figures(file)


def test_published_figures_are_those_of_the_reference() -> None:
    figures = {figure.name: figure for figure in read_published_figures().figures}
    assert list(figures) == [f"figure{number}" for number in range(1, 6)]
    assert [figure.criterion for figure in figures.values()] == [0.1, 0.1, 0.1, 0.3, 0.3]
    first = {(one.layer, one.epoch): one.low for one in figures["figure1"].anchors}
    for place, layer in enumerate(("block0.activation", "block4.activation", "block8.activation")):
        assert [first[layer, epoch] for epoch in (0, 9, 19)] == [FIGURE1[epoch][place] for epoch in (0, 9, 19)]
    assert dataclasses.asdict(figures["figure2"].anchors[1])["high"] == 0.65e-7
