"""An exception in one line: the message that names the cause, and the place in the user's own code."""

from __future__ import annotations

import errno
import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path

from sppbench.errors import UserError

TRACEBACK_HINT = "HYDRA_FULL_ERROR=1 shows the traceback"
_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


def one_line(error: BaseException) -> str:
    """The message of an exception without what Hydra puts around it.

    For an error in code that is neither of this package nor of an installed library, such as a user's own net, the
    whole message, with the type of the error and the last line of that code in the traceback; for others the first
    line.

    Example:
        >>> one_line(ValueError("lr must be positive\\nsee the documentation"))
        'lr must be positive'
    """
    error = _cause(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if (place := users_place(error)) is None:
        return lines[0] if lines else type(error).__name__
    return f"{' '.join(lines)} ({type(error).__name__} in {place})".lstrip()


def explained(error: BaseException) -> str:
    """As `one_line`; for an error in the user's own code also how to see its traceback, which is not stored yet."""
    return one_line(error) + (f"; {TRACEBACK_HINT}" if users_place(_cause(error)) else "")


def users_place(error: BaseException) -> str | None:
    """``<file>:<line>`` of the last frame of an exception that is in the user's own code.

    None if there is none, or the message says all: it is meant for the user, or about a value of the configuration.
    """
    if isinstance(error, UserError) or type(error).__module__ == "omegaconf.errors":
        return None
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return next((f"{frame.filename}:{frame.lineno}" for frame in reversed(frames) if _is_users(frame.filename)), None)


def is_full_disk(error: BaseException) -> bool:
    """Whether an exception says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def _cause(error: BaseException) -> BaseException:
    """The exception that Hydra has wrapped in its own."""
    while error.__cause__ is not None and _raised_by_hydra(error):
        error = error.__cause__
    return error


def _raised_by_hydra(error: BaseException) -> bool:
    hydra = sys.modules.get("hydra")  # it may not even be installed
    if hydra is None or not (frames := traceback.extract_tb(error.__traceback__)):
        return False
    return Path(frames[-1].filename).is_relative_to(Path(str(hydra.__file__)).parent)


def _is_users(filename: str) -> bool:
    path = Path(filename)
    return path.is_absolute() and not any(path.is_relative_to(folder) for folder in _libraries())


@cache
def _libraries() -> tuple[Path, ...]:
    """Where Python, installed packages and this one are."""
    import hydra_plugins

    ours = [Path(__file__).parents[1], *map(Path, hydra_plugins.__path__)]
    installed = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return *ours, *(Path(path) for path in installed)
