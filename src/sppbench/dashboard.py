"""The saved W&B view of the project: ``sppbench dashboard``.

Sections: Training, Signals, BN gain and Table. Runs are grouped by cell, so that a line is the mean over the seeds of a
net at a learning rate, and its band goes from the lowest to the highest of them. Each call saves a view of its own. A
view shows what runs, ``sppbench table --wandb`` and ``sppbench report --wandb`` have logged to W&B; what was logged
offline must be sent there by ``wandb sync`` first. Needs the extra ``dashboard``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from sppbench.errors import UserError
from sppbench.spp.names import OF_BATCH

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot, MediaBrowser
    from wandb_workspaces.workspaces import Section, Workspace

# Configuration keys. As in a run's directory, a cell is in a sweep: the nets of `smoke` have the names of `table1`'s.
CELL: Final = ("sweeps.name", "name", "sweeps.cell", "optimizer.lr")
MAX_GROUPS: Final = 100  # that a panel shows; W&B's own limit is 10, and Table 1 has 12 cells
COLUMNS: Final = 3  # of panels

STUDY_FIGURES: Final = (
    *(f"report/figure{number}_h{width}" for number in (1, 2) for width in (100, 512)),
    *(f"report/figure{number}" for number in (3, 4, 5)),
)


def make_workspace(entity: str, project: str, name: str) -> Workspace:
    """The view called ``name``, not yet saved.

    Raises:
        ValueError: W&B does not take this name.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[_training(), _signals(), _batchnorm(), _table()],
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step", max_runs=MAX_GROUPS),
        runset_settings=ws.RunsetSettings(groupby=[Config(key) for key in CELL]),
    )


def specification(workspace: Workspace) -> dict[str, Any]:
    """What is sent to W&B when the view is saved, as JSON's types."""
    view = workspace._to_model()  # the library has no public way to see it
    fields = {"entity", "project", "display_name", "spec"}
    content: dict[str, Any] = view.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    return content


def _training() -> Section:
    """What ``sppbench.run.classifier`` logs."""
    loss, accuracy = "cross entropy (nats)", "accuracy (%)"
    return _section(
        "Training",
        _curve("Training loss", "train/loss", unit=loss),
        _curve("Validation loss", "val/loss", unit=loss),
        _curve("Training loss of single batches", "train/loss_step", unit=loss, x="trainer/global_step"),
        _curve("Training accuracy", "train/accuracy", unit=accuracy),
        _curve("Validation accuracy", "val/accuracy", unit=accuracy),
        _bars("Test accuracy", "test/accuracy", unit=accuracy),
    )


def _signals() -> Section:
    """What ``sppbench.spp.SPPCallback`` logs: scalars of the epoch's means, and figures."""
    curves = [_curve("Gain from layer to layer", "spp/activation_gain", "spp/gradient_gain", log=True)]
    for signal in OF_BATCH:
        ends = (f"spp/{signal}_max", f"spp/{signal}_min")
        curves += [
            _curve(f"Largest and smallest {signal}", *ends, unit="second moment", log=True),
            _curve(f"Depth of the largest and smallest {signal}", *(f"{end}_depth" for end in ends), unit="layer"),
        ]
    return _section(
        "Signals",
        *curves,
        _curve("Layers with a dead or non-finite signal", "spp/dead_layers", "spp/nonfinite_layers", unit="layers"),
        _images("Signal propagation", "spp/panels"),
        _images("Gradients", "spp/gradients"),
        _images("Activations, every step", "spp/heatmap_activation"),
        _images("Gradients, every step", "spp/heatmap_gradient"),
    )


def _batchnorm() -> Section:
    """The backward gain of batch normalizations and its factors (``sppbench.spp.sums.batchnorm_sums``), and the
    report's figures of claim C2."""
    ends = ("batchnorm/gain_max", "batchnorm/gain_min")
    return _section(
        "BN gain",
        _curve("Backward gain", "batchnorm/gain", log=True),
        _curve("Largest and smallest gain", *ends, log=True),
        _curve("Depth of the largest and smallest gain", *(f"{end}_depth" for end in ends), unit="layer"),
        _curve("Factor γ²", "batchnorm/gamma_squared", log=True),
        _curve("Factor 1/(v + ε)", "batchnorm/inverse_variance", log=True),
        _curve("Factor of the projection", "batchnorm/projection", log=True),
        _images("Which factor moved the gain", "report/gain_changes", "report/gain_factors"),
        _images("A learned scale and the gradients", "report/scale_effect", "report/scale_interventions"),
    )


def _table() -> Section:
    """What ``sppbench table --wandb`` and the report log, each in a run of its own: results over all runs."""
    from wandb_workspaces.reports.v2.interface import WeavePanelSummaryTable

    return _section(
        "Table",
        WeavePanelSummaryTable(table_name="table"),
        _images("Accuracy by learning rate", "accuracy_over_lr"),
        _images("Validation accuracy", "curves"),
        WeavePanelSummaryTable(table_name="report/claims"),
        _images("Figures 1 to 5 of the study", *STUDY_FIGURES),
    )


def _section(name: str, *panels: Any) -> Section:
    import wandb_workspaces.workspaces as ws

    rows = -(-len(panels) // COLUMNS)  # all of them on one page
    layout = ws.SectionLayoutSettings(columns=COLUMNS, rows=rows)
    return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=layout)


def _curve(title: str, *keys: str, unit: str = "", x: str = "epoch", log: bool = False) -> LinePlot:
    from wandb_workspaces.reports.v2.interface import LinePlot

    over_seeds: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    label = "step" if x == "trainer/global_step" else x
    return LinePlot(title=title, x=x, y=list(keys), log_y=log, title_x=label, title_y=unit or None, **over_seeds)


def _bars(title: str, key: str, unit: str) -> BarPlot:
    from wandb_workspaces.reports.v2.interface import BarPlot

    bars: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "max_bars_to_show": MAX_GROUPS}
    return BarPlot(title=title, metrics=[key], title_x=unit, **bars)


def _images(title: str, *keys: str) -> MediaBrowser:
    from wandb_workspaces.reports.v2.interface import MediaBrowser

    return MediaBrowser(title=title, media_keys=list(keys))


class DashboardError(UserError):
    """The view cannot be made or saved."""


def dashboard(entity: str, project: str, name: str, dry_run: bool = False) -> str:
    """Saves the view and returns its URL, or returns its specification as JSON.

    Args:
        entity: User or team of W&B; empty is the account's own.
        project: Of W&B.
        name: Of the view.
        dry_run: Only return the specification: no network, no login.

    Raises:
        DashboardError: W&B does not take the view.
    """
    try:
        workspace = make_workspace(entity, project, name)
    except ValueError as error:
        raise DashboardError(f"W&B does not accept the name {name!r}: no emoji") from error
    if dry_run:
        return json.dumps(specification(workspace), indent=2)
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise DashboardError(f"a view can only be saved online, but WANDB_MODE is {mode!r}; --dry-run prints it")
    try:
        return _save(workspace)
    except Exception as error:  # W&B lets through errors of its own process and of the transport, of no common kind
        line = (str(error).splitlines() or [type(error).__name__])[0]
        place = f"{workspace.entity or 'W&B'}/{workspace.project}"
        raise DashboardError(f"the view was not saved in {place}: {line}") from error


def _save(workspace: Workspace) -> str:
    """Returns the URL."""
    import wandb

    api = wandb.Api()  # asks for the key where there is a terminal
    workspace.entity = workspace.entity or api.settings["entity"] or api.default_entity or ""
    if not workspace.entity:
        raise ValueError("this account has no default entity: name one with --entity")
    url: str = workspace.save().url  # type: ignore[no-untyped-call]
    return url
