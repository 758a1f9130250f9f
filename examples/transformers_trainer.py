"""Trains a small Llama on PyTorch's source code with ``transformers.Trainer``, records it, and draws what happened.

    pip install 'sppbench[transformers]'
    python examples/transformers_trainer.py outputs/llama

Nothing is downloaded: a token is a byte. It takes two minutes on a CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sppbench.spp import read_history
from sppbench.spp.integrations import SPPTrainerCallback

BLOCKS, WIDTH, LENGTH, STEPS = 12, 64, 64, 300


def main(directory: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    arguments = TrainingArguments(
        str(directory),
        max_steps=STEPS,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=30,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to=[],
        logging_steps=50,
    )
    # The blocks, whose outputs are the residual stream, and what reads from it and adds to it in each of them.
    callback = SPPTrainerCallback(layers=["model.layers.?", "model.layers.??", "*_proj"], epochs=())
    Trainer(LlamaForCausalLM(config), arguments, train_dataset=source_code(), callbacks=[callback]).train()
    history = read_history(directory / "spp.parquet", signals=["activation", "gradient"])
    draw(history).savefig(directory / "llama.png", dpi=150)


def source_code() -> list[dict[str, torch.Tensor]]:
    """Pieces of the standard library, as bytes."""
    files = sorted(Path(torch.__file__).parent.rglob("nn/modules/*.py"))
    content = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    pieces = content[: len(content) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def draw(history: pd.DataFrame) -> Figure:
    """The residual stream while it is trained, and the gradients at each role in the blocks after that."""
    figure, (stream, roles) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    blocks = history[(history["role"] == ".") & (history["signal"] == "activation")]
    for step in (0, 10, 30, 100, STEPS - 1):
        at = blocks[blocks["step"] == step]
        stream.plot(at["block"], at["second_moment"], marker=".", label=f"step {step}")
    # What the block adds last, mlp.down_proj, has the gradient of the stream itself.
    late = history[(history["step"] >= STEPS - 50) & (history["signal"] == "gradient") & (history["role"] != ".")]
    for role, rows in late.groupby("role"):
        means = rows.groupby("block")["second_moment"].mean()
        roles.plot(means.index, means, marker=".", label=role)
    stream.set(title="residual stream", ylabel="second moment of the activation")
    roles.set(title=f"outputs by role, steps {STEPS - 50} to {STEPS - 1}", ylabel="second moment of the gradient")
    for axes in (stream, roles):
        axes.set(xlabel="block", yscale="log", xticks=range(0, BLOCKS, 2))
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))
