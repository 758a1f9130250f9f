"""What Hydra composes of the repository's configurations, kept.

It takes an eighth of a second each time, and does so three times in a command and once more in each of its runs: more
than the small runs of the tests do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from sppbench.files import config_directory

OURS = {str(config_directory()), "hydra.conf", ""}  # the last is that of configurations in code


@contextmanager
def kept_compositions() -> Iterator[None]:
    """Until its end whole configurations, what they are made of, and the files are composed and read once each."""
    with pytest.MonkeyPatch.context() as patch:
        _keep(patch, ConfigLoaderImpl, "_load_configuration_impl", _of_overrides, _here)
        _keep(patch, ConfigLoaderImpl, "_compose_config_from_defaults_list", _of_defaults)
        _keep(patch, ConfigRepository, "load_config", _at)
        yield


def _keep(
    patch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    key: Callable[..., str | None],
    change: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Lets a method make a value only once for each key, and always where there is none."""
    make, kept = getattr(owner, name), {}

    def once(*arguments: Any, **options: Any) -> Any:
        at = key(*arguments, **options)
        if at is None:
            return make(*arguments, **options)
        if at not in kept:
            kept[at] = make(*arguments, **options)
        return change(copy.deepcopy(kept[at]))

    patch.setattr(owner, name, once)


def _at(self: Any, config_path: Any) -> str | None:
    """A key, if nothing but the repository's files is read: those that a test writes may change."""
    paths = [source.path for source in self.get_sources()]
    return None if set(paths) - OURS else repr((paths, config_path))


def _of_defaults(self: Any, *, defaults: Sequence[Any], repo: Any) -> str | None:
    return _at(repo, defaults)


def _of_overrides(self: Any, *, overrides: Sequence[str], **options: Any) -> str | None:
    if any("searchpath" in override for override in overrides):
        return None
    return _at(self, (JobRuntime().get("name"), overrides, options))


def _here(config: DictConfig) -> DictConfig:
    config.hydra.runtime.cwd = str(Path.cwd())
    return config
