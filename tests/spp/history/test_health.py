"""The numbers that say whether signals pass. The warnings are tested where they arise, in the callback's tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sppbench.spp.history.health import summarize_batchnorm


def test_scalars_of_batch_normalizations() -> None:
    means = pd.DataFrame(
        {
            "epoch": 3,
            "depth": [0, 1, 2],
            "layer": ["a", "b", "c"],
            "gain": [1.0, 4.0, np.nan],
            "gamma_squared": [2.0, 2.0, 1.0],
            "inverse_variance": [1.0, 9.0, 1.0],
            "projection": [0.5, 2 / 9, 1.0],
        }
    )
    found = summarize_batchnorm(means)
    assert found["gain"] == pytest.approx(2.0)
    assert found["inverse_variance"] == pytest.approx(3.0)
    assert found["gain"] == pytest.approx(found["gamma_squared"] * found["inverse_variance"] * found["projection"])
    ends = [found[f"gain_{name}"] for name in ("min", "min_depth", "max", "max_depth")]
    assert ends == [1.0, 0.0, 4.0, 1.0]
    assert summarize_batchnorm(means[2:]) == {}
