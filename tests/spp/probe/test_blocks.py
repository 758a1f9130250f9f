"""The repeated blocks of nets, and the places of layers in them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

from sppbench.models.efficientnet import EfficientNet
from sppbench.models.ffnn import FFNN
from sppbench.spp.history import parts
from sppbench.spp.history.epoch_means import epoch_mean
from sppbench.spp.history.reader import read_history
from sppbench.spp.history.writer import HistoryWriter
from sppbench.spp.names import COLUMNS
from sppbench.spp.places import blocks_in, place_of, with_places
from sppbench.spp.probe.blocks import find_blocks
from sppbench.spp.probe.layers import choose_layers, named_modules
from sppbench.spp.probe.probe import SignalProbe
from sppbench.spp.recorder import Recorder


class Block(nn.Module):
    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)
        self.mlp = nn.Module()
        self.mlp.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.act(x))))


class Stage(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))


def residual(blocks: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Sequential(*(Block() for _ in range(blocks))), nn.Linear(4, 3))


def numbered(prefix: str, numbers: range) -> list[str]:
    return [f"{prefix}{number}" for number in numbers]


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (residual(), ["1.0", "1.1", "1.2"]),
        (nn.Sequential(nn.Linear(2, 4), Block(), Block(), nn.Linear(4, 3)), ["1", "2"]),
        # Experts, of which there are more than blocks.
        (nn.ModuleList(Block(experts=5) for _ in range(3)), ["0", "1", "2"]),
        # Stages, of which there are more than blocks in any of them; and a stage of one block.
        (nn.ModuleList(map(Stage, (1, 5, 2, 1))), ["0.blocks.0", *numbered("1.blocks.", range(5)), "2.blocks.0",
                                                    "2.blocks.1", "3.blocks.0"]),
        (nn.Transformer(4, 1, 2, 3, 8), numbered("decoder.layers.", range(3))),
        (nn.ModuleList([Block()] * 4), []),  # one block, called four times
        (nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)), []),
        (nn.Linear(2, 3), []),
    ],
)  # fmt: skip
def test_blocks_are_found_by_structure(net: nn.Module, expected: list[str]) -> None:
    assert list(find_blocks(named_modules(net))) == expected


def test_blocks_of_known_nets() -> None:
    with torch.device("meta"):
        resnet, mobilenet = torchvision.models.resnet18(), torchvision.models.mobilenet_v2()
    layers = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert list(find_blocks(named_modules(resnet))) == layers
    assert list(find_blocks(named_modules(mobilenet))) == numbered("features.", range(1, 18))
    assert list(find_blocks(named_modules(FFNN()))) == numbered("block", range(9))
    efficientnet = find_blocks(named_modules(EfficientNet(width_mult=0.1)))
    assert len(efficientnet) == sum((1, 2, 2, 3, 3, 4, 1))  # table 1 of Tan & Le 2019
    assert (efficientnet[0], efficientnet[-1]) == ("features.1.0", "features.7.0")


def test_the_blocks_can_be_chosen() -> None:
    assert list(choose_layers(residual(), "blocks")) == ["1.0", "1.1", "1.2"]
    with pytest.raises(ValueError, match="the model has no repeated blocks"):
        choose_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "blocks")
    of_this_name = nn.Sequential()
    of_this_name.blocks = residual()
    assert list(choose_layers(of_this_name, ["blocks"])) == ["blocks"]


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        ("layers.1.attention.query", (1, "attention.query")),
        ("layers.1.act#2", (1, "act#2")),
        ("layers.1", (1, ".")),
        ("layers.1#3", (1, ".#3")),
        ("layers.10.act", (2, "act")),
        ("layers", (-1, "layers")),
        ("head#2", (-1, "head#2")),
    ],
)
def test_places(layer: str, place: tuple[int, str]) -> None:
    blocks = {"layers.0": 0, "layers.1": 1, "layers.10": 2}
    assert place_of(layer, blocks) == place
    frame = with_places(pd.DataFrame({"layer": [layer, layer]}), blocks)
    assert frame[["block", "role"]].to_numpy().tolist() == [list(place)] * 2
    number = place[0]
    assert blocks_in(frame) == ({name: at for name, at in blocks.items() if at == number})


def step_of(layers: str | None = None, compiled: bool = False) -> pd.DataFrame:
    model = residual()
    with SignalProbe(model, layers) as probe:
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        called(torch.randn(8, 2)).square().mean().backward()
        return probe.collect()


def test_the_frame_names_blocks_and_roles() -> None:
    frame = step_of()
    assert list(frame) == [*COLUMNS, "block", "role"]
    up = frame[frame["role"] == "up"]
    assert up[["layer", "block", "signal"]].to_numpy().tolist() == [
        [f"1.{block}.up", block, signal] for block in range(3) for signal in ("activation", "gradient", "parameter")
    ]
    assert set(frame.loc[frame["block"] == 1, "role"]) == {"act", "up", "act#2", "down"}
    assert set(frame.loc[frame["block"] == -1, "role"]) == {"0", "2"}
    with SignalProbe(residual(), every_n_steps=2) as probe:
        probe.step = 1  # which is not recorded
        assert list(probe.collect()) == list(frame)


def test_the_residual_stream_is_recorded() -> None:
    """Against hooks: the outputs of the blocks and their gradients, and the weights inside."""
    frame, model, outputs = step_of("blocks"), residual(), []
    for block in model[1]:
        block.register_forward_hook(lambda module, arguments, output: (output.retain_grad(), outputs.append(output))[0])
    torch.manual_seed(0)
    residual()  # draws what the net of the frame drew
    model(torch.randn(8, 2)).square().mean().backward()
    for signal, values in (("activation", outputs), ("gradient", [output.grad for output in outputs])):
        rows = frame[frame["signal"] == signal]
        assert rows[["block", "role"]].to_numpy().tolist() == [[0, "."], [1, "."], [2, "."]]
        expected = [value.double().square().mean().item() for value in values]
        assert rows["second_moment"].tolist() == pytest.approx(expected, rel=1e-5)
    assert set(frame.loc[frame["signal"] == "parameter", "role"]) == {"up", "down"}


def test_a_history_has_the_places_without_storing_them(tmp_path: Path) -> None:
    frame = step_of()
    writer = HistoryWriter(tmp_path / "spp.parquet")
    writer.append(frame)
    # A run that is resumed goes on with them.
    writer = HistoryWriter(tmp_path / "spp.parquet", resume_at=1)
    writer.append(frame.drop(columns=["block", "role"]).assign(step=1))
    history = read_history(tmp_path / "spp.parquet")
    for step in (0, 1):
        found = history.loc[history["step"] == step, ["layer", "block", "role"]]
        assert found.to_numpy().tolist() == frame[["layer", "block", "role"]].to_numpy().tolist()
    [file] = (tmp_path / "spp.parquet").iterdir()
    assert not {"block", "role"} & set(pd.read_parquet(file))
    assert read_history(tmp_path / "spp.parquet", layers="1.2.up", columns=["role"])["role"].unique().tolist() == ["up"]
    means = epoch_mean(history)
    assert means.loc[means["role"] == "down", "block"].tolist() == [block for block in range(3) for _ in range(3)]
    # As a single file, too.
    assert set(read_history(file.rename(tmp_path / "one.parquet"))["block"]) == {-1, 0, 1, 2}


def test_a_recorded_loop_has_the_places_too(tmp_path: Path) -> None:
    model = residual()
    recorder = Recorder(model, tmp_path, signals=["activation"])
    model(torch.randn(8, 2)).square().mean().backward()
    recorder.step()
    recorder.state_dict()
    history = read_history(tmp_path / "spp.parquet")
    assert history.loc[history["role"] == "down", "block"].tolist() == [0, 1, 2]


def test_a_history_of_an_earlier_version_has_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"start": 0, "end": 1, "every_n_steps": 1, "run_id": None, "config_hash": None}
    monkeypatch.setattr(parts, "asdict", lambda origin: stored)
    HistoryWriter(tmp_path / "spp.parquet").append(step_of())
    history = read_history(tmp_path / "spp.parquet")
    assert set(history["block"]) == {-1}
    assert (history["role"] == history["layer"]).all()
