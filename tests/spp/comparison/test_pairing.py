"""Two histories on one grid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.comparison.pairing import pair
from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.schema import HistoryError
from tests.spp.comparison.built import LAYERS, built, column, named


def distinct(step: int, depth: int, signal: str) -> float:
    return 1 + step + 100 * depth + (0.5 if signal == "gradient" else 0.25 if signal == "parameter" else 0)


def test_values_lie_where_they_belong() -> None:
    a = built(distinct).sample(frac=1, random_state=0)
    pairing = pair(a, built(lambda *key: 2 * distinct(*key)))
    assert pairing.steps.tolist() == [*range(6)]
    for layer, signal, expected in (("blocks.1", "gradient", 201.5), ("head", "parameter", 301.25)):
        number = column(pairing, layer, signal)
        np.testing.assert_allclose(pairing.a["acsm"][:, number] * 4, expected + np.arange(6))
        np.testing.assert_allclose(pairing.b["acv"][:, number], 1.5 * (expected + np.arange(6)))


def test_cells_are_in_the_order_of_a_step() -> None:
    signals = ("activation", "gradient", "parameter", "parameter_gradient", "update")
    frame = built(signals=signals, layers=LAYERS[:2])
    assert named(pair(frame, frame).cells) == [
        ("stem", "parameter"),
        ("blocks.0", "parameter"),
        ("stem", "activation"),
        ("blocks.0", "activation"),
        ("blocks.0", "gradient"),
        ("stem", "gradient"),
        ("blocks.0", "parameter_gradient"),
        ("stem", "parameter_gradient"),
        ("stem", "update"),
        ("blocks.0", "update"),
    ]


def test_only_what_is_common_is_compared_and_the_rest_is_said_once() -> None:
    a, b = built(steps=range(12)), built(steps=range(2, 20, 2), layers=[*LAYERS, ("more", "ReLU")])
    b = b.assign(samples=16, epoch=b["step"] // 5)
    pairing = pair(a, b)
    assert pairing.steps.tolist() == [2, 4, 6, 8, 10]
    assert pairing.layers == 4
    assert pairing.notes == (
        "only in b: 1 layer, more",
        "not compared: 7 steps of a, steps 0 to 11",
        "not compared: 4 steps of b, steps 12 to 18",
        "samples of a batch differ, first in step 2: 32 in a, 16 in b",
        "epochs differ, first in step 6: 0 in a, 1 in b",
    )


def test_a_row_that_only_one_has_is_said_and_not_compared() -> None:
    a = built()
    lacks = a[(a["step"] != 3) | (a["layer"] != "head")]
    pairing = pair(a, lacks)
    number = column(pairing, "head", "activation")
    assert pairing.b["present"][:, number].tolist() == [1, 1, 1, 0, 1, 1]
    assert "3 values are in only one of the two" in pairing.notes[0]


def test_values_are_compared_as_they_are_stored() -> None:
    third = built(lambda *_: 1 / 3)
    stored = third.assign(**{name: third[name].astype(np.float32).astype(np.float64) for name in ("acsm", "acv")})
    pairing = pair(third, stored)
    assert np.array_equal(pairing.a["acv"], pairing.b["acv"])


def test_means_over_epochs_are_compared_with_means() -> None:
    a = built(distinct, steps=range(20))
    pairing = pair(epoch_mean(a), a)
    assert pairing.steps.tolist() == [9, 19]
    assert np.array_equal(pairing.a["acsm"], pairing.b["acsm"])
    assert pairing.a["acsm"][:, column(pairing, "stem", "activation")] * 4 == pytest.approx([5.5, 15.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.drop(columns=["acv"]), "the history of b lacks the columns acv"),
        (lambda frame: frame[:0], "the history of b has no rows"),
        (lambda frame: frame.assign(step=frame["step"] + 50), "no step in common: steps 50 to 55 of b, steps 0 to 5"),
        (lambda frame: frame.assign(signal="update"), "no signal of any layer in common"),
    ],
)
def test_nothing_to_compare(change: object, words: str) -> None:
    assert callable(change)
    b: pd.DataFrame = change(built())
    with pytest.raises(HistoryError, match=words):
        pair(built(), b)


def test_a_seed_of_another_net() -> None:
    with pytest.raises(
        HistoryError, match="seed 1 is not a run of a with another seed: it lacks the activation of head"
    ):
        pair(built(), built(), [built(layers=LAYERS[:3])])
