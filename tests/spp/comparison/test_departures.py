"""Where two histories depart: the first step, and in it what is computed first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.comparison.departures import compare
from sppbench.spp.names import SIGNALS
from tests.spp.comparison.built import LAYERS, Value, built, one

NAMES = [name for name, _ in LAYERS]


def where(*places: tuple[int, str, str], to: float = 4.0) -> Value:
    """1, but for some (step, layer, signal)."""
    return lambda step, depth, signal: to if (step, NAMES[depth], signal) in places else 1.0


def since(step: int, layer: str, signal: str, to: float = 4.0) -> Value:
    return lambda s, depth, other: to if (s >= step and NAMES[depth] == layer and other == signal) else 1.0


def first(found: Any) -> tuple[int, str, str]:
    return found.departures[0].step, found.departures[0].cell.layer, found.departures[0].cell.signal


def test_the_same_numbers_are_identical_and_rounding_is_not() -> None:
    a = built()
    assert compare(a, a.sample(frac=1, random_state=0)).verdict == "identical"
    found = compare(a, a.assign(acv=a["acv"] * (1 + 3e-7)))
    assert (found.verdict, bool(found), found.departures) == ("the same", True, ())
    assert "no lasting difference exceeds rounding to float32" in str(found)


@pytest.mark.parametrize("name", ["mean", "nonfinite", "absmax", "zeros"])
def test_identical_means_every_number(name: str) -> None:
    a = built()
    assert compare(a, a.assign(**{name: a[name] + 1e-6})).verdict == "the same"


def test_histories_of_an_earlier_version_are_identical_in_what_both_have() -> None:
    a = built()
    assert compare(a, a.drop(columns=["absmax", "zeros", "subnormal"])).verdict == "identical"


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("step", [0, 3])
def test_a_layer_that_departs_is_found_with_its_values(signal: str, step: int) -> None:
    found = compare(built(signals=SIGNALS), built(since(step, "blocks.1", signal), signals=SIGNALS))
    assert first(found) == (step, "blocks.1", signal)
    assert len(found.departures) == 1
    departure = found.departures[0]
    assert (departure.statistic, departure.a, departure.b, departure.distance) == ("second_moment", 1.0, 4.0, 0.75)
    assert "b/a = 4" in str(found)
    assert not found


def test_in_a_step_weights_come_first_then_activations_forward_then_gradients_backward() -> None:
    def changed(*signals: str) -> pd.DataFrame:
        return built(lambda step, depth, signal: 4.0 if signal in signals and depth in (1, 2) else 1.0)

    assert first(compare(built(), changed("activation", "gradient", "parameter"))) == (0, "blocks.0", "parameter")
    assert first(compare(built(), changed("activation", "gradient"))) == (0, "blocks.0", "activation")
    assert first(compare(built(), changed("gradient"))) == (0, "blocks.1", "gradient")


def test_departures_are_in_order() -> None:
    def changed(step: int, depth: int, signal: str) -> float:
        return 4.0 if step >= {"activation": 4, "gradient": 2, "parameter": 99}[signal] and depth >= 2 else 1.0

    found = compare(built(), built(changed))
    assert [(one.step, one.cell.layer, one.cell.signal) for one in found.departures] == [
        (2, "head", "gradient"),
        (2, "blocks.1", "gradient"),
        (4, "blocks.1", "activation"),
        (4, "head", "activation"),
    ]
    assert found.place == 2


def test_an_outlier_of_one_step_is_no_departure() -> None:
    found = compare(built(), built(where((1, "stem", "activation"), (4, "head", "gradient"))))
    assert (found.verdict, found.alone) == ("the same", 2)
    assert "2 values are beyond this for a single step only: not counted" in str(found)
    assert first(compare(built(), built(where((3, "stem", "gradient"), (4, "stem", "gradient")))))[0] == 3


def test_in_the_last_step_a_value_departs_unless_it_is_alone() -> None:
    alone = where((5, "stem", "activation"))
    assert compare(built(), built(alone))
    several = where((5, "stem", "activation"), (5, "blocks.0", "activation"))
    assert first(compare(built(), built(several))) == (5, "stem", "activation")


def test_of_a_single_step_each_value_counts() -> None:
    a, b = built(steps=[7]), built(where((7, "head", "activation")), steps=[7])
    assert first(compare(a, b)) == (7, "head", "activation")


def test_a_sign_that_changed_shows_in_the_mean_alone() -> None:
    a = built()
    found = compare(a, a.assign(mean=-a["mean"]))
    assert found.departures[0].statistic == "mean"
    assert "mean 0.1 in a, -0.1 in b" in str(found)


def test_acsm_that_became_acv_departs_though_the_second_moment_did_not() -> None:
    a = built()
    found = compare(a, a.assign(acsm=0.5, acv=0.5))
    assert found.departures[0].statistic == "acsm"
    assert "ACSM 0.25 in a, 0.5 in b" in str(found)


def test_nan_in_one_alone_departs() -> None:
    a = built()
    lost = (a["step"] >= 3) & (a["layer"] == "head") & (a["signal"] == "activation")
    found = compare(a, a.assign(acv=a["acv"].where(~lost)))
    assert first(found) == (3, "head", "activation")
    assert "second moment 1 in a, nan in b" in str(found)


def test_a_tolerance_takes_the_place_of_rounding() -> None:
    b = built(lambda *_: 1.1)
    assert not compare(built(), b, tolerance=0.09)
    assert compare(built(), b, tolerance=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "precision must be one of"),
        ({"tolerance": 0}, "tolerance must be positive"),
        ({"k": -1, "seeds": [built()]}, "k must be positive"),
        ({"k": 3}, "k is for a comparison with seeds"),
        ({"tolerance": 0.1, "seeds": [built()]}, "tolerance is for a comparison without seeds"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(built(), built(), **options)


# -- in words ----------------------------------------------------------------------------------------------------------


def test_another_initialization_is_said_first() -> None:
    text = str(compare(built(), built(lambda step, depth, signal: 1 + depth)))
    assert text.splitlines()[1].strip() == (
        "the weights already differ in step 0, the first that both have, at 3 of 4 layers (blocks.0, blocks.1, head): "
        "another initialization or seed"
    )


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("stem", "the weights are equal in step 0, the first that both have: so the data differ, or the first"),
        ("head", "what was computed just before agrees: blocks.1 (ReLU, activation)"),
    ],
)
def test_what_it_may_come_from(layer: str, words: str) -> None:
    assert words in str(compare(built(), built(since(0, layer, "activation"))))


def test_weights_that_were_not_recorded() -> None:
    a, b = (built(value, signals=["activation"]) for value in (one, since(0, "stem", "activation")))
    assert "whether both started from the same weights is not known" in str(compare(a, b))


def test_whether_it_came_at_once_or_gradually() -> None:
    assert "the difference came at once: in the step before, none was above 0.0%" in str(
        compare(built(), built(since(3, "head", "activation")))
    )
    grown = built(lambda step, depth, signal: 1 + 1e-6 * 4**step, steps=range(12))
    assert "the difference grew gradually, as rounding errors do" in str(compare(built(steps=range(12)), grown))


def test_weights_that_depart_first_point_to_the_optimizer() -> None:
    found = compare(built(), built(lambda step, depth, signal: 2.0 if step >= 3 else 1.0))
    assert "so an update since step 2 differed: in the optimizer, or in something not recorded" in str(found)


def test_the_sizes_of_the_differences() -> None:
    b = built(lambda step, depth, signal: 1 + (signal == "gradient") * (step + 1) * (1 + depth) / 50)
    lines = str(compare(built(), b)).splitlines()
    table = [line.split("  ") for line in lines[lines.index("") + 1 :]]
    assert [cell.strip() for cell in table[0] if cell.strip()][1:] == ["step 0", "step 3", "step 5"]
    gradient = next(row for row in table if "gradient" in "".join(row))
    assert [cell.strip() for cell in gradient if cell.strip()][1:] == [
        f"{2.5 * step / 50:.1e} ({4 * step / 50:.1e})" for step in (1, 4, 6)
    ]


def test_seeds_are_named() -> None:
    generator = np.random.default_rng(0)
    runs = [built(lambda *_: float(np.exp(generator.normal(0, 0.1)))) for _ in range(6)]
    found = compare(runs[0], runs[1], seeds=runs[2:])
    assert found.verdict == "the same"
    assert "times the spread between 5 seeds (a factor of" in str(found)
    far = built(lambda *_: 100.0)
    assert first(compare(runs[0], far, seeds=runs[2:])) == (0, "stem", "parameter")
