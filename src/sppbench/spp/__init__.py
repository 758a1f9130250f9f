"""How signals travel through a net while it trains: a probe for any ``nn.Module``, its history and its plots.

A library of its own. What it offers is imported when it is first used: the probe needs torch alone, the history pandas
and pyarrow, the plots matplotlib, and only the callback Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sppbench.spp.batchnorm import BatchNormProbe
    from sppbench.spp.callback import SPPCallback
    from sppbench.spp.heatmap import plot_heatmap
    from sppbench.spp.history import (
        HistoryError,
        HistoryWriter,
        batchnorm_epoch_mean,
        epoch_mean,
        read_batchnorm,
        read_history,
    )
    from sppbench.spp.meanfield import expected_of_chain
    from sppbench.spp.meanfield_net import expected_of_net
    from sppbench.spp.plots import plot_gradient, plot_spp
    from sppbench.spp.probe import SignalProbe
    from sppbench.spp.statistics import acsm_acv

_HOME = {
    "BatchNormProbe": "batchnorm",
    "HistoryError": "history",
    "HistoryWriter": "history",
    "SPPCallback": "callback",
    "SignalProbe": "probe",
    "acsm_acv": "statistics",
    "batchnorm_epoch_mean": "history",
    "epoch_mean": "history",
    "expected_of_chain": "meanfield",
    "expected_of_net": "meanfield_net",
    "plot_gradient": "plots",
    "plot_heatmap": "heatmap",
    "plot_spp": "plots",
    "read_batchnorm": "history",
    "read_history": "history",
}

__all__ = [
    "BatchNormProbe",
    "HistoryError",
    "HistoryWriter",
    "SPPCallback",
    "SignalProbe",
    "acsm_acv",
    "batchnorm_epoch_mean",
    "epoch_mean",
    "expected_of_chain",
    "expected_of_net",
    "plot_gradient",
    "plot_heatmap",
    "plot_spp",
    "read_batchnorm",
    "read_history",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
