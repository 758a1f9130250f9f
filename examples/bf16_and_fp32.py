# %% [markdown]
# # bf16 beside fp32: is it rounding, or a fault?
#
# A number in bfloat16 has 8 significant bits. Two trainings, one in fp32 and one in bf16, can never agree exactly; the
# question is whether they differ by *more than rounding explains*. `compare` answers it for every layer and every step,
# and names the first layer that is off.
#
# There are two usual ways to bf16:
#
# - **autocast**: weights stay in fp32, and matrix products are rounded.
# - **weights in bf16**: `model.to(torch.bfloat16)`, half of the memory.
#
# Both losses fall. One of the two has a fault.

# %%
import os
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from sppbench.spp import SignalProbe, compare, plot_compare

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of a second: enough to see that the code works
OUTPUT = Path("outputs/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
BLOCKS, STEPS = (2, 4) if TINY else (6, 150)
LEARNING_RATE = 1e-4

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
labels = torch.tensor(digits.target)


class Block(nn.Module):
    """The feed-forward half of a transformer's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.gelu(self.up(self.norm(x))))


# %% [markdown]
# ## Three trainings from the same weights, on the same batches
#
# We also record the signal `update`: what the optimizer's step has changed in each weight.


# %%
def train(*, autocast: bool = False, dtype: torch.dtype = torch.float32) -> pd.DataFrame:
    """Adam; the history of all steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), *(Block(64) for _ in range(BLOCKS)), nn.LayerNorm(64), nn.Linear(64, 10))
    net.to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    frames = []
    with SignalProbe(net, signals=["activation", "gradient", "parameter", "update"]) as probe:
        for step in range(STEPS):
            batch = torch.randint(len(images), (128,))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = net(images[batch].to(dtype))
            loss = functional.cross_entropy(logits.float(), labels[batch])
            loss.backward()
            optimizer.step()
            frames.append(probe.collect())
            if step in (0, STEPS - 1):
                print(f"step {step:3}: loss {loss.item():.3f}")
    return pd.concat(frames, ignore_index=True)


print("fp32")
fp32 = train()
print("autocast")
autocast = train(autocast=True)
print("weights in bf16")
bf16 = train(dtype=torch.bfloat16)

# %% [markdown]
# ## Autocast agrees
#
# The histories know in what precision they were recorded, so the yardstick is the rounding of bfloat16 on its way
# through the layers.

# %%
found = compare(fp32, autocast)
print(found)

# %% [markdown]
# ## Weights in bf16 do not

# %%
found = compare(fp32, bf16)
print(found)

# %% [markdown]
# The first departure is not in an activation and not in a gradient. It is in the **update** of a weight, in the very
# first step: forward and backward are right, and then the optimizer's step is lost.
#
# ## What one sees
#
# Above, each row is a layer, each column a step, and the color is the ratio of both runs: white is agreement. The ring
# marks where they depart. Below is that step over the depth of the net.
#
# In the first steps activations and gradients are white, and updates are blue: much too small. From there it spreads.
# The net in bf16 learns less: its logits, the last row on the left, stay smaller, and its gradients stay larger. Gray
# rows have no ratio: a GELU has no weights, and the updates of the normalizations are zero in bf16.

# %% alt="Ratio of bf16 to fp32 by layer and step: in the first steps all agrees but the updates of the weights"
figure = plot_compare(fp32, bf16, labels=("fp32", "weights in bf16"))
figure.savefig(OUTPUT / "bf16_and_fp32.png")
figure

# %% [markdown]
# Neighboring numbers of bfloat16 are up to 1/128 of their size apart. An Adam step of 0.0001 on a weight of 0.1 is
# 1/1000 of it, and rounds to nothing. How many updates are lost?

# %%
for name, history in {"fp32": fp32, "autocast": autocast, "weights in bf16": bf16}.items():
    updates = history[history["signal"] == "update"]
    first, last = (updates.loc[updates["step"] == step, "zeros"].mean() for step in (0, STEPS - 1))
    print(f"{name:15}: {first:.0%} of a weight's updates are exactly zero in the first step, {last:.0%} in the last")

# %% [markdown]
# A layer normalization is the clearest case: its gains are 1, the next smaller number is 0.996, and a step of 0.0001
# does not get there. None of them ever moves.
#
# ## The cure, and what to try next
#
# - Keep the weights, or a copy of them for the optimizer, in fp32: this is what autocast does.
# - Or round stochastically, so that a lost update is right on average.
# - A larger learning rate hides the fault: with 0.001 most updates survive the rounding at first. And later, when
#   Adam's steps become smaller?
# - `compare(fp32, autocast, precision="float32")` asks for more than bf16 can do. Where is the first rounding?
# - For two runs in files: `sppbench compare RUN_A RUN_B`.
