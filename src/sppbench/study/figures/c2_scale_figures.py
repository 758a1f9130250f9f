"""What the learned scale of batch normalization does to gradients (claim C2), at equal width, which the study lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import pandas as pd
from matplotlib.axes import Axes

from sppbench.evidence.profiles import Profiles, log_profiles, paired_ratio
from sppbench.evidence.selection import Evidence
from sppbench.spp.plots.axes import MARK_COLOR
from sppbench.study.figures.bands import (
    BAND_WORDS,
    curve_over_seeds,
    layer_depths,
    pooled_ratio,
    say_problems,
    say_runs,
)
from sppbench.study.figures.c2_gain_figures import draw_gains
from sppbench.study.figures.depth_axis import depth_ticks
from sppbench.study.figures.drawing import COLUMNS, Drawing, Look, Panel, draw_each, draw_panels

LR = 0.001
EPOCHS = (0, 9, 19)
WIDTHS = {100: "_h100", 512: ""}  # of the nets' names
OFF, ON, SCALE, SHIFT = "ffnn_bn_noaffine", "ffnn_bn", "ffnn_bn_scale", "ffnn_bn_shift"
NETS = {
    f"{net}{suffix}": f"h = {width}, affine {state}"
    for width, suffix in WIDTHS.items()
    for net, state in ((OFF, "off"), (ON, "on"))
}
THRESHOLD = 0.5  # C2: on/off is at most this
DEPTH = "model depth (layers)"
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
NO_CHANGE, HALF = "ratio 1", "ratio ½, the threshold of C2"

# Width has a color, affine a line style; of the palette of Okabe & Ito.
ORANGE, BLUE, GREEN, PURPLE = "#E69F00", "#0072B2", "#009E73", "#CC79A7"
DASHED = (0.0, (4.0, 1.5))
WIDTH_COLORS = {100: ORANGE, 512: BLUE}
REFERENCES = {NO_CHANGE: Look(MARK_COLOR, width=0.8), HALF: Look(MARK_COLOR, (0, (1, 1.5)), width=1.0)}
STATISTIC = (
    "second moment mean(g²) of the gradient with respect to each layer's output (the study's convention for tensors of "
    "two dimensions), mean over all steps of the epoch, the partial batch included"
)

# From an epoch to the profiles of a curve; and the name of the curve beside it.
Source = Callable[[Sequence[int]], Profiles]
Row = dict[str, tuple[Source, str]]


def draw_scale(evidence: Evidence) -> tuple[list[Drawing], list[str]]:
    """The figures of claim C2 for which there are runs, and a note for each that cannot be drawn.

    `scale_effect`, width × affine; `scale_interventions`, only the scale or only the shift learned; `gain_factors`,
    `gain_factors_all` and `gain_changes`, what the backward gain of each batch normalization is made of.

    Args:
        evidence: Runs that follow the study's protocol.
    """
    depths = cache(lambda: layer_depths(evidence, [*NETS, *_interventions()], LR))
    drawings, notes = draw_each(
        {
            "scale_effect": lambda: _effect(evidence, depths()),
            "scale_interventions": lambda: _intervention(evidence, depths()),
        }
    )
    of_gains, notes_on_gains = draw_gains(evidence, NETS, LR)
    return [*drawings, *of_gains], [*notes, *notes_on_gains]


def _interventions() -> list[str]:
    return [f"{net}{suffix}" for suffix in WIDTHS.values() for net in (SCALE, SHIFT)]


def _seeds(evidence: Evidence, models: Iterable[str]) -> dict[str, list[int]]:
    return {model: [run.seed for run in evidence.select(model, LR, signals=True)] for model in models}


def _ratio(evidence: Evidence, above: str, below: str, layers: str = "*") -> Source:
    return lambda epochs: paired_ratio(evidence, above, below, epochs, layers, LR)


def _effect(evidence: Evidence, depths: dict[str, int]) -> Drawing | None:
    """Gradient profiles above; the ratios on/off and h = 100 / h = 512 below."""
    profiles: Row = {
        name: (partial(log_profiles, evidence, model, lr=LR), "log_moment") for model, name in NETS.items()
    }
    effect: Row = {
        f"on / off at h = {width}": (_ratio(evidence, f"{ON}{suffix}", f"{OFF}{suffix}"), "log_ratio")
        for width, suffix in WIDTHS.items()
    }
    widths: Row = {
        "affine off": (_ratio(evidence, f"{OFF}_h100", OFF), "log_ratio"),
        "affine on": (_ratio(evidence, f"{ON}_h100", ON), "log_ratio"),
        "off, h = 100 / on, h = 512: what the study compared": (_ratio(evidence, f"{OFF}_h100", ON), "log_ratio"),
    }
    looks = {
        f"h = {width}, affine {state}": look
        for width, color in WIDTH_COLORS.items()
        for state, look in (("off", _below(color)), ("on", Look(color, DASHED, marker="o")))
    }
    looks |= {f"on / off at h = {width}": Look(color, marker="o") for width, color in WIDTH_COLORS.items()}
    looks_of_widths = _below(GREEN), Look(GREEN, DASHED, marker="o"), Look(PURPLE, marker="o")
    looks |= dict(zip(widths, looks_of_widths, strict=True)) | REFERENCES
    rows = [
        ("gradient", "second moment mean(g²)", profiles, ()),
        ("on / off", "ratio affine on / off", effect, (NO_CHANGE, HALF)),
        ("h = 100 / h = 512", "ratio h = 100 / h = 512", widths, (NO_CHANGE,)),
    ]
    panels, curves, problems = _collect(rows, EPOCHS, depths)
    if not panels:
        return None
    ratios = [
        f"h = {width}: {pooled_ratio(_ratio(evidence, f'{ON}{suffix}', f'{OFF}{suffix}', '*.activation')(EPOCHS))}"
        for width, suffix in WIDTHS.items()
    ]
    caption = (
        f"Feed-forward nets of width h with batch normalization, its scale and shift learned (on) or absent (off) in "
        f"the eight hidden blocks; the first block has both. Top: {STATISTIC}. Dots mark the ReLU outputs, whose "
        f"peaks the study reads. Below: ratios layer by layer, formed for each seed (on and off start from the "
        f"same weights and see the same batches; nets of different width only see the same batches). {BAND_WORDS}. "
        f"on/off over all ReLU outputs and epochs {', '.join(map(str, EPOCHS))}: {'; '.join(ratios)}. "
        f"{say_runs(_seeds(evidence, NETS), LR)}{say_problems(problems)}"
    )
    return _drawing(
        "scale_effect", "The effect of a learned scale and shift at equal width", caption, panels, curves, looks
    )


def _below(color: str) -> Look:
    """For a curve that another one may cover: it shows on both sides of the other one."""
    return Look(color, width=3.0, alpha=0.4, marker="o")


def _intervention(evidence: Evidence, depths: dict[str, int]) -> Drawing | None:
    """Both learned, γ alone, and β alone, each over none."""
    looks = {
        f"{GAMMA} and β learned / none": Look(MARK_COLOR, marker="o"),
        f"{GAMMA} alone / none": Look(ORANGE, DASHED, marker="o"),
        "β alone / none": Look(BLUE, (0, (6, 1, 1, 1)), marker="o"),
    }
    rows = [
        (
            f"h = {width}",
            f"ratio to affine off, h = {width}",
            {
                name: (_ratio(evidence, f"{net}{suffix}", f"{OFF}{suffix}"), "log_ratio")
                for name, net in zip(looks, (ON, SCALE, SHIFT), strict=True)
            },
            (NO_CHANGE, HALF),
        )
        for width, suffix in WIDTHS.items()
        if any(evidence.select(f"{net}{suffix}", LR, signals=True) for net in (SCALE, SHIFT))
    ]
    panels, curves, problems = _collect(rows, EPOCHS[1:], depths)
    if not panels:
        return None
    nets = [f"{net}{suffix}" for suffix in WIDTHS.values() for net in (OFF, ON, SCALE, SHIFT)]
    caption = (
        f"Which of scale {GAMMA} and shift β changes the gradients: ratio to the net that learns neither in its hidden "
        f"blocks, layer by layer and formed for each seed. Of each net: {STATISTIC}. Dots mark the ReLU outputs. "
        f"{BAND_WORDS}. {say_runs(_seeds(evidence, nets), LR)}{say_problems(problems)}"
    )
    title = "Interventions: only the scale or only the shift is learned"
    return _drawing("scale_interventions", title, caption, panels, curves, looks | REFERENCES)


def _collect(
    rows: Sequence[tuple[str, str, Row, Sequence[str]]], epochs: Sequence[int], depths: dict[str, int]
) -> tuple[list[Panel], pd.DataFrame, list[str]]:
    """Panels, curves and problems, from rows of (name, label of y, curves, reference lines); a column per epoch."""
    panels: list[Panel] = []
    frames: list[pd.DataFrame] = []
    problems: list[str] = []
    columns: list[int] = []
    for name, y_label, row, references in rows:
        of_row: list[tuple[int, str, list[pd.DataFrame]]] = []
        for epoch in epochs:
            panel = f"{name}, epoch {epoch}"
            drawn = []
            for curve, (source, column) in row.items():
                found = source([epoch])
                problems += found.problems
                drawn.append(curve_over_seeds(found, column, panel, curve, depths))
            if any(len(frame) for frame in drawn):
                of_row.append((epoch, panel, [*drawn, *(_reference(line, panel, depths) for line in references)]))
        number = 1 + max((panel.row for panel in panels), default=-1)
        for epoch, panel, drawn in of_row:
            if epoch not in columns:
                columns.append(epoch)
            panels.append(Panel(panel, number, columns.index(epoch), DEPTH, y_label, "log"))
            frames += [frame for frame in drawn if len(frame)]
    curves = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    return panels, curves, problems


def _reference(name: str, panel: str, depths: dict[str, int]) -> pd.DataFrame:
    """A horizontal line over all layers."""
    layers = sorted(depths, key=lambda layer: depths[layer])
    value = {NO_CHANGE: 1.0, HALF: THRESHOLD}[name]
    rows = {"panel": panel, "curve": name, "x": [depths[layer] for layer in layers], "name": layers}
    return pd.DataFrame({**rows, "value": value, "low": float("nan"), "high": float("nan")})


def _drawing(
    name: str, title: str, caption: str, panels: list[Panel], curves: pd.DataFrame, looks: dict[str, Look]
) -> Drawing:
    layers = curves.drop_duplicates("x").sort_values("x")
    names = {int(x): str(layer) for x, layer in zip(layers["x"], layers["name"], strict=True)}
    places = [names.get(depth, "") for depth in range(max(names) + 1)]

    def finish(ax: Axes) -> None:
        depth_ticks(ax, places, places, 0.0, block_labels=False)
        ax.tick_params("x", labelsize=6.5, length=2.5)

    figure = draw_panels(panels, curves, looks, title, 1.95, finish, by_row=name == "scale_effect")
    return Drawing(name, title, caption, tuple(panels), curves, looks, figure)
