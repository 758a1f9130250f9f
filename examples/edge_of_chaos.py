# %% [markdown]
# # A deep net without normalization, at its edge of chaos
#
# How deep may a plain net be, without normalization and without skip connections? Poole et al. (2016) and Schoenholz
# et al. (2017) gave an answer that depends on two numbers only, the variances of weights and biases at initialization:
#
# - With **small weights** all inputs become the same on their way through the net, and gradients vanish: order.
# - With **large weights** the smallest differences grow, and gradients explode: chaos.
# - In between is an **edge**, where signals travel furthest, in both directions.
#
# With one forward and one backward pass the probe shows all of it.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from sppbench.spp import SignalProbe

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of a second: enough to see that the code works
OUTPUT = Path("outputs/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)
WIDTH, DEPTH, SAMPLES = (32, 12, 32) if TINY else (300, 60, 128)
BIAS_VARIANCE = 0.05
WEIGHT_VARIANCES = (1.0, 1.76, 3.0) if TINY else (1.0, 1.3, 1.5, 1.76, 2.0, 2.5, 3.0, 4.0)


def make_net(weight_variance: float, depth: int, width: int = WIDTH) -> nn.Sequential:
    """Layers of tanh; weights have the variance ``weight_variance / fan_in``."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (64, *[width] * (depth - 1)):
        linear = nn.Linear(inputs, width)
        nn.init.normal_(linear.weight, std=(weight_variance / inputs) ** 0.5)
        nn.init.normal_(linear.bias, std=BIAS_VARIANCE**0.5)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


# %% [markdown]
# ## Two numbers a layer
#
# *Forward*: are two inputs still told apart? The probe divides the second moment of an activation into the average
# channel squared mean (ACSM) and the average channel variance (ACV). If all samples have become the same, each channel
# is constant, and the ACSM is all there is. So ACSM over second moment is the mean correlation of two samples, except
# for the 1/N pairs of a sample with itself.
#
# *Backward*: by what factor does the gradient's second moment change from layer to layer? Theory calls it χ and says
# what it is: σ²_w · E[tanh'(√q z)²] with a normal z, where q is the second moment at which the net settles.


# %%
def look(weight_variance: float) -> tuple[pd.Series, pd.Series]:
    """Correlation of samples, and second moment of the gradient, by layer; of one forward and backward pass."""
    net = make_net(weight_variance, DEPTH)
    with SignalProbe(net) as probe:
        outputs = net(torch.randn(SAMPLES, 64))
        (outputs * torch.randn_like(outputs)).sum().backward()
        frame = probe.collect()
    layers = frame[frame["kind"] == "Linear"].assign(number=lambda rows: rows["depth"] // 2 + 1).set_index("number")
    activation, gradient = (layers[layers["signal"] == signal] for signal in ("activation", "gradient"))
    with_itself = activation["acsm"] / activation["second_moment"]
    return (with_itself - 1 / SAMPLES) / (1 - 1 / SAMPLES), gradient["second_moment"]


NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(201)
NODE_WEIGHTS /= NODE_WEIGHTS.sum()


def theory(weight_variance: float) -> float:
    """χ of a tanh net (Schoenholz et al. 2017, equations 3 and 5)."""
    q = 1.0
    for _ in range(1000):
        q = weight_variance * float(NODE_WEIGHTS @ np.tanh(q**0.5 * NODES) ** 2) + BIAS_VARIANCE
    return weight_variance * float(NODE_WEIGHTS @ np.cosh(q**0.5 * NODES) ** -4.0)


def measured(gradient: pd.Series) -> float:
    """χ from the slope of the logarithm, away from the first layers, where q has not settled yet."""
    settled = gradient[gradient.index > DEPTH // 6]
    return float(np.exp(-np.polyfit(settled.index, np.log(settled), 1)[0]))


seen = {variance: look(variance) for variance in WEIGHT_VARIANCES}
rows = [
    {
        "weight variance": variance,
        "χ measured": measured(gradient),
        "χ in theory": theory(variance),
        "correlation at the end": correlation.iloc[-1],
        "gradient, first / last layer": gradient.iloc[0] / gradient.iloc[-1],
    }
    for variance, (correlation, gradient) in seen.items()
]
print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))

# %% [markdown]
# The measured χ agrees with theory to about one percent. It passes 1 near a weight variance of 1.76: that is the edge.
#
# ## What one sees

# %% alt="Correlation of samples, and gradients, by layer; depth scale by variance of the weights, highest at 1.76"
figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for number, (variance, (correlation, gradient)) in enumerate(seen.items()):
    color = plt.cm.coolwarm(number / (len(seen) - 1))
    panels[0].plot(correlation.index, correlation, color=color, label=f"{variance:g}")
    panels[1].plot(gradient.index, gradient / gradient.iloc[-1], color=color, label=f"{variance:g}")
panels[0].set(title="forward: correlation of two samples", xlabel="layer", ylabel="correlation", ylim=(0, 1.03))
panels[1].set(title="backward: gradient over that at the end", xlabel="layer", ylabel="ratio of second moments")
panels[1].set_yscale("log")
panels[1].legend(title="weight variance", fontsize="small", title_fontsize="small", ncols=2, loc="lower right")
fine = np.linspace(WEIGHT_VARIANCES[0], WEIGHT_VARIANCES[-1], 20 if TINY else 200)
panels[2].plot(fine, [1 / abs(np.log(theory(variance))) for variance in fine], color="gray", label="theory")
for number, (variance, (_, gradient)) in enumerate(seen.items()):
    depth_scale = 1 / abs(np.log(measured(gradient)))
    panels[2].plot(variance, depth_scale, "o", color=plt.cm.coolwarm(number / (len(seen) - 1)))
panels[2].set(title="how far gradients reach", xlabel="weight variance", ylabel="layers per factor e", yscale="log")
panels[2].legend(fontsize="small")
figure.savefig(OUTPUT / "edge_of_chaos.png", dpi=150)

# %% [markdown]
# *Left.* The blue nets forget: after a few dozen layers nearly every pair of inputs has a correlation of 1, and no
# classifier behind them can tell two images apart. The red nets settle far below 1: in them, inputs that belong
# together end as far apart as any others.
#
# *Middle.* Each curve is nearly straight on the logarithmic axis: a fixed factor a layer, which adds up to many orders
# of magnitude at the first layer.
#
# *Right.* The number of layers over which the gradient changes by a factor of e. It has its peak at the edge.
#
# ## Does it predict what trains?
#
# Schoenholz et al. found that nets train up to about six depth scales. So we train nets of several depths on digits for
# the same few steps, and look at the share of right answers.

# %%
DEPTHS = (2, 4) if TINY else (5, 10, 20, 40)
STEPS = 2 if TINY else 150
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
labels = torch.tensor(digits.target)


def accuracy(weight_variance: float, depth: int) -> float:
    """Share of right answers on the training images after some steps of SGD with momentum."""
    net = make_net(weight_variance, depth, width=100)
    net.append(nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


trained = pd.DataFrame(
    [[accuracy(variance, depth) for variance in WEIGHT_VARIANCES] for depth in DEPTHS],
    index=pd.Index(DEPTHS, name="depth"),
    columns=WEIGHT_VARIANCES,
)
print(trained.to_string(float_format="{:.0%}".format))

# %% [markdown]
# With 5 layers every net learns. With 40, the net at the edge gets nearly all images right, and those with the smallest
# and the largest weights are not far from guessing, which is 10 %. The deeper the net, the narrower the range of weight
# variances that trains, and it closes around the edge.
#
# ## The cure, and what to try next
#
# - Choose the weight variance for which χ is 1. For ReLU without biases it is 2: He's initialization is the edge of
#   chaos.
# - `expected_of_net(net, inputs, frame)` draws what theory expects of any net, not only of chains of tanh.
# - Replace `nn.Tanh` by `nn.ReLU` or `nn.SELU`: where is the edge, and is there chaos at all?
# - Add a skip connection. How does χ change with the weight of the branch?
