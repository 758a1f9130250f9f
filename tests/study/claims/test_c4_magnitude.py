"""C4 on accuracies with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fabricate.claims import cell, judged, part, rules

NOMP, MP, LECUN = "sn_efficientnet_nomp", "sn_efficientnet_mp", "sn_efficientnet_mp_lecun"


def c4(directory: Path, difference: float, equal_init: float, spread: float = 0.1) -> None:
    for net, mean in ((NOMP, 30.0), (MP, 30.0 + difference), (LECUN, 30.0 + equal_init)):
        cell(directory, net, 0.001, [mean - spread, mean, mean + spread])


@pytest.mark.parametrize(
    ("difference", "equal_init", "spread", "verdict"),
    [
        (-0.8, -0.5, 0.1, "holds"),
        (0.0, 0.0, 0.1, "holds"),  # no effect: ± 0.23
        (0.0, 0.0, 0.5, "undecided"),  # ± 1.1
        (2.0, 2.0, 0.1, "fails"),
        (-0.8, 2.0, 0.1, "fails"),  # the classifier's initialization hid the raise
    ],
)
def test_c4(tmp_path: Path, difference: float, equal_init: float, spread: float, verdict: str) -> None:
    c4(tmp_path, difference, equal_init, spread)
    claim = judged(tmp_path, "C4")
    assert claim.verdict == verdict
    assert [one.value for one in claim.parts] == pytest.approx([difference, equal_init], abs=1e-9)


def test_c4_needs_the_repeat_with_equal_initialization(tmp_path: Path) -> None:
    cell(tmp_path, NOMP, 0.001, [30.0, 30.1, 29.9])
    cell(tmp_path, MP, 0.001, [29.0, 29.1, 28.9])
    claim = judged(tmp_path, "C4")
    assert [one.verdict for one in claim.parts] == ["holds", "undecided"]
    assert claim.verdict == "undecided"
    assert f"model={LECUN} optimizer.lr=0.001 seed=868,67,472" in claim.parts[1].missing


def test_the_nets_of_c4_cannot_be_mistaken_for_one_another(tmp_path: Path) -> None:
    """A net that is called MP with equal initialization, but begins as the study's, is another net."""
    cell(tmp_path, LECUN, 0.001, [29.0] * 3, overrides=["model.classifier_std=0.01"])
    cell(tmp_path, NOMP, 0.001, [30.0] * 3)
    assert part(judged(tmp_path, "C4"), f"{LECUN} - {NOMP}").n == 3


def test_the_margin_is_the_rules_(tmp_path: Path) -> None:
    c4(tmp_path, 0.3, 0.3)  # ± 0.23
    assert judged(tmp_path, "C4").verdict == "fails"
    assert judged(tmp_path, "C4", rules(tmp_path / "rules.yaml", claims__C4__margin=0.6)).verdict == "holds"
