"""Histories of two nets."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.spp.plots.invented import make_efficientnet, make_ffnn


@pytest.fixture(scope="module")
def ffnn() -> pd.DataFrame:
    return make_ffnn([0, 9, 19], 6)


@pytest.fixture(scope="module")
def efficientnet() -> pd.DataFrame:
    return make_efficientnet([0, 9, 19], 3)
