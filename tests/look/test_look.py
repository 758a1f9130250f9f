"""``sppbench look``: the nets that it finds, what it calls them with, and what it says of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from sppbench.__main__ import main
from sppbench.look.inputs import images, noise
from sppbench.look.look import View, look, seeded
from sppbench.look.nets import LookError, Net, find_net
from sppbench.look.text import table_of, text_of

OWN_NETS = """
from torch import nn


class Faint(nn.Sequential):
    def __init__(self):
        super().__init__(*(layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))
        for weight in self.parameters():
            nn.init.normal_(weight, std=1e-3) if weight.ndim > 1 else nn.init.zeros_(weight)


def healthy():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


class Wrong(nn.Module):
    def forward(self, x):
        return x @ undefined


class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()


number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets_of_a_test.py").write_text(OWN_NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_signal_that_dies_is_named_and_drawn(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "own_nets_of_a_test.Faint"]) == 1
    out = capsys.readouterr().out
    assert "Faint: 3,332 parameters, 25 layers" in out
    assert "called once with noise of shape (8, 16); loss: cross-entropy, random classes" in out
    assert "\n- vanishing: " in out
    folder = here / "outputs" / "look" / "own_nets_of_a_test.Faint"
    assert f"Written: {folder.relative_to(here)}/signals.png" in out
    assert (folder / "signals.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(folder / "layers.csv")
    assert list(table.columns) == ["depth", "layer", "kind", "activation", "gradient", "parameter", "expected"]
    # Each pair of layers takes 16 · 1e-6 of the second moment, and a small tanh nothing.
    linear = table[table["kind"] == "Linear"]
    assert np.allclose(linear["parameter"], 1e-6, rtol=0.5)
    assert linear["activation"].iloc[1] < 1e-3 * linear["activation"].iloc[0]
    assert linear["activation"].iloc[0] == pytest.approx(linear["expected"].iloc[0], rel=0.5)


def test_a_healthy_net_has_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "own_nets_of_a_test.healthy", "--input", "3,8,8", "--output", "seen", "--batch", "16"]) == 0
    out = capsys.readouterr().out
    assert "(16, 3, 8, 8)" in out
    assert "Verdict: nothing is wrong with its signals at initialization." in out
    assert {path.name for path in (here / "seen").iterdir()} == {"signals.png", "layers.csv"}


def test_a_seed_gives_the_same_numbers_and_leaves_no_trace(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    state = torch.get_rng_state()
    for seed in ("0", "0", "1"):
        main(["look", "own_nets_of_a_test.Faint", "--seed", seed, "--output", "seen"])
        tables.append((here / "seen" / "layers.csv").read_text())
    assert tables[0] == tables[1] != tables[2]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "'resnet18' is not the name of a net; give timm:NAME"),
        (["keras:x"], "'keras' is not a library that sppbench knows"),
        (["torchvision:resnet17"], "torchvision has no 'resnet17'; there are: resnet18"),
        (["hf:nowhere"], "nowhere does not exist"),
        (["sppbench:ffn"], "sppbench has no 'ffn'; there are: ffnn"),
        (["not_there_at_all.Net"], "cannot be built: No module named 'not_there_at_all'"),
        (["own_nets_of_a_test.nothing"], "own_nets_of_a_test has no 'nothing'"),
        (["own_nets_of_a_test.number"], "own_nets_of_a_test.number is an int: give a class, a function or a net"),
        (["own_nets_of_a_test.Needs"], "missing 1 required positional argument: 'width'"),
        (["own_nets_of_a_test.Wrong"], "the input shape of own_nets_of_a_test.Wrong is not known: give the shape"),
        (["own_nets_of_a_test.Wrong", "--input", "3"], "own_nets_of_a_test.py:18"),
        (
            ["own_nets_of_a_test.healthy", "--input", "5,8,8"],
            "cannot be called with a tensor of shape (8, 5,",
        ),
        (["own_nets_of_a_test.Faint", "--images", "."], "is not known to take images"),
        (["own_nets_of_a_test.healthy", "--images", "none"], "none is not a directory"),
        (["own_nets_of_a_test.healthy", "--images", "."], "there is no image in ."),
        (["own_nets_of_a_test.Faint", "--device", "abc"], "--device=abc: "),
        (["own_nets_of_a_test.Faint", "--input", "3,x"], "must be positive integers such as 3,32,32, got '3,x'"),
        (["own_nets_of_a_test.Faint", "--batch", "1"], "must be an integer of at least 2, got '1'"),
        (["own_nets_of_a_test.Faint", "--output", "own_nets_of_a_test.py"], "cannot write to own_nets_of_a_test.py"),
    ],
)
def test_what_cannot_be_looked_at_is_said_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status = main(["look", *arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    err = capsys.readouterr().err
    assert status == 2
    assert err.count("\n") == 1
    assert message in err


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(LookError, match=r"^timm:resnet18 needs timm: pip install timm$"):
        find_net("timm:resnet18")


# -- the nets of libraries ---------------------------------------------------------------------------------------------


def view_of(name: str, shape: tuple[int, ...] | None = None, batch: int = 4) -> View:
    with seeded(0):
        net = find_net(name)
        return look(net, noise(net, batch, shape))


def test_torchvision() -> None:
    view = view_of("torchvision:resnet18", (3, 32, 32))
    assert view.loss == "cross-entropy, random classes"
    table = table_of(view).set_index("layer")
    assert list(table["depth"]) == sorted(table["depth"])
    # Noise of variance 1 through 3·7·7 weights of variance 2/(64·7·7), but for the border.
    assert table.loc["conv1", "expected"] == pytest.approx(3 * 2 / 64, rel=0.2)
    assert table.loc["conv1", "activation"] == pytest.approx(3 * 2 / 64, rel=0.2)
    assert table.loc["bn1", "parameter"] == 1
    recorded, given, near = view.agreement()
    assert recorded >= given >= near >= 1


def test_one_of_ours() -> None:
    view = view_of("sppbench:ffnn_bn_h100")
    assert view.shape == (4, 3, 32, 32)
    assert view.parameters == sum(one.numel() for one in find_net("sppbench:ffnn_bn_h100").module.parameters())


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    llama = transformers.LlamaConfig(vocab_size=50, architectures=["LlamaForCausalLM"], **sizes)
    vit = transformers.ViTConfig(image_size=16, patch_size=8, architectures=["ViTForImageClassification"], **sizes)
    t5 = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    seen = {}
    for name, config in {"llama": llama, "vit": vit, "t5": t5}.items():
        config.save_pretrained(tmp_path / name)
        seen[name] = view_of(f"hf:{tmp_path / name / 'config.json'}")
    assert seen["llama"].shape == (4, 128)
    assert seen["llama"].loss == "cross-entropy, next tokens"
    assert seen["vit"].shape == (4, 3, 16, 16)
    assert seen["t5"].loss == "mean of the output times noise"
    kinds = {kind for view in seen.values() for kind in view.frame["kind"]}
    assert {"LlamaRMSNorm", "Linear", "Conv2d", "LayerNorm", "Embedding"} <= kinds
    assert not any(view.findings for view in seen.values())


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (nn.Linear(7, 2), (7,)),
        (nn.Conv1d(4, 2, 3), (4, 256)),
        (nn.Conv2d(3, 2, 3), (3, 64, 64)),
        (nn.Conv3d(1, 2, 3), (1, 16, 32, 32)),
        (nn.GRU(5, 2), (32, 5)),
    ],
)
def test_noise_has_the_shape_that_a_first_layer_takes(first: nn.Module, shape: tuple[int, ...]) -> None:
    module = nn.Sequential(nn.Identity(), nn.Sequential(first), nn.Linear(2, 2))
    x = noise(Net("net", module), 2)
    assert x.shape == (2, *shape)
    assert x.is_floating_point()


def test_tokens_are_drawn_from_all_that_there_are() -> None:
    x = noise(Net("net", nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))), 64)
    assert x.shape == (64, 64)
    assert set(x.flatten().tolist()) == {0, 1, 2}


def test_images_are_those_of_the_folder_in_order_cut_and_normalized(tmp_path: Path) -> None:
    for name, gray in (("b/1.png", 255), ("a/2.jpg", 0), ("c.png", 128)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 10), gray).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    net = Net("net", nn.Conv2d(3, 2, 3), (3, 8, 8), normalization=((0.5, 0.5, 0.5), (0.25, 0.5, 1.0)))
    x = images(net, tmp_path, 2)
    assert x.shape == (2, 3, 8, 8)
    assert x[0, :, 4, 4].tolist() == [-2.0, -1.0, -0.5]  # a/2.jpg
    assert x[1, :, 4, 4].tolist() == [2.0, 1.0, 0.5]
    (tmp_path / "a" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(LookError, match=r"2\.jpg cannot be read: "):
        images(net, tmp_path, 2)


# -- words -------------------------------------------------------------------------------------------------------------


def test_a_long_table_is_cut_in_the_middle() -> None:
    with seeded(0):
        net = Net("net", nn.Sequential(*(nn.Linear(2, 2) for _ in range(60)), nn.Linear(2, 3)))
        lines = text_of(look(net, torch.randn(2, 2)), "noise").splitlines()
    assert "       … 17 more …" in lines
    assert [line.split()[0] for line in lines if "Linear" in line] == [str(i) for i in (*range(22), *range(39, 61))]
