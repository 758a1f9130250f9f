"""How far two runs may differ, by hand and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm, t
from torch import nn

from sppbench.spp.comparison.departures import compare
from sppbench.spp.comparison.yardsticks import by_rounding, by_seeds, by_statistic, precision_of, quantile, rounding
from sppbench.spp.probe.probe import SignalProbe
from tests.spp.comparison.built import built, column, paired

# -- differences -------------------------------------------------------------------------------------------------------


def test_differences_are_relative_to_the_size_of_the_tensor() -> None:
    a = built(lambda *_: 4.0).assign(acsm=1e-9, acv=4.0, mean=0.1)
    b = a.assign(acsm=2e-9, acv=5.0, mean=-0.1)
    found = by_statistic(paired(a, b))
    assert found["second_moment"][0, 0] == pytest.approx(1 / 5)
    assert found["acv"][0, 0] == pytest.approx(1 / 5)
    assert found["acsm"][0, 0] == pytest.approx(1e-9 / 5)  # twice as large, and still nothing
    assert found["mean"][0, 0] == pytest.approx(0.2 / math.sqrt(5))


def test_what_is_not_finite_in_one_alone_differs_without_bound_and_in_both_not_at_all() -> None:
    a, nan = built(), built().assign(acv=np.nan)
    assert np.isposinf(by_rounding(paired(a, nan)).distance).all()
    assert (by_rounding(paired(nan, a.assign(acv=np.inf))).distance == 0).all()


def test_what_is_dead_in_both_does_not_differ() -> None:
    dead, deader = built(lambda *_: 1e-31), built(lambda *_: 0.0)
    dead, deader = dead.assign(mean=0.0), deader.assign(mean=0.0)
    assert (by_rounding(paired(dead, deader)).distance == 0).all()
    assert (by_rounding(paired(dead, built())).distance == 1).all()


# -- rounding ----------------------------------------------------------------------------------------------------------


def test_rounding_follows_the_stated_rule() -> None:
    a = built(steps=[0, 3])
    pairing = paired(a, a)  # 4 layers, 3 signals, 2 steps
    likely = math.sqrt(2 * math.log(2 * 24 / 0.01))
    floor = likely * 2**-24 + 2e-6
    allowed = rounding(pairing, "float32")

    def layers_passed(number: int) -> float:
        return likely * 2**-24 * math.sqrt(1024 * number)

    assert allowed[0, column(pairing, "stem", "parameter")] == pytest.approx(floor)
    assert allowed[0, column(pairing, "blocks.0", "activation")] == pytest.approx(layers_passed(2) + floor)
    assert allowed[0, column(pairing, "head", "gradient")] == pytest.approx(layers_passed(8 - 3) + floor)
    updates = 0.01 * 3 * math.sqrt(layers_passed(8))
    assert allowed[1, column(pairing, "stem", "activation")] == pytest.approx(layers_passed(25) + updates + floor)
    halves = rounding(pairing, "bfloat16")
    assert halves[0, column(pairing, "stem", "activation")] == pytest.approx(likely * 2**-8 + floor)
    assert rounding(paired(*[built(steps=[500])] * 2), "bfloat16").max() == 0.5


def test_the_precision_is_that_of_the_coarser_run() -> None:
    single = built()
    brain = single.assign(subnormal=np.where(single["signal"] == "activation", 0.0, np.nan))
    half = single.assign(subnormal=0.01)
    assert precision_of(paired(single, single)) == "float32"
    assert precision_of(paired(single, brain)) == "bfloat16"
    assert precision_of(paired(half, single)) == "float16"
    assert precision_of(paired(half, brain)) == "bfloat16"
    assert precision_of(paired(*[single.drop(columns="subnormal")] * 2)) == "float32"


def record(net: nn.Module, dtype: torch.dtype, steps: int, cast: bool = False) -> pd.DataFrame:
    net = net.to(dtype)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    optimizer, frames = torch.optim.Adam(net.parameters(), 1e-3), []
    with SignalProbe(net) as probe:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            frames.append(probe.collect())
    return pd.concat(frames)


def deep_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh())])


def test_a_net_in_float32_is_the_same_as_in_float64_and_bfloat16_and_not_as_one_with_a_changed_layer() -> None:
    single, double = (record(deep_net(), dtype, 4) for dtype in (torch.float32, torch.float64))
    found = compare(single, double)
    assert found.verdict == "the same"
    assert "rounding to float32" in str(found)
    brain = record(deep_net(), torch.float32, 4, cast=True)
    assert not compare(single, brain, precision="float32")
    assert compare(single, brain).verdict == "the same"
    assert "rounding to bfloat16" in str(compare(single, brain))
    net = deep_net()
    net[9] = nn.Hardtanh()
    changed = record(net, torch.float32, 4)
    first = compare(single, changed).departures[0]
    assert (first.step, first.cell.layer, first.cell.signal) == (0, "9", "activation")


def test_roundings_as_they_are_assumed_give_no_alarm() -> None:
    """100 runs, each a random walk of as many roundings as the rule counts."""
    generator = np.random.default_rng(0)
    a = built(lambda *_: 1.0, steps=range(4))
    pairing = paired(a, a)
    allowed = rounding(pairing, "tf32")
    walk = np.sqrt(2.0 * 4 * pairing.steps + 1) * 2**-11 / math.sqrt(3)  # each evenly spread over ± u
    of_stem = allowed[:, column(pairing, "stem", "activation")]
    assert not (np.abs(generator.normal(0, walk, (100, 4))) > of_stem).any()
    assert (np.abs(generator.normal(0, 20 * walk, (100, 4))) > of_stem).any()


# -- the spread between seeds ------------------------------------------------------------------------------------------


def test_the_quantile_is_the_larger_of_students_and_bonferronis() -> None:
    assert quantile(3, 12) == pytest.approx(t.ppf(0.995, 2))
    assert quantile(100, 12) == pytest.approx(norm.ppf(1 - 0.005 / 12))


def test_the_spread_by_hand() -> None:
    """Logarithms of 0 and 0.2 in a and one seed everywhere, b at 1: mean 0.1, s = 0.2/√2, and √(1 + 1/2)."""
    a, seed, b = (built(lambda *_, log=log: math.exp(log)) for log in (0.0, 0.2, 1.0))
    found = by_seeds(paired(a, b, [seed]), k=5)
    np.testing.assert_allclose(found.distance, 0.9, rtol=1e-6)
    np.testing.assert_allclose(found.allowed, 5 * 0.2 / math.sqrt(2) * math.sqrt(1.5), rtol=1e-6)
    assert compare(a, b, seeds=[seed], k=5.3)
    assert not compare(a, b, seeds=[seed], k=5.1)


def test_a_spread_that_comes_later_hides_nothing_before() -> None:
    a, seed = built(), built(lambda step, depth, signal: math.exp(0.1 * (1 if step < 3 else 9)))
    allowed = by_seeds(paired(a, a, [seed]), k=1).allowed[:, 0] / (0.1 / math.sqrt(2) * math.sqrt(1.5))
    np.testing.assert_allclose(allowed, [1, 1, 1, 9, 9, 9], rtol=1e-6)
    shrinking = built(lambda step, depth, signal: math.exp(0.1 * (1 if step > 2 else 9)))
    allowed = by_seeds(paired(a, a, [shrinking]), k=1).allowed[:, 0] / (0.1 / math.sqrt(2) * math.sqrt(1.5))
    np.testing.assert_allclose(allowed, [9, 9, 9, *(math.sqrt((243 + n) / (3 + n)) for n in (1, 2, 3))], rtol=1e-6)


def test_equal_seeds_leave_rounding() -> None:
    a = built()
    found = by_seeds(paired(a, a, [a]))
    np.testing.assert_allclose(found.allowed, np.log1p(rounding(paired(a, a), "float32")))


def test_where_a_seed_is_not_finite_nothing_is_said() -> None:
    a, nan = built(), built().assign(acv=np.nan)
    assert compare(a, built(lambda *_: 9.0), seeds=[nan])
    assert not compare(a, nan, seeds=[a])


KINDS = ["independent", "all together", "constant in time", "of unlike layers"]


def simulated(generator: np.random.Generator, kind: str, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Logarithms of second moments of runs, steps and layers, without any difference between the runs."""
    runs, _, layers = shape
    if kind == "all together":
        return np.broadcast_to(generator.normal(0, 0.1, (runs, 1, 1)), shape)
    if kind == "independent":
        return generator.normal(0, 0.1, shape)
    sizes = np.geomspace(0.01, 0.3, layers) if kind == "of unlike layers" else 0.1
    return np.broadcast_to(generator.normal(0, sizes, (runs, 1, layers)), shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runs", [3, 6])
def test_one_more_seed_seldom_departs(kind: str, runs: int) -> None:
    """Of 100 comparisons at a level of 1 % no more than 4 depart, and what is far away in some layers does."""
    generator = np.random.default_rng(runs)
    layers = [(f"l{depth}", "ReLU") for depth in range(40)]
    frame = built(steps=range(5), layers=layers, signals=["activation"])
    pairing = paired(frame, frame, [frame] * (runs - 1))
    far = 4 * quantile(runs, 40) * 0.3 * (np.arange(40) >= 36)

    def departs(logs: NDArray[np.float64], shift: NDArray[np.float64] | float) -> bool:
        a, b = ({**pairing.a, "acsm": 0 * one, "acv": np.exp(one)} for one in (logs[0], logs[-1] + shift))
        differences = by_seeds(replace(pairing, a=a, b=b, seeds=np.exp(logs[1:-1])))
        return bool((differences.distance > differences.allowed).any())

    draws = [simulated(generator, kind, (runs + 1, 5, 40)) for _ in range(100)]
    assert sum(departs(logs, 0.0) for logs in draws) <= 4
    assert all(departs(logs, far) for logs in draws[:20])
