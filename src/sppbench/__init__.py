"""See how signals travel through a neural net while it trains."""

__version__ = "0.1.0"

from sppbench import aliases

aliases.install()
