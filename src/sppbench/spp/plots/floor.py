"""Which values of a history are nothing but rounding, and are drawn as zero."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

# Values of root mean square r whose mean is zero in exact arithmetic leave the mean of their rounding errors. What k
# operations in float32, whose numbers are ε = 2⁻²³ apart, give is off by up to k ε/2 of its size; so the mean is off by
# up to k ε/2 · r, and the ACSM, the mean square of such means, is up to (k ε/2)² mean(x²). The same holds of the ACV of
# values that should be equal. With k = 8, for some operations between where a mean cancels (in a normalization, or its
# backward pass) and here: (4 ε)² mean(x²) = 2.3e-13 mean(x²). Nets have shown up to a quarter of it.
ROUNDING: Final = (4 * 2.0**-23) ** 2


def rounding_floor(frame: pd.DataFrame) -> pd.Series:
    """Below which ACSM and ACV of a row are rounding: 2.3e-13 of its second moment.

    No signal is that small by chance: the mean of n independent values has 1/n of their second moment, and 10¹² values
    are in no tensor. It is one by an identity, as behind a batch normalization or, for its gradients, before one.

    Args:
        frame: a history or its `epoch_mean`, with the column second_moment.

    Returns:
        the floor of each row, in the unit of x²; shape (rows,). In bfloat16, which a history does not tell, it is
        65536² times as high.
    """
    return frame["second_moment"].astype(np.float64) * ROUNDING


def rounded_to_zero(frame: pd.DataFrame, column: str) -> pd.Series:
    """The values of a statistic, with zero where there is only rounding.

    Args:
        frame: a history or its `epoch_mean`, with the columns second_moment and `column`.
        column: "acsm", "acv" or another statistic in the unit of x².

    Returns:
        shape (rows,), with the index of `frame`. NaN stays NaN, and a second moment is never rounding.

    Example:
        >>> rounded_to_zero(pd.DataFrame({"acsm": [1e-22, 1e-12], "second_moment": [1e-7, 1e-7]}), "acsm").tolist()
        [0.0, 1e-12]
    """
    values = frame[column].astype(np.float64)
    return values.mask(values.abs() < rounding_floor(frame), 0.0)
