"""``python -m sppbench.train --help``: every group, option and value has its meaning in a line."""

from __future__ import annotations

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sppbench.files import config_directory
from sppbench.run.help_text import comments, first_sentence, groups, values

FOLDER = config_directory()


def test_every_group_and_option_says_what_it_is() -> None:
    lines = list(groups(FOLDER))
    for group in (path for path in FOLDER.iterdir() if path.is_dir() and path.name not in ("published", "hydra")):
        assert any(re.match(rf"{group.name}: \w", line) for line in lines), group.name
        for option in group.glob("*.yaml"):
            assert any(re.match(rf"  {option.stem} +\S", line) for line in lines), option
    assert max(map(len, lines)) <= 110


def test_every_value_says_what_it_is_also_those_that_are_inherited() -> None:
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["model=sn_efficientnet_mp", "logger=[csv,wandb]"]))
    assert isinstance(config, dict)
    choices = {"model": "sn_efficientnet_mp", "data": "cifar100", "optimizer": "adam", "trainer": "default"}
    lines = list(values(config, {**choices, "spp": "every_step", "sweeps": None}, FOLDER))
    assert "model.dropout: 0.2                            # dropout probability before the classifier" in lines
    assert any(re.match(r"model\.activation: SELU +# a class of torch\.nn", line) for line in lines)
    assert any(re.match(r"logger\.wandb\.project: sppbench +# project in W&B", line) for line in lines)
    silent = {line.partition(":")[0] for line in lines if "  # " not in line}
    assert not silent


def test_comments_are_found_where_they_are() -> None:
    text = "# head\na: 1 # one\nb: # of b\n  c: 'x: y' # deep\n  d: [1, 2]\ndefaults:\n  - model: x # the net\ne: {}\n"
    assert comments(text) == {
        "a": "one",
        "b": "of b",
        "b.c": "deep",
        "b.d": "",
        "defaults": "",
        "model": "the net",
        "e": "",
    }
    assert first_sentence("# @package _global_\n# First\n# part. Second.\nkey: 1\n") == "First part."
    assert first_sentence("# One; and more.\n") == "One."
    assert first_sentence("key: 1\n") == "."


def test_no_folder_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "small.yaml").write_text("# A small one.\nwidth: 1\n")
    (tmp_path / "train.yaml").write_text("defaults:\n  - net: small # what is trained\n")
    assert list(groups(tmp_path)) == ["net: what is trained", "  small  A small one."]
