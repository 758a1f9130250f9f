# %% [markdown]
# # Dead ReLUs, found and cured
#
# The loss stays near 2.30, that of guessing among ten classes. Is the net too small, are the data bad, is the code
# wrong? The loss cannot say. A probe can: it reads every layer at every step.
#
# The patient is a plain net, eight layers of `Linear` and `ReLU`, that learns scikit-learn's digits. Its
# initialization is right (He et al. 2015). What is wrong is one number.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from sppbench.spp import SignalProbe, diagnose, plot_heatmap

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of a second: enough to see that the code works
OUTPUT = Path("outputs/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
STEPS = 12 if TINY else 200

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)


def make_net(activation: type[nn.Module]) -> nn.Sequential:
    """Eight hidden layers of 128 units."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (64, *[128] * 7):
        linear = nn.Linear(inputs, 128)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


# %% [markdown]
# ## The probe in the loop
#
# The probe needs two lines: the `with`, and `collect` after each step, which returns a table with a row for each layer
# and signal.


# %%
def train(net: nn.Sequential, learning_rate: float) -> pd.DataFrame:
    """Adam; the history of all steps."""
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    frames = []
    with SignalProbe(net) as probe:
        for step in range(STEPS):
            batch = torch.randint(len(images), (128,))
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            frames.append(probe.collect())
            if step in (0, STEPS // 8, STEPS - 1):
                print(f"step {step:3}: loss {loss.item():.2f}")
    return pd.concat(frames, ignore_index=True)


sick_net = make_net(nn.ReLU)
sick = train(sick_net, learning_rate=0.1)

# %% [markdown]
# ## What one sees
#
# Each row is a layer, each column a step, and the color is the second moment of the activation, mean(x²), on a
# logarithmic scale. Black is zero. The last ReLU flickers, then stays black: whatever image comes in, all of its 128
# units put out zero. What comes before it may be as large as it likes; nothing of it arrives at the classifier.

# %% alt="Heatmap of the activations: of eight layers of ReLU the last one turns black, which is zero, and stays so"
figure = plot_heatmap(sick, "activation")
figure.savefig(OUTPUT / "dead_relus.png")
figure

# %% [markdown]
# `diagnose` says it in words: which layer died, in which step, and why. A unit that is zero for every image has a slope
# of zero for every image, too. No gradient passes it, so no gradient can bring it back.

# %%
print(diagnose(sick, sick_net))

# %% [markdown]
# ## Before the death
#
# The net did not die at once. The column `zeros` of the history is the share of outputs that are exactly zero. In a
# healthy ReLU it is about one half; here it rises within ten steps. Adam moves every weight and every bias by about the
# learning rate in each step, however small the gradient is. The weights are only √(2/128) = 1/8 at first, so a single
# step of 0.1 makes another net of it.
#
# ## The cure
#
# The learning rate is the one number. Everything else stays: the net, its initialization, the data, the seed.

# %%
healthy_net = make_net(nn.ReLU)
healthy = train(healthy_net, learning_rate=0.003)
print(diagnose(healthy, healthy_net))

# %% alt="Share of zeros behind each ReLU: it climbs to nearly one with the learning rate 0.1, not with 0.003"
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for axes, (title, history) in zip(
    panels, {"learning rate 0.1": sick, "learning rate 0.003": healthy}.items(), strict=True
):
    relus = history[(history["kind"] == "ReLU") & (history["signal"] == "activation")]
    zeros = relus.pivot(index="step", columns="depth", values="zeros")
    for number, depth in enumerate(zeros):
        axes.plot(zeros.index, zeros[depth], color=plt.cm.viridis(number / 8), label=f"ReLU {number + 1}")
    axes.set(title=title, xlabel="step", ylim=(0, 1.02))
    print(f"{title}: {zeros.iloc[0].mean():.0%} of the outputs are zero at first, {zeros.iloc[-1].mean():.0%} at last")
panels[0].set_ylabel("share of outputs that are zero")
panels[1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig(OUTPUT / "dead_relus_zeros.png", dpi=150)

# %% [markdown]
# On the left most outputs are zero within thirty steps, and behind the last ReLU all of them. On the right each layer
# keeps about half of them, and the loss goes to zero.
#
# ## What to try next
#
# - `make_net(nn.LeakyReLU)` with the sick learning rate. No unit dies, as there is a slope everywhere; the training is
#   rough all the same.
# - A warm-up of the learning rate, which gives Adam's estimates time: does 0.03 work with it?
# - In a loop of your own, `Recorder(net, "run")` writes the history to a file and warns of dead units by itself.
