# %% [markdown]
# # A GAN: which net dies first?
#
# Two nets train against each other. When the images stop improving, one of them has stopped learning. Which one?
# The two losses do not say it: a small loss of the discriminator may mean that all is well, or that all is over.
#
# We hang a probe on each net and break the GAN in the classical way: Goodfellow et al. (2014) noted, and Arjovsky &
# Bottou (2017) proved, that a generator that minimizes log(1 - D(G(z))) gets no gradient once the discriminator is
# sure.

# %%
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from sppbench.spp import SignalProbe

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of a second: enough to see that the code works
OUTPUT = Path("outputs/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
STEPS = 10 if TINY else 600
CRITIC_STEPS = 5  # of the discriminator for one of the generator: it shall win

images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1


def make_net(inputs: int, outputs: int, activation: nn.Module, *end: nn.Module) -> nn.Sequential:
    """Three hidden layers of 128 units."""
    sizes = (inputs, 128, 128, 128)
    hidden = [layer for before in sizes[:-1] for layer in (nn.Linear(before, 128), activation)]
    return nn.Sequential(*hidden, nn.Linear(128, outputs), *end)


# %% [markdown]
# ## One probe a net
#
# A probe takes all passes between two calls of `collect` together. The discriminator has passes of its own and passes
# for the generator. So we collect after the last of its own, and throw away what the probe sees while the generator
# learns.


# %%
def saturating(logits: Tensor) -> Tensor:
    """The mean of log(1 - D(G(z))), to be minimized."""
    return -functional.softplus(logits).mean()


def non_saturating(logits: Tensor) -> Tensor:
    """The mean of -log D(G(z)), to be minimized."""
    return functional.softplus(-logits).mean()


def train(generator_loss: Callable[[Tensor], Tensor]) -> dict[str, pd.DataFrame]:
    """The histories of both nets."""
    torch.manual_seed(0)
    generator = make_net(32, 64, nn.ReLU(), nn.Tanh())
    discriminator = make_net(64, 1, nn.LeakyReLU(0.2))
    optimizers = [torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (generator, discriminator)]
    frames: dict[str, list[pd.DataFrame]] = {"generator": [], "discriminator": []}
    with SignalProbe(generator) as making, SignalProbe(discriminator) as judging:
        for step in range(STEPS):
            for _ in range(CRITIC_STEPS):
                real = images[torch.randint(len(images), (64,))]
                with torch.no_grad():
                    fake = generator(torch.randn(64, 32))
                logits = discriminator(torch.cat([real, fake]))
                loss = functional.softplus(-logits[:64]).mean() + functional.softplus(logits[64:]).mean()
                optimizers[1].zero_grad()
                loss.backward()
                optimizers[1].step()
            frames["discriminator"].append(judging.collect())
            optimizers[0].zero_grad()
            generator_loss(discriminator(generator(torch.randn(64, 32)))).backward()
            optimizers[0].step()
            frames["generator"].append(making.collect())
            judging.collect()
            judging.step = step + 1
            if step in (0, STEPS // 4, STEPS - 1):
                print(f"step {step:3}: the discriminator's loss is {loss.item():.1e}")
    return {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}


# %%
print("the generator minimizes log(1 - D)")
sick = train(saturating)
print("the generator minimizes -log D")
cured = train(non_saturating)

# %% [markdown]
# ## What one sees
#
# Each curve is the second moment of the gradient at one `Linear`, from step to step.


# %% alt="Gradients of both nets by step: with log(1 - D) they fall by many orders of magnitude in all layers"
def gradients(history: pd.DataFrame) -> pd.DataFrame:
    """Second moments: a row for each step, a column for each Linear."""
    rows = history[(history["signal"] == "gradient") & (history["kind"] == "Linear")]
    return rows.pivot(index="step", columns="depth", values="second_moment")


figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), sharey=True, layout="constrained")
cases = [(loss, name) for loss in ("log(1 - D)", "-log D") for name in ("discriminator", "generator")]
for axes, (loss, name) in zip(panels, cases, strict=True):
    moments = gradients((sick if loss == "log(1 - D)" else cured)[name])
    for number, depth in enumerate(moments):
        axes.plot(moments.index, moments[depth], color=plt.cm.viridis(number / 4), label=f"Linear {number + 1}")
    axes.set(title=f"{name}\nwith {loss}", xlabel="step", yscale="log")
    lost = moments[moments.columns[0]] < moments.iloc[0, 0] / 1000
    when = f"step {lost.idxmax()}" if lost.any() else "never"
    print(f"{loss:10}, {name:13}: a thousandth of its first gradient is left at Linear 1: {when}")
panels[0].set_ylabel("second moment of the gradient")
panels[-1].legend(fontsize="small", loc="lower right")
figure.savefig(OUTPUT / "gan.png", dpi=150)

# %% [markdown]
# With log(1 - D), on the left, both nets die, and all of their layers together: this is no matter of depth. The
# *winner* dies first. The discriminator is sure, so its own loss has nothing left to teach it. The generator follows:
# its gradient has the factor D(G(z)), the probability that a fake is real, and that is nearly zero.
#
# ## The cure
#
# With -log D, on the right, the factor is 1 - D(G(z)), which is nearly one. For a hundred steps the discriminator wins
# here, too, and its gradients fall. But those of the generator rise: it learns, its fakes become hard to tell, and the
# gradients of the discriminator come back. Neither dies.
#
# Read it off in this order. Do gradients fall at *all* layers of a net at once? Then look at the loss. Do they fall
# from layer to layer? Then look at the net, as in the example on the edge of chaos.
#
# ## What to try next
#
# - `CRITIC_STEPS = 1`: a discriminator that is not ahead. Does log(1 - D) work then?
# - The hinge loss, or Wasserstein's with a gradient penalty. What do they do to the discriminator's gradients?
# - One-sided label smoothing (Salimans et al. 2016), which does not let the discriminator be sure.
