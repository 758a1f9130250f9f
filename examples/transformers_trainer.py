# %% [markdown]
# # A small Llama with the transformers Trainer
#
# A transformer has a backbone, the residual stream: every block reads from it and adds to it. How large does the stream
# become while the model learns? And do all blocks get the same share of the gradient, or do some starve?
#
# The model here is a Llama of twelve blocks that learns PyTorch's own source code, one token a byte, so nothing is
# downloaded. You need `pip install 'sppbench[transformers]'`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sppbench.spp import read_history
from sppbench.spp.integrations import SPPTrainerCallback

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of a second: enough to see that the code works
OUTPUT = Path("outputs/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
BLOCKS, LENGTH, STEPS = (3, 16, 3) if TINY else (12, 64, 200)
WIDTH = 16 if TINY else 64

files = sorted(Path(torch.__file__).parent.glob("nn/modules/*.py"))[: 2 if TINY else None]
text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
pieces = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
dataset = [{"input_ids": piece, "labels": piece} for piece in pieces]

# %% [markdown]
# ## One callback
#
# The callback is all that is added to an ordinary `Trainer`. `layers` chooses what is recorded, by class or by name:
# the blocks, whose outputs are the residual stream, and the projections inside, which read from it and add to it. A
# step is one of the trainer's: the two parts of an accumulated batch count as one.

# %%
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
    str(OUTPUT / "llama"),
    max_steps=STEPS,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    warmup_steps=30,
    dataloader_pin_memory=False,
    save_strategy="no",
    report_to=[],
    logging_strategy="no",
    disable_tqdm=True,
    use_cpu=True,
)
callback = SPPTrainerCallback(layers=[LlamaDecoderLayer, "*_proj"], epochs=())
trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=dataset, callbacks=[callback])
result = trainer.train()
print(f"mean loss of {STEPS} steps: {result.training_loss:.2f} nats a byte; guessing among 256 bytes costs 5.55")

# %% [markdown]
# ## What one sees
#
# The history knows the number of the block and the role that each layer has in it, so a curve for each role is one
# `groupby`.

# %% alt="The residual stream by block at five steps, and the gradients of the projections by role and block"
history = read_history(OUTPUT / "llama" / "spp.parquet", signals=["activation", "gradient"])
stream = history[(history["role"] == ".") & (history["signal"] == "activation")]
figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for number, step in enumerate(sorted({0, STEPS // 30, STEPS // 10, STEPS // 3, STEPS - 1})):
    at = stream[stream["step"] == step].sort_values("block")
    panels[0].plot(at["block"], at["second_moment"], marker=".", color=plt.cm.viridis(number / 5), label=f"step {step}")
    first, *_, end = at["second_moment"]
    print(f"step {step:3}: the stream's second moment is {first:.2g} after the first block, {end:.2g} after the last")
# What the block adds last, mlp.down_proj, has the gradient of the stream itself.
late = history[(history["step"] >= STEPS * 5 // 6) & (history["signal"] == "gradient") & (history["role"] != ".")]
for role, rows in late.groupby("role"):
    means = rows.groupby("block")["second_moment"].mean()
    panels[1].plot(means.index, means, marker=".", label=role)
    print(
        f"{role:17}: gradient at the first block over that at the last: {means.iloc[0] / means.iloc[-1]:.2g}, "
        f"least at block {means.idxmin()}"
    )
panels[0].set(title="residual stream", ylabel="second moment of the activation")
panels[1].set(title=f"gradients by role, last {STEPS - STEPS * 5 // 6} steps", ylabel="second moment of the gradient")
for axes in panels:
    axes.set(xlabel="block", yscale="log", xticks=range(0, BLOCKS, 2))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig(OUTPUT / "llama.png", dpi=150)

# %% [markdown]
# *Left.* At initialization the stream is tiny, and grows tenfold from the first block to the last, as each adds to it.
# In the first steps the late blocks grow most: at step 20 the stream is two hundred times as large at the end as at the
# beginning. Then the first block catches up, and the stream settles: at the end of training its second moment is
# between 1 and 2 everywhere.
#
# *Right.* The gradient of the stream, that of `mlp.down_proj`, is nearly the same at all depths, which is what the skip
# connections are for. Two things stand out. In the first block all other gradients are larger: its MLP adds nearly all
# of the stream, so the normalizations in it divide by the little that was there before, and this multiplies gradients.
# And `q_proj` and `k_proj` of blocks 3 and 4 starve: these two blocks hardly learn where to look.
#
# ## When it looks otherwise, and what to try next
#
# - A stream that grows in every step, or a last block far above the others: initialize `o_proj` and `down_proj` smaller
#   by a factor of √(2 · blocks), as GPT-2 does (Radford et al. 2019).
# - A role whose gradient falls by orders of magnitude from block to block: `diagnose(history, model)` says where.
# - `learning_rate=3e-2`: which role gives way first?
# - `AttentionProbe` records the logits and the entropy of each head. What do blocks 3 and 4 look at?
