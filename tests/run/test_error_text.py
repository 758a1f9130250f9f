from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sppbench.errors import UserError
from sppbench.run.error_text import TRACEBACK_HINT, explained, is_full_disk, one_line

NETS = {
    "broken_import": (
        "import not_installed_anywhere",
        "No module named 'not_installed_anywhere' (ModuleNotFoundError in {file}:1)",
    ),
    "broken_syntax": ("x = (", "'(' was never closed (<file>, line 1) (SyntaxError in {file}:1)"),
    "broken_init": (
        "class Net:\n    def __init__(self):\n        raise ValueError('first line\\n  second line')",
        "first line second line (ValueError in {file}:3)",
    ),
    "broken_inside": (
        "import math\nclass Net:\n    def __init__(self):\n        self.half()\n"
        "    def half(self):\n        math.sqrt('x')",
        "must be real number, not str (TypeError in {file}:6)",
    ),
    "broken_library": (
        "import json\nclass Net:\n    def __init__(self):\n        json.loads('{')",
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (JSONDecodeError in {file}:4)",
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_an_error_in_a_user_s_net_has_its_message_and_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = NETS[name]
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        instantiate_here(f"{name}.Net")
    expected = text.format(file=tmp_path / f"{name}.py").replace("<file>", f"{name}.py")
    assert one_line(caught.value) == expected
    assert explained(caught.value) == f"{expected}; {TRACEBACK_HINT}"


def instantiate_here(target: str) -> Any:
    return _caught(lambda: instantiate({"_target_": target}))


def _caught(act: Any) -> Any:
    """Raises what ``act`` raises, without this file, which is a user's as well, in the traceback."""
    try:
        return act()
    except Exception as error:
        raise error.with_traceback(error.__traceback__.tb_next.tb_next) from error.__cause__  # type: ignore[union-attr]


def test_other_errors_are_their_first_line() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        instantiate_here("torch.nn.Linear")
    assert "missing 2 required positional arguments" in one_line(caught.value)
    assert " in /" not in explained(caught.value)
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_what_is_meant_for_the_user_stays_as_it_is() -> None:
    def refuse() -> None:
        raise UserError("choose another\nand so on")

    with pytest.raises(UserError) as caught:
        refuse()
    assert one_line(caught.value) == explained(caught.value) == "choose another"
    with pytest.raises(Exception) as missing:  # noqa: PT011
        OmegaConf.to_container(OmegaConf.create({"a": "???"}), throw_on_missing=True)
    assert one_line(missing.value) == "Missing mandatory value: a"


def test_a_full_disk_is_known() -> None:
    assert is_full_disk(OSError(errno.ENOSPC, "no space"))
    assert not is_full_disk(OSError(errno.EACCES, "no permission"))
    assert not is_full_disk(ValueError())
