"""The rules, as they are and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sppbench.study.claims.thresholds import RulesError, read_rules
from sppbench.study.common.published import read_published
from tests.fabricate.claims import rules
from tests.fabricate.runs import configuration


def test_the_nets_of_table_1_have_its_protocol() -> None:
    ours, published = read_rules().protocol, read_published().protocols
    assert {net: ours[net] for net in published} == published
    assert ours["ffnn_bn"]["trainer.max_epochs"] == 20
    assert ours["ffnn_bn"]["data.batch_size"] == 512
    assert "model.width_mult" not in ours["ffnn_bn"]


@pytest.mark.parametrize("net", list(read_rules().protocol))
def test_a_run_of_each_net_follows_its_protocol_and_no_other(net: str) -> None:
    """A net's own configuration fits its protocol; and no other net's, or a run could be taken for another."""
    from sppbench.run.run_directory import identity

    settings = identity(configuration(net, 0.001, 868))
    fitting = [
        name
        for name, wanted in read_rules().protocol.items()
        if all(settings.get(key) == wanted[key] for key in wanted)
    ]
    assert fitting == [net]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": "three"}, "seeds is 'three', but must be a whole number of at least 1"),
        ({"seeds": 1}, "seeds is 1, but an interval needs two"),
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": None}, "it has no key confidence"),
        ({"protocol": None}, "it has no key protocol"),
        ({"protocol": "published/nowhere.yaml"}, "cannot read"),
        ({"nets": [1]}, "nets is [1]"),
        ({"nets__ffnn_bn_scale": {"like": "resnet"}}, "nets.ffnn_bn_scale.like is 'resnet'"),
        ({"claims__C2__ratio": "half"}, "claims.C2.ratio is 'half', but must be a number"),
        ({"claims__C2__ratio": float("nan")}, "claims.C2.ratio is nan"),
        ({"claims__C2__ratio": 0.0}, "claims.C2.ratio is 0.0, but must be between 0 and 1"),
        ({"claims__C2__ratio": None}, "it has no key claims.C2.ratio"),
        ({"claims__C2__epochs": []}, "claims.C2.epochs is []"),
        ({"claims__C2__widths": {}}, "claims.C2.widths is {}"),
        ({"claims__C2__widths": {100: {"both": "ffnn_bn"}}}, "it has no key claims.C2.widths.100.neither"),
        ({"claims__C1__nets": ["resnet"]}, "claims.C1 names the net 'resnet', which nets does not define"),
        ({"claims__C4__margins": 1.0}, "it has the key claims.C4.margins, which no rule reads"),
        ({"claims__C5": 5}, "claims.C5 is 5, but must be a mapping"),
        ({"claims__C6__lrs": [0.1]}, "claims.C6.lrs is [0.1], but must be three learning rates"),
        ({"claims__C6": None}, "it has no key claims.C6"),
    ],
)
def test_damage_names_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RulesError) as caught:
        read_rules(rules(tmp_path / "rules.yaml", **changes))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.startswith("cannot read ")


def test_what_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("a: [")
    for name in ("rules.yaml", "nowhere.yaml"):
        with pytest.raises(RulesError, match=f"cannot read {tmp_path / name}"):
            read_rules(tmp_path / name)
