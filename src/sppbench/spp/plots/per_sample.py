"""Gradients of a mean loss as they are for each sample, whatever the size of the batch."""

from __future__ import annotations

import numpy as np
import pandas as pd

POWERS = {"acsm": 2, "acv": 2, "second_moment": 2, "mean": 1, "absmax": 1}  # of the batch size, that statistics grow by


def gradients_per_sample(frame: pd.DataFrame) -> pd.DataFrame:
    """The gradients of each sample's own loss, instead of those of the mean loss over the batch.

    The mean loss over b samples is the sum of ℓ_i / b. With respect to the activation x_i of a sample its gradient is
    1/b · dℓ_i/dx_i, so that a last batch of 64 among batches of 512 has gradients 8 times as large, and second moments
    64 times. Times b, or b² the second moments, they are those of ℓ_i alone, and batches of any size compare. This is
    exact where samples do not see each other; batch normalization over few samples has larger gradients by itself.

    Activations stay, and so do weights and their gradients, which are the mean over the samples already. Of a loss that
    is a sum over the batch, or a mean over the tokens of sequences of unlike lengths, this is not true.

    Args:
        frame: a history, with the columns signal and samples.

    Returns:
        a copy, in which acsm, acv and second_moment of gradients are multiplied by samples², their mean and absmax by
        samples.

    Raises:
        ValueError: no column samples, as in a frame that is averaged already.

    Example:
        >>> history = read_history("run/spp.parquet", signals="gradient")
        >>> figure = plot_heatmap(gradients_per_sample(history), "gradient")  # as with per_sample=True
    """
    if "samples" not in frame:
        raise ValueError("per_sample needs a history with the column samples; a mean over steps no longer has it")
    samples = frame["samples"].to_numpy(np.float64)
    scales = {
        name: np.where(frame["signal"] == "gradient", samples**power, 1.0)
        for name, power in POWERS.items()
        if name in frame
    }
    return frame.assign(**{name: frame[name] * scale for name, scale in scales.items()})
