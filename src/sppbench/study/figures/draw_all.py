"""All figures: the study's five, each with its match, and the ones that it lacks."""

from __future__ import annotations

from collections.abc import Mapping

from sppbench.evidence.runs import Evidence, EvidenceError, Run
from sppbench.study.figures.conventions import try_readings
from sppbench.study.figures.drawing import Drawing
from sppbench.study.figures.drawn_runs import Net, find_net, follow_protocol, say_missing
from sppbench.study.figures.figures_1_to_5 import draw_study
from sppbench.study.figures.match import match_figure
from sppbench.study.figures.published_figures import PublishedFigure, PublishedFigures, read_published_figures


def draw_figures(evidence: Evidence) -> tuple[list[Drawing], list[str]]:
    """Draws what there are runs for.

    Returns:
        The figures, and what must be said of the runs, a line each: which are damaged, depart from the protocol, are
        not finite or have other layers, and which are missing, with the command for them.

    Raises:
        UserError: The published numbers cannot be read.
    """
    from sppbench.study.figures.c2_scale_figures import draw_scale

    published = read_published_figures()
    followed = follow_protocol(evidence, published)
    nets = {model: find_net(followed, model, published) for model in published.nets}
    notes = list(followed.problems)
    drawings = []
    for figure in published.figures:
        made, said = _draw_figure(figure, nets, published)
        drawings += made
        notes += said
    for net in nets.values():
        notes += net.notes
        notes += [missing] if (missing := say_missing(net, published.seeds_of(net.model))) else []
    return [*drawings, *draw_scale(followed)], list(dict.fromkeys(notes))


def used_runs(evidence: Evidence) -> list[Run]:
    """The runs that `draw_figures` makes its figures of: all of its nets that follow the protocol and have signals."""
    published = read_published_figures()
    followed = follow_protocol(evidence, published)
    return [run for model in published.nets for run in followed.select(model, published.lr, signals=True)]


def _draw_figure(
    figure: PublishedFigure, nets: Mapping[str, Net], published: PublishedFigures
) -> tuple[list[Drawing], list[str]]:
    drawings: list[Drawing] = []
    notes = []
    readings = try_readings(figure, nets, published)
    for name, (model, label) in figure.drawn.items():
        net = nets[model]
        if not net.runs:
            notes.append(f"{name} cannot be drawn: there is no usable run of {model} at learning rate {published.lr:g}")
            continue
        try:
            of_seeds = {run.seed: net.values(run, "all", "study", published.epochs) for run in net.runs}
            matches = match_figure(figure, of_seeds)
            run = net.runs[0]
            drawings.append(draw_study(name, figure, label, run, "study", published, matches, readings))
            drawings.append(draw_study(f"{name}_definition", figure, label, run, "definition", published))
        except (EvidenceError, ValueError) as error:
            notes.append(f"{name} cannot be drawn: {error}")
    return drawings, notes
