"""Every file of conf/model gives a net that trains; the values are those of the study."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sppbench.evidence.inspection import SAFE_TARGETS
from sppbench.models import CNN, FFNN, EfficientNet, MPScale, MPSum, Scale, Sum, UNEfficientNet

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
STUDY_LEAVES = {
    "ffnn": 20,
    "ffnn_bn": 29,
    "ffnn_bn_noaffine": 29,
    "ffnn_h100": 20,
    "ffnn_bn_h100": 29,
    "ffnn_bn_noaffine_h100": 29,
    "efficientnet_bn": 215,
    "efficientnet_nobn": 166,
    "sn_efficientnet_nomp": 166,
    "sn_efficientnet_mp": 166,
}
STUDY_PARAMETERS = {
    "ffnn": 3_725_924,
    "ffnn_bn": 3_735_140,
    "ffnn_bn_noaffine": 3_726_948,
    "ffnn_h100": 398_200,
    "ffnn_bn_h100": 400_000,
    "ffnn_bn_noaffine_h100": 398_400,
    "efficientnet_bn": 4_135_648,
    "efficientnet_nobn": 4_093_632,
    "sn_efficientnet_nomp": 4_093_632,
    "sn_efficientnet_mp": 4_093_632,
}


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _compose(name: str, *overrides: str, **data: int) -> DictConfig:
    """The model's node beside a small data node, independent of the other groups of conf/."""
    data = {"in_channels": 3, "image_size": 32, "num_classes": 100, **data}
    nodes = [f"++data.{key}={value}" for key, value in data.items()]
    return compose(config_name=None, overrides=[f"+model={name}", *nodes, *overrides])


def test_the_study_is_covered() -> None:
    assert set(STUDY_LEAVES) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_model_trains_on_two_images(name: str) -> None:
    torch.manual_seed(0)
    net = instantiate(_compose(name).model)
    assert isinstance(net, nn.Module)
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 100)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, learned)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", STUDY_LEAVES)
def test_sizes_are_those_of_the_study(name: str) -> None:
    net = instantiate(_compose(name).model)
    leaves = [module for module in net.modules() if not list(module.children())]
    assert sum(not isinstance(leaf, Sum | MPSum | Scale | MPScale) for leaf in leaves) == STUDY_LEAVES[name]
    assert sum(parameter.numel() for parameter in net.parameters()) == STUDY_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_in_the_file(name: str) -> None:
    node = OmegaConf.to_container(_compose(name).model, resolve=True)
    assert isinstance(node, dict)
    module, _, class_name = node.pop("_target_").rpartition(".")
    assert list(node) == list(inspect.signature(getattr(sys.modules[module], class_name)).parameters)


def test_defaults_of_the_classes_are_the_base_files() -> None:
    for name, base in (
        ("ffnn", FFNN),
        ("efficientnet_bn", EfficientNet),
        ("cnn", CNN),
        ("un_efficientnet", UNEfficientNet),
    ):
        node = OmegaConf.to_container(_compose(name).model, resolve=True)
        defaults = {key: parameter.default for key, parameter in inspect.signature(base).parameters.items()}
        assert {"_target_": f"sppbench.models.{base.__name__}", **defaults} == node


def test_self_normalizing_variants() -> None:
    plain, mp = (_compose(name).model for name in ("sn_efficientnet_nomp", "sn_efficientnet_mp"))
    assert (plain.activation, plain.normalization, plain.init, plain.classifier_std) == ("SELU", None, "lecun", None)
    assert (plain.skip, plain.gate) == ("sum", "scale")
    differences = {key: mp[key] for key in mp if mp[key] != plain[key]}
    assert differences == {"classifier_std": 0.01, "skip": "mp_sum", "gate": "mp_scale"}
    assert mp.mp_weight == 0.5


@pytest.mark.parametrize(
    ("name", "override", "key", "value"),
    [
        ("ffnn_bn", "model.hidden_features=100", "block8.linear.weight", (100, 100)),
        ("ffnn", "model.depth=2", "block2.linear.bias", (512,)),
        ("ffnn", "model.normalization=batch_norm", "block0.norm.weight", (512,)),
        ("efficientnet_bn", "model.width_mult=0.5", "features.0.0.weight", (16, 3, 3, 3)),
        ("efficientnet_nobn", "model.depth_mult=2", "features.1.1.block.0.0.weight", (16, 1, 3, 3)),
        ("efficientnet_bn", "model.in_channels=1", "features.0.0.weight", (32, 1, 3, 3)),
        ("ffnn", "model.num_classes=10", "classifier.weight", (10, 512)),
    ],
)
def test_overrides(name: str, override: str, key: str, value: tuple[int, ...]) -> None:
    assert instantiate(_compose(name, override).model).state_dict()[key].shape == value


def test_more_overrides() -> None:
    net = instantiate(_compose("sn_efficientnet_mp", "model.mp_weight=0.3", "model.activation=Tanh").model)
    assert {module.weight for module in net.modules() if isinstance(module, MPSum)} == {0.3}
    assert any(isinstance(module, nn.Tanh) for module in net.modules())
    net = instantiate(_compose("efficientnet_bn", "model.affine=false", "model.skip=mp_sum").model)
    assert not any(module.affine for module in net.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["ffnn", "efficientnet_bn"])
def test_data_decides_shapes(name: str) -> None:
    net = instantiate(_compose(name, in_channels=1, image_size=28, num_classes=10).model)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_every_net_can_be_inspected(name: str) -> None:
    assert _compose(name).model["_target_"] in SAFE_TARGETS
