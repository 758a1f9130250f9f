"""All figures: the study's five, each with its match, and those of claim C2, which the study lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

from sppbench.evidence.runs import Run
from sppbench.evidence.selection import Evidence
from sppbench.study.figures.c2_scale_figures import draw_scale
from sppbench.study.figures.conventions import try_readings
from sppbench.study.figures.drawing import Drawing, draw_each
from sppbench.study.figures.drawn_runs import Net, find_net, follow_protocol, say_missing
from sppbench.study.figures.figures_1_to_5 import draw_study
from sppbench.study.figures.match import match_figure
from sppbench.study.figures.published_figures import PublishedFigure, PublishedFigures, read_published_figures


def draw_figures(evidence: Evidence) -> tuple[list[Drawing], list[str]]:
    """Draws every figure for which there are runs.

    Returns:
        The figures; and notes, one line each: which figures cannot be drawn, and why; which runs are damaged, lack
        files, depart from the protocol, are not finite or have other layers; and which are missing, with the command
        for them.

    Raises:
        UserError: The published numbers cannot be read.
    """
    published = read_published_figures()
    followed = follow_protocol(evidence, published)
    nets = {model: find_net(followed, model, published) for model in published.nets}
    notes = [*followed.problems, *evidence.lost]
    drawings = []
    for figure in published.figures:
        drawn, failed = _draw_figure(figure, nets, published)
        drawings += drawn
        notes += failed
    drawn, failed = draw_scale(followed)
    drawings += drawn
    notes += failed
    for net in nets.values():
        notes += net.notes
        notes += [missing] if (missing := say_missing(net, published.seeds_of(net.model))) else []
    return drawings, list(dict.fromkeys(notes))


def used_runs(evidence: Evidence) -> list[Run]:
    """The runs that `draw_figures` makes its figures of: all of its nets that follow the protocol and have signals."""
    published = read_published_figures()
    followed = follow_protocol(evidence, published)
    return [run for model in published.nets for run in followed.select(model, published.lr, signals=True)]


def _draw_figure(
    figure: PublishedFigure, nets: Mapping[str, Net], published: PublishedFigures
) -> tuple[list[Drawing], list[str]]:
    """A published figure from each of its nets, in both conventions."""
    readings = cache(lambda: try_readings(figure, nets, published))

    def by_the_study(name: str, label: str, net: Net) -> Drawing:
        of_seeds = {run.seed: net.values(run, "all", "study", published.epochs) for run in net.runs}
        matches = match_figure(figure, of_seeds)
        return draw_study(name, figure, label, net.runs[0], "study", published, matches, readings())

    def by_definition(name: str, label: str, net: Net) -> Drawing:
        return draw_study(name, figure, label, net.runs[0], "definition", published)

    wanted: dict[str, Callable[[], Drawing]] = {}
    notes = []
    for name, (model, label) in figure.drawn.items():
        net = nets[model]
        if not net.runs:
            notes.append(f"{name} cannot be drawn: there is no usable run of {model} at learning rate {published.lr:g}")
            continue
        definition = f"{name}_definition"
        wanted[name] = partial(by_the_study, name, label, net)
        wanted[definition] = partial(by_definition, definition, label, net)
    drawings, failed = draw_each(wanted)
    return drawings, [*notes, *failed]
