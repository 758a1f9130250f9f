"""What an inspection says of weights whose history is known, and what a user sees who asks for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from sppbench.evidence.inspection import batch_norm_errors, inspect
from sppbench.files import config_directory
from sppbench.run.assembly import make_data_and_net
from sppbench.train import train
from tests.commands import Say, saying
from tests.conftest import EFFICIENTNET, FFNN, SMALL

say = saying("inspect")
NETS = {
    "ffnn": (*FFNN, "optimizer.lr=0.0"),
    "lsuv": (*EFFICIENTNET, "model.normalization=null", "model.init=lsuv", "optimizer.lr=0.0"),
    "still": (*EFFICIENTNET, "optimizer.lr=0.0"),
    "trained": (*EFFICIENTNET, "optimizer.lr=0.01"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each of NETS, for tests that change nothing in it."""
    place = tmp_path_factory.mktemp("runs")
    for name, overrides in NETS.items():
        with initialize_config_dir(str(config_directory()), version_base="1.3"):
            cfg = compose(
                "train", [*SMALL, *overrides, "spp=none", "trainer.max_epochs=2", f"output_dir={place / name}"]
            )
        train(cfg)
    return place


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them at tmp_path/net/<name>, free to be damaged."""
    return lambda name: shutil.copytree(runs / name, tmp_path / "net" / name)


def weights(run: Path) -> dict[str, Tensor]:
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("net."): value for name, value in state.items()}


def change_weights(run: Path, **changes: Callable[[Tensor], Tensor]) -> None:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    for name, change in changes.items():
        key = f"net.{name.replace('__', '.')}"
        checkpoint["state_dict"][key] = change(checkpoint["state_dict"][key])
    torch.save(checkpoint, run / "last.ckpt")


def strictly(file: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(file.read_text(), parse_constant=refuse)
    return content


# -- what has moved ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ffnn", "lsuv", "still"])
def test_initial_weights_are_rebuilt_bit_for_bit(runs: Path, name: str) -> None:
    """At learning rate 0 the last weights are the first."""
    saved = weights(runs / name)
    torch.manual_seed(5)  # whatever was drawn before
    _, net = make_data_and_net(OmegaConf.load(runs / name / "config.yaml"))
    parameters = dict(net.named_parameters())
    assert parameters.keys() <= saved.keys()
    assert all(torch.equal(saved[key], parameter) for key, parameter in parameters.items())
    for key, moved in inspect(runs / name)["moved"].items():
        assert moved == {"relative": 0.0 if saved[key].any() else None, "absolute": 0.0}, key


def test_training_moves_every_parameter(runs: Path) -> None:
    content = inspect(runs / "trained")
    assert content["steps"] == 2 * 3
    assert content["moved"].keys() == {key for key in weights(runs / "trained") if not is_buffer(key)}
    assert all(moved["absolute"] > 0 for moved in content["moved"].values())


def is_buffer(key: str) -> bool:
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_moved_is_the_change_over_the_initial_size(copy: Callable[[str], Path]) -> None:
    run = copy("ffnn")
    change_weights(
        run,
        block0__linear__weight=lambda weight: 1.5 * weight,
        block1__linear__weight=lambda weight: -weight,
        block1__linear__bias=lambda bias: bias - 2,
        classifier__weight=lambda weight: weight * torch.nan,
    )
    moved = inspect(run)["moved"]
    assert moved["block0.linear.weight"]["relative"] == pytest.approx(0.5, rel=1e-6)
    assert moved["block1.linear.weight"]["relative"] == pytest.approx(2, rel=1e-6)
    # He, fan_out = 16: root mean square sqrt(2/16), of 16·16 weights; five standard errors
    assert moved["block1.linear.weight"]["absolute"] == pytest.approx(2 * (2 / 16) ** 0.5, rel=5 / (2 * 256) ** 0.5)
    assert moved["block1.linear.bias"] == {"relative": None, "absolute": 2.0}
    assert moved["block2.linear.weight"] == {"relative": 0.0, "absolute": 0.0}
    assert moved["classifier.weight"] == {"relative": None, "absolute": None}


# -- batch normalization ---------------------------------------------------------------------------------------------


class Off(nn.BatchNorm2d):
    """Batch normalization that is wrong by known amounts, in units of s and of s²."""

    shift, stretch = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return y + (self.stretch - 1) * (y - self.bias[:, None, None]) + self.shift * self.weight[:, None, None].abs()


def errors_of(layer: nn.Module, x: Tensor) -> dict[str, Any]:
    (found,) = batch_norm_errors(nn.Sequential(layer), lambda: x).values()
    return found


def images(std: float = 1.0, mean: float = 0.0) -> Tensor:
    return mean + std * torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_errors_are_those_that_were_made(memory_format: torch.memory_format) -> None:
    layer = Off(4, eps=1e-12)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -2.0, 1.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, -4.0, 2.0]))
    x = images(mean=3.0).to(memory_format=memory_format)
    exact = errors_of(layer, x)
    assert exact["channels"] == 4
    assert exact["unresolved"] == 0
    assert max(exact["mean_error"], exact["variance_error"]) < 1e-5
    layer.shift = 0.01
    assert errors_of(layer, x)["mean_error"] == pytest.approx(0.01, rel=1e-3)
    assert errors_of(layer, x)["variance_error"] < 1e-5
    layer.shift, layer.stretch = 0.0, 1.05
    assert errors_of(layer, x)["mean_error"] < 1e-5
    assert errors_of(layer, x)["variance_error"] == pytest.approx(1.05**2 - 1, rel=1e-3)


def test_the_largest_error_of_all_channels_counts() -> None:
    """A tenth of s in one channel, in a tensor that is normalized otherwise."""
    layer = nn.BatchNorm1d(3)
    layer.register_forward_hook(lambda module, inputs, output: output + torch.tensor([[0.0], [0.1], [0.0]]))
    found = errors_of(layer, torch.randn(64, 3, 5))
    assert found["mean_error"] == pytest.approx(0.1, rel=1e-3)


def test_a_variance_near_epsilon_is_no_error() -> None:
    """ "Variance 1" would be the wrong test: v = 1e-6 beside ε = 1e-5 leaves 1/11."""
    x = images(std=1e-3)
    x = x / x.var((0, 2, 3), correction=0, keepdim=True).sqrt() * 1e-3
    x[:, 0] *= 1e4
    found = errors_of(nn.BatchNorm2d(4), x)
    assert max(found["mean_error"], found["variance_error"]) < 1e-5
    assert found["normalized_variance"] == pytest.approx([1 / 11, 100 / (100 + 1e-5)], rel=1e-5)


@pytest.mark.parametrize(
    ("gamma", "beta", "unresolved"), [(0.0, 3.0, 1), (0.0, 0.0, 0), (1e-6, 3.0, 1), (1e-3, 3.0, 0)]
)
def test_errors_stay_small_where_gamma_is_nearly_zero(gamma: float, beta: float, unresolved: int) -> None:
    layer = nn.BatchNorm2d(4)
    with torch.no_grad():
        layer.weight[2], layer.bias[2] = gamma, beta
    found = errors_of(layer, images())
    assert found["unresolved"] == unresolved
    assert max(found["mean_error"], found["variance_error"]) < 1e-3


def test_a_shift_is_found_where_gamma_is_zero() -> None:
    layer = nn.BatchNorm2d(4)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 3.0)
    layer.register_forward_hook(lambda module, inputs, output: output + 0.01)
    assert errors_of(layer, images())["mean_error"] > 1


@pytest.mark.parametrize("affine", [True, False])
def test_running_statistics_play_no_part(affine: bool) -> None:
    layer = nn.BatchNorm2d(4, affine=affine)
    assert layer.running_mean is not None
    layer.running_mean.fill_(5.0)
    found = errors_of(layer.eval(), images())
    assert max(found["mean_error"], found["variance_error"]) < 1e-5


def test_a_net_without_batch_normalization_needs_no_data() -> None:
    def none() -> Tensor:
        raise AssertionError("data was asked for")

    assert batch_norm_errors(nn.Linear(2, 2), none) == {}


def test_trained_batch_normalizations_normalize(runs: Path) -> None:
    found = inspect(runs / "trained")["batch_norm"]
    assert found.keys() == {key.removesuffix(".running_mean") for key in weights(runs / "trained") if "g_mean" in key}
    assert all(max(layer["mean_error"], layer["variance_error"]) < 1e-3 for layer in found.values())
    assert found == inspect(runs / "trained")["batch_norm"]  # the same batch


# -- the command -------------------------------------------------------------------------------------------------------


def test_every_finished_run_is_inspected_once(copy: Callable[[str], Path], tmp_path: Path, say: Say) -> None:
    names = ["ffnn", "trained"]
    before = {}
    for name in names:
        run = copy(name)
        before |= {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in run.rglob("*") if file.is_file()}
    status, out, err = say(tmp_path)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(tmp_path / "net" / name) for name in names]
    assert "batch normalizations: mean within" in lines[1]
    assert "batch normalizations" not in lines[0]
    assert all((file.read_bytes(), file.stat().st_mtime_ns) == content for file, content in before.items())
    new = {file for file in tmp_path.rglob("*") if file.is_file()} - before.keys()
    assert new == {tmp_path / "net" / name / "inspection.json" for name in names}
    for file in new:
        assert strictly(file) == inspect(file.parent)
        file.write_text("{}")
    assert say(tmp_path)[1].count("inspected already") == 2
    os.utime(tmp_path / "net" / "ffnn" / "last.ckpt", (2e9, 2e9))
    assert say(tmp_path)[1].count("inspected already") == 1
    assert strictly(tmp_path / "net" / "ffnn" / "inspection.json")["steps"] == 6


def test_weights_that_are_not_finite_give_nulls(copy: Callable[[str], Path], say: Say) -> None:
    run = copy("trained")
    change_weights(run, features__0__0__weight=lambda weight: weight * torch.nan)
    status, out, _ = say(run)
    assert status == 0
    assert "weights are not finite" in out
    layer = strictly(run / "inspection.json")["batch_norm"]["features.0.1"]
    assert (layer["mean_error"], layer["variance_error"]) == (None, None)
    assert layer["normalized_variance"] == [None, None]


@pytest.mark.parametrize("status", [None, "interrupted", "failed"])
def test_runs_that_are_not_finished_are_passed_over(copy: Callable[[str], Path], say: Say, status: str | None) -> None:
    run = copy("ffnn")
    result = strictly(run / "result.json")
    (run / "result.json").write_text(json.dumps({**result, "status": status}))
    if status is None:
        (run / "result.json").unlink()
    found = say(run)
    assert found[0] == 0
    assert "not finished" in found[1]
    assert not (run / "inspection.json").exists()


def remove(run: Path) -> None:
    (run / "last.ckpt").unlink()


def flip_a_bit(run: Path) -> None:
    content = bytearray((run / "last.ckpt").read_bytes())
    content[content.index(weights(run)["block1.linear.weight"].numpy().tobytes()[:16])] ^= 1
    (run / "last.ckpt").write_bytes(content)


def cut_short(run: Path) -> None:
    os.truncate(run / "last.ckpt", 5000)


def take_another_net(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("hidden_features: 16", "hidden_features: 17"))


def train_on(run: Path) -> None:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "global_step": 9}, run / "last.ckpt")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove, "no last.ckpt"),
        (flip_a_bit, "last.ckpt is damaged (checksum"),
        (cut_short, "last.ckpt is damaged"),
        (take_another_net, "do not fit the net of config.yaml"),
        (train_on, "its checkpoint is from step 9, its result from step 6"),
        (lambda run: torch.save([1], run / "last.ckpt"), "last.ckpt is damaged"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "while parsing"),
        (lambda run: (run / "result.json").write_text("{"), "cannot read"),
        (lambda run: (run / "result.json").write_text("{}"), "cannot read"),
    ],
)
def test_damaged_runs_are_named_and_the_others_inspected(
    copy: Callable[[str], Path], tmp_path: Path, say: Say, damage: Callable[[Path], None], reason: str
) -> None:
    run, whole = copy("ffnn"), copy("lsuv")
    damage(run)
    status, out, err = say(tmp_path)
    assert status == 1
    assert err.startswith(f"sppbench: {run} cannot be inspected: ")
    assert reason in err
    assert err.count("\n") == 1
    assert out.startswith(f"{whole}: weights moved by 0 to 0 of")
    assert (whole / "inspection.json").exists()
    assert not (run / "inspection.json").exists()


def test_an_inspection_outlives_its_checkpoint(copy: Callable[[str], Path], say: Say) -> None:
    run = copy("ffnn")
    assert say(run)[0] == 0
    (run / "last.ckpt").unlink()
    assert say(run)[:2] == (0, f"{run}: inspected already\n")


def use_cifar(run: Path, root: Path) -> None:
    cfg: Any = OmegaConf.load(run / "config.yaml")
    cfg.data = {"_target_": "sppbench.data.CIFAR100", "root": str(root), "download": True, "image_size": 16}
    OmegaConf.save(cfg, run / "config.yaml")


def test_data_is_looked_for_where_the_user_says_and_never_downloaded(
    copy: Callable[[str], Path], tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("a download began")

    monkeypatch.setattr("sppbench.data.cifar100.download_url", never)
    run = copy("trained")
    use_cifar(run, tmp_path / "moved")
    status, _, err = say(run)
    assert (status, err.count("\n")) == (1, 1)
    assert f"no CIFAR-100 in {tmp_path / 'moved'}, and data.download is false." in err
    assert f"no CIFAR-100 in {tmp_path / 'here'}," in say(run, "--data-root", tmp_path / "here")[2]


def change_config(run: Path, **parts: Any) -> None:
    cfg: Any = OmegaConf.load(run / "config.yaml")
    OmegaConf.save(OmegaConf.merge(cfg, parts), run / "config.yaml")


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["FILE"]}}},
        {"data": {"_target_": "sppbench.data.cifar100.Path.touch", "self": "FILE"}},
        {"model": {"init": {"_target_": "sppbench.files.write_text", "path": "FILE", "text": ""}}},
        {"model": {"init": [{"list": [{"_target_": "builtins.open", "file": "FILE", "mode": "w"}]}]}},
        {"model": {"_target_": "${other}"}, "other": "sppbench.models.FFNN"},
        {"model": {"init": "${oc.env:HOME}"}},
    ],
)
def test_nothing_that_a_configuration_names_runs_unless_it_is_trusted(
    copy: Callable[[str], Path], tmp_path: Path, say: Say, parts: dict[str, Any]
) -> None:
    run, planted = copy("ffnn"), tmp_path / "planted"
    change_config(run, **json.loads(json.dumps(parts).replace("FILE", str(planted))))
    status, _, err = say(run)
    assert status == 1
    assert "config.yaml names" in err or "config.yaml holds the interpolation" in err
    assert "--trusted" in err
    assert not planted.exists()
    assert not (run / "inspection.json").exists()


class Mine(nn.Sequential):
    """A user's own net: a leaf with a weight."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(features, 10))


def test_a_trusted_net_is_made(copy: Callable[[str], Path], say: Say) -> None:
    run = copy("ffnn")
    cfg: Any = OmegaConf.load(run / "config.yaml")
    cfg.model = {"_target_": f"{__name__}.Mine", "features": 192}
    OmegaConf.save(cfg, run / "config.yaml")
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    checkpoint["state_dict"] = {f"net.{name}": value for name, value in Mine(192).state_dict().items()}
    torch.save(checkpoint, run / "last.ckpt")
    assert "--trusted" in say(run)[2]
    assert say(run, "--trusted")[0] == 0
    assert strictly(run / "inspection.json")["moved"].keys() == {"1.weight", "1.bias"}


def test_a_configuration_that_grows_is_refused(copy: Callable[[str], Path], say: Say) -> None:
    run = copy("ffnn")
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]\n" for before, one in pairwise("abcdefghij")
    )
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + bomb)
    status, _, err = say(run)
    assert status == 1
    assert "its aliases (*) make it more than 100,000 values" in err


def test_without_batch_normalization_data_may_be_missing(copy: Callable[[str], Path], tmp_path: Path, say: Say) -> None:
    run = copy("ffnn")
    use_cifar(run, tmp_path / "nowhere")
    assert say(run)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is not a directory"),
        (["."], "no runs in ."),
        ([], "the following arguments are required: DIR"),
        ([".", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_what_the_user_must_mend_is_told_in_a_line(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = say(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"sppbench: {message}")
    assert err.count("\n") == 1
