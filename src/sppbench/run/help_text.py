"""What ``python -m sppbench.train --help`` says: each group, option and value with the comment that its file has."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sppbench.files import config_directory

RESOLVER = "sppbench_help"
WIDTH = 110  # columns of a terminal
_LINE = re.compile(r"^(?P<indent> *)(?:- )?(?P<key>[\w/]+):(?P<value>.*?)(?: +# (?P<comment>.*))?$")


def register() -> None:
    """Makes ``${sppbench_help:}`` known, which stands for the whole help where Hydra composes it."""
    OmegaConf.register_new_resolver(RESOLVER, _help, replace=True)


def _help(*, _root_: DictConfig) -> str:
    choices: Any = OmegaConf.to_container(_root_.hydra.runtime.choices)
    config: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"]))
    lines = ["== Groups (group=option) ==", "", *groups(config_directory())]
    lines += ["", "== Values (key=value), with the groups as chosen ==", ""]
    lines += values(config, choices, config_directory())
    return "\n".join(lines).replace("$", "$$")  # Hydra takes it for a template


def groups(folder: Path) -> Iterator[str]:
    """Each group with what it means, and below it a line for each of its options.

    Args:
        folder: Of train.yaml, which names the groups in its defaults.
    """
    meanings = comments((folder / "train.yaml").read_text(encoding="utf-8"))
    for group in (key for key in meanings if key != "hydra" and (folder / key).is_dir()):
        yield f"{group}: {meanings[group]}"
        options = sorted((folder / group).glob("*.yaml"))
        width = max(len(path.stem) for path in options)
        for path in options:
            about = first_sentence(path.read_text(encoding="utf-8"))
            yield from textwrap.wrap(
                f"{path.stem:<{width}}  {about}", WIDTH, initial_indent="  ", subsequent_indent=" " * (width + 4)
            )


def values(config: Mapping[str, Any], choices: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """A line for each value of a configuration: ``group.key: value  # what it means``.

    Args:
        config: With interpolations, which are shown as they are.
        choices: Group → option that it was composed of; without groups of several options.
        folder: Of the files that they are in.
    """
    meanings = comments((folder / "train.yaml").read_text(encoding="utf-8"))
    for group in (key for key in config if (folder / key).is_dir()):
        # Of several, as loggers are, each has its part of the configuration by its name.
        for option in [choices[group]] if group in choices else config[group]:
            of_file = _inherited(folder / group / f"{option}.yaml")
            meanings |= {f"{group}.{key}": text for key, text in of_file.items()}
    for key, value in _flat(config):
        shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
        line = f"{key}: {shown.removesuffix(chr(10)).removesuffix(f'{chr(10)}...')}"
        about = meanings.get(key)
        yield f"{line:<44}  # {about}" if about else line


def _inherited(path: Path) -> dict[str, str]:
    """The comments of a file and of those that its defaults name, of the same folder."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    defaults = (yaml.safe_load(text) or {}).get("defaults", [])
    for other in defaults:
        if isinstance(other, str) and other != "_self_":
            found |= _inherited(path.with_name(f"{other}.yaml"))
    return found | {key: comment for key, comment in comments(text).items() if comment or key not in found}


def comments(text: str) -> dict[str, str]:
    """Key, with dots → the comment behind it in a YAML file; empty where there is none.

    Example:
        >>> comments("a: 1 # one\\nb:\\n  c: x # deep\\n")
        {'a': 'one', 'b': '', 'b.c': 'deep'}
    """
    found: dict[str, str] = {}
    around: list[tuple[int, str]] = []
    for line in text.splitlines():
        if (match := _LINE.match(line)) is None or line.lstrip().startswith("- override"):
            continue
        indent = len(match["indent"])
        around = [(depth, key) for depth, key in around if depth < indent]
        in_list = line.lstrip().startswith("- ")  # of the defaults
        key = match["key"] if in_list else ".".join([*(key for _, key in around), match["key"]])
        found[key] = match["comment"] or found.get(key, "")
        if not match["value"].strip() and not in_list:
            around.append((indent, match["key"]))
    return found


def first_sentence(text: str) -> str:
    """The first sentence of the comment that a file begins with, without a directive such as ``@package``."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.removeprefix("#").strip())
    return re.split(r"(?<=[.]) |; ", " ".join(lines), maxsplit=1)[0].removesuffix(".") + "."


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}", value
