"""What the commands beside `sppbench.train` share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Answers a mistake on the command line with one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sppbench: {message} (--help tells more)\n")
