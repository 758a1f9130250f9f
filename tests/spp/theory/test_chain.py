"""Expected values of chains that are known by a recorded frame alone, against recorded ones."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from sppbench.models import EfficientNet
from sppbench.spp.theory.chain import expected_of_chain
from sppbench.spp.theory.net import expected_of_net
from tests.spp.theory.recorded import both, column, draw, record, smooth_images, wide

CHAINS: dict[str, tuple[dict[str, Any], Any]] = {
    "relu": ({}, "he"),
    "relu, fan in": ({"init": "he_fan_in"}, "he"),
    "selu": ({"activation": "SELU", "init": "lecun"}, "lecun"),
    "batch norm": ({"normalization": "batch_norm"}, "he"),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains_by_name_and_by_net(case: str) -> None:
    arguments, name = CHAINS[case]
    net = wide(**arguments)
    x = draw(128, 1, 16, 16) + 0.3  # samples have a mean in common
    frame = record(net, x, shared=0.5)
    for table in (expected_of_chain(frame, name), expected_of_net(net, x, frame)):
        for signal in ("activation", "gradient"):
            for statistic in ("second_moment", "acv"):
                recorded, expected = both(frame, table, signal, statistic)
                np.testing.assert_allclose(recorded, expected, rtol=0.15)
            recorded, expected = both(frame, table, signal, "acsm")
            scale = both(frame, table, signal, "second_moment")[0]
            # Where batch normalization takes the mean out, theory says zero.
            assert (recorded[expected == 0] <= 1e-9 * scale[expected == 0]).all()
            np.testing.assert_allclose(recorded[expected > 0], expected[expected > 0], rtol=0.25)
    chain = expected_of_chain(frame, name)
    hidden = [layer for layer in dict.fromkeys(frame["layer"]) if layer not in ("flatten", "classifier")]
    assert list(column(chain, "activation", "acsm").index) == hidden
    assert set(column(chain, "gradient", "acsm").index) == set(hidden)
    whole = expected_of_net(net, x, frame)
    assert set(column(frame, "gradient", "acsm").index) <= set(column(whole, "gradient", "acsm").index)
    assert set(column(whole, "activation", "acsm").index) == set(column(frame, "activation", "acsm").index)
    # The mean over everything is that which the overall variance of the study's convention needs.
    recorded, expected = both(frame, chain, "activation", "mean")
    np.testing.assert_allclose(recorded, expected, atol=0.08 * math.sqrt(moment_of(frame)))


def moment_of(frame: pd.DataFrame) -> float:
    return float(column(frame, "activation", "second_moment").max())


def test_a_chain_is_asked_for_what_is_none() -> None:
    net = EfficientNet(width_mult=0.1, depth_mult=0.1)
    frame = record(net, smooth_images(4))
    with pytest.raises(ValueError, match="two layers of kind Linear; the frame has 1"):
        expected_of_chain(frame, "he")
    chain = record(nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 8)), draw(4, 8))
    with pytest.raises(ValueError, match="no named theory for 1, a Softplus"):
        expected_of_chain(chain, "he")
    with pytest.raises(ValueError, match="unknown theory 'poster'; there are he, lecun"):
        expected_of_chain(chain, "poster")  # type: ignore[arg-type]


def test_a_chain_without_numbers_of_samples_says_nothing_of_the_gradients_split() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Linear(8, 8), b=nn.ReLU(), c=nn.Linear(8, 8)))
    frame = record(net, draw(4, 8)).drop(columns="samples")
    table = expected_of_chain(frame, "he")
    assert column(table, "gradient", "acsm").isna().all()
    assert column(table, "gradient", "second_moment").notna().all()
