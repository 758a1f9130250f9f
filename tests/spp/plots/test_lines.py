"""Curves can be told apart, also by a deuteranope."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from sppbench.spp.plots.heatmap import NOT_FINITE_COLOR, ZERO_COLOR
from sppbench.spp.plots.lines import COLORS, EXPECTED_COLOR, Style

# Deuteranopia as in Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)

XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB colours, shape (n, 3), as seen by `vision`; a distance of 2.3 can just be seen."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ vision.T, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPIA], ids=["normal", "deuteranopia"])
def test_colors_can_be_told_apart(vision: np.ndarray) -> None:
    seen = lab(np.array([to_rgb(color) for color in (*COLORS, EXPECTED_COLOR, "white")]), vision)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 1000 * np.eye(len(seen))
    assert distances.min() > 15
    first = distances[:3, :3]
    assert first.min() > 50
    scale = lab(matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3], vision)
    for color in (NOT_FINITE_COLOR, ZERO_COLOR, "white"):
        cell = lab(np.array([to_rgb(color)]), vision)
        assert np.linalg.norm(scale - cell, axis=1).min() > 30


@pytest.mark.parametrize("dense", [True, False])
def test_thirty_curves_differ(dense: bool) -> None:
    styles = [Style(index, 30, dense).arguments() for index in range(30)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 30
    widths = [style["linewidth"] for style in styles]
    assert widths == sorted(widths, reverse=True)
