"""What is rounding is drawn as zero, and nothing else is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import nn

from sppbench.spp import SignalProbe
from sppbench.spp.plots.floor import rounded_to_zero, rounding_floor


def test_the_floor_is_that_of_four_distances_of_numbers() -> None:
    acsm = [2.0**-42, 2.0**-41, 3.0, 0.0, np.nan]
    frame = pd.DataFrame({"second_moment": [1.0, 4.0, 4.0, 0.0, np.nan], "acsm": acsm})
    # Numbers in float32 are 2**-23 apart.
    np.testing.assert_array_equal(rounding_floor(frame), [2.0**-42, 2.0**-40, 2.0**-40, 0.0, np.nan])
    np.testing.assert_array_equal(rounded_to_zero(frame, "acsm"), [2.0**-42, 0.0, 3.0, 0.0, np.nan])
    np.testing.assert_array_equal(rounded_to_zero(frame, "second_moment"), frame["second_moment"])


def test_means_that_batch_normalization_takes_out_are_zero() -> None:
    """By its definition: of its outputs, and of the gradients before it. Those of all other layers are not."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Sigmoid()) for _ in range(3)]
    net = nn.Sequential(*blocks, nn.Linear(64, 5))
    with SignalProbe(net) as probe:
        nn.functional.cross_entropy(net(torch.randn(128, 64)), torch.arange(128) % 5).backward()
        frame = probe.collect()
    values = rounded_to_zero(frame, "acsm")
    zero = {(row.layer, row.signal) for row in frame[values == 0].itertuples()}
    hidden = {("0.1", "activation"), ("1.1", "activation"), ("2.1", "activation")}
    hidden |= {("0.0", "gradient"), ("1.0", "gradient"), ("2.0", "gradient")}
    # A linear layer takes over that the gradients behind it have no mean.
    assert zero == hidden | {("0.2", "gradient"), ("1.2", "gradient")}
    assert (frame["acsm"][values != 0] == values[values != 0]).all()
