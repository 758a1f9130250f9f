"""The callback in real trainings of a small Llama: the numbers are those of a probe in a plain loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from sppbench.spp import integrations, run_figures
from sppbench.spp.history.reader import check_end, read_history
from sppbench.spp.probe.probe import SignalProbe

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

BATCH, LENGTH, STEPS = 2, 8, 3  # steps of an epoch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_figures, "find_plot", lambda name: lambda *arguments, **options: Figure((1, 1)))
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.ERROR)


def llama(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=LENGTH, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def data(accumulated: int = 1) -> list[dict[str, Tensor]]:
    """The samples of an epoch; some labels are left out, so that batches have different numbers of targets."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for i in range(STEPS * BATCH * accumulated):
        ids = torch.randint(32, (LENGTH,), generator=generator)
        samples.append({"input_ids": ids, "labels": ids.where(torch.arange(LENGTH) >= i % 5, -100)})
    return samples


def train(
    path: Path, *callbacks: Any, model: nn.Module | None = None, resume: str | None = None, **options: Any
) -> nn.Module:
    accumulated = options.get("gradient_accumulation_steps", 1)
    arguments = transformers.TrainingArguments(
        output_dir=str(path),
        **{
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **options,
        },
    )
    model = model if model is not None else llama()
    trainer = transformers.Trainer(model, arguments, train_dataset=data(accumulated), callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return model


def plain(
    accumulated: int = 1, autocast: bool = False, layers: int = 2, epochs: int = 2
) -> tuple[nn.Module, pd.DataFrame]:
    """A plain loop with a probe."""
    model = llama(layers).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    frames = []
    with SignalProbe(model) as probe:
        for probe.epoch in range(epochs):
            samples = data(accumulated)
            for first in range(0, len(samples), BATCH * accumulated):
                group = samples[first : first + BATCH * accumulated]
                targets = sum(int((one["labels"][1:] != -100).sum()) for one in group)
                optimizer.zero_grad()
                for start in range(0, len(group), BATCH):
                    batch = {
                        name: torch.stack([one[name] for one in group[start : start + BATCH]]) for name in group[0]
                    }
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        loss = model(**batch, num_items_in_batch=targets).loss
                    loss.backward()
                optimizer.step()
                frames.append(probe.collect())
    return model, pd.concat(frames, ignore_index=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, rtol: float = 2e-5) -> None:
    keys = ["step", "epoch", "samples", "layer", "signal"]
    pd.testing.assert_frame_equal(found[keys], expected[keys], check_dtype=False)
    for signal in ("activation", "gradient", "parameter"):
        one, two = (frame.loc[frame["signal"] == signal, "second_moment"] for frame in (found, expected))
        np.testing.assert_allclose(one, two, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_numbers_are_those_of_a_plain_loop(tmp_path: Path, accumulated: int) -> None:
    callback = integrations.SPPTrainerCallback(epochs=[0], flush_every_n_steps=2)
    model = train(tmp_path, callback, gradient_accumulation_steps=accumulated)
    loop, expected = plain(accumulated)
    assert_same(read_history(tmp_path / "spp.parquet"), expected)
    for one, two in zip(model.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    check_end(tmp_path / "spp.parquet", 2 * STEPS)
    assert {file.name for file in tmp_path.glob("*.png")} == {
        *("spp_epoch=0.png", "spp_gradient_epoch=0.png", "spp_epoch=1.png", "spp_gradient_epoch=1.png"),
        *("spp_heatmap_activation.png", "spp_heatmap_gradient.png"),
    }
    assert callback.probe is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_number(tmp_path: Path, reentrant: bool) -> None:
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    train(tmp_path, integrations.SPPTrainerCallback(), num_train_epochs=1, **options)
    assert_same(read_history(tmp_path / "spp.parquet"), plain(epochs=1)[1])


def test_autocast_to_bfloat16(tmp_path: Path) -> None:
    train(tmp_path, integrations.SPPTrainerCallback(), bf16=True, num_train_epochs=1)
    assert_same(read_history(tmp_path / "spp.parquet"), plain(autocast=True, epochs=1)[1], rtol=1e-3)


def test_a_compiled_model(tmp_path: Path) -> None:
    # Traced as for any backend. Those that compile what was traced take seconds more.
    torch.compiler.reset()
    options = {"torch_compile": True, "torch_compile_backend": "eager", "num_train_epochs": 1}
    train(tmp_path, integrations.SPPTrainerCallback(), model=llama(layers=1), **options)
    assert_same(read_history(tmp_path / "spp.parquet"), plain(layers=1, epochs=1)[1], rtol=1e-4)


def test_training_is_not_changed(tmp_path: Path) -> None:
    watched, alone = (
        train(tmp_path / "watched", integrations.SPPTrainerCallback(), num_train_epochs=1),
        train(tmp_path / "alone", num_train_epochs=1),
    )
    for one, two in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, two)


class Stop(transformers.TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise RuntimeError("stopped")


def test_a_resumed_training_goes_on_with_its_history(tmp_path: Path) -> None:
    """From the middle of an epoch; the first part went further than its checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 2}
    callback = integrations.SPPTrainerCallback(flush_every_n_steps=100)
    with pytest.raises(RuntimeError, match="stopped"):
        train(tmp_path, callback, Stop(), **options)
    callback._detach()
    assert read_history(tmp_path / "spp.parquet")["step"].max() == 4
    train(tmp_path, integrations.SPPTrainerCallback(), resume=str(tmp_path / "checkpoint-2"), **options)
    assert_same(read_history(tmp_path / "spp.parquet"), plain()[1])
    assert not (tmp_path / "spp-2.parquet").exists()


def test_steps_that_wait_when_training_fails_are_written_by_the_next_one(tmp_path: Path) -> None:
    callback = integrations.SPPTrainerCallback(tmp_path / "signals")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stopped"):
            train(tmp_path, callback, Stop())
    assert read_history(tmp_path / "signals" / "spp.parquet")["step"].max() == 4
    del callback
    assert read_history(tmp_path / "signals" / "spp-2.parquet")["step"].max() == 4
