"""How signals travel through a net while it trains: a probe for any ``nn.Module``, its history and its plots.

A library of its own. What it offers is imported when it is first used: the probe needs torch alone, the history pandas
and pyarrow, the plots matplotlib, and only the callback Lightning.
"""

from importlib.util import find_spec

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
if find_spec("lightning") is None:  # for ``from sppbench.spp import *``
    __all__.remove("SPPCallback")
