"""Which values of a history are nothing but rounding, and are drawn as zero."""

from __future__ import annotations

import numpy as np
import pandas as pd

# Each value of a tensor in float32 is off by up to half of this, relative to itself. A sum to zero, by which several
# operations in a row take part, is off by a few of them: 2 eps were measured behind batch normalizations.
FLOAT32_EPS = float(np.finfo(np.float32).eps)
ROUNDINGS = 8


def rounding_floor(frame: pd.DataFrame) -> pd.Series:
    """Below which ACSM and ACV of a row are rounding: (8 eps)² = 9.1e-13 of its second moment, eps being float32's.

    No signal is that small by chance: the mean of n independent values has 1/n of their second moment, and 10¹² values
    are in no tensor. It is one by an identity, as behind a batch normalization or, for its gradients, before one.

    Args:
        frame: a history or its `epoch_mean`, with the column second_moment.

    Returns:
        the floor of each row, in the unit of x²; shape (rows,). That of the coarser bfloat16 is higher, which a history
        does not tell.
    """
    return frame["second_moment"].astype(np.float64) * (ROUNDINGS * FLOAT32_EPS) ** 2


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
