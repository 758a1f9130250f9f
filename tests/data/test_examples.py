"""The examples in docstrings: they run, and every public name has one."""

import doctest
import importlib
import pkgutil

import pytest

import sppbench.data as room

MODULES = [name for _, name, _ in pkgutil.iter_modules(room.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"sppbench.data.{name}"))
    assert result.failed == 0


@pytest.mark.parametrize("name", room.__all__)
def test_public_names_have_an_example(name: str) -> None:
    assert ">>> " in (getattr(room, name).__doc__ or "")
