# %% [markdown]
# # A normalizer-free net of your own in the benchmark
#
# You have an idea for a net without batch normalization. Is it any good beside the nets of the study, with the same
# data, batches, optimizer and seed? You need one file with a plain `nn.Module`, one yaml, and one command. Both files
# stay in a folder of yours, outside of sppbench.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from sppbench.spp import epoch_mean, read_history

TINY = bool(os.environ.get("SPPBENCH_TINY"))  # a run of seconds: enough to see that the code works
OUTPUT = Path("outputs/examples")
FOLDER = OUTPUT / "own_net"
(FOLDER / "conf" / "model").mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The idea
#
# Residual blocks, x + g · f(x), in which g is a learned number (De & Smith 2020), 0.2 at first as in NF-ResNets (Brock
# et al. 2021). By He's initialization f(x) is as large as x, so each block adds g² = 4 % to the second moment: the
# signal neither fades nor explodes with depth.

# %%
(FOLDER / "mynet.py").write_text("""
import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.relu1, self.conv1 = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        self.relu2, self.conv2 = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.conv2(self.relu2(self.conv1(self.relu1(x))))


class MyNet(nn.Sequential):
    def __init__(self, in_channels: int, num_classes: int, width: int, blocks: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1)]
        for _ in range(2):
            layers += [*(Block(width) for _ in range(blocks)), nn.ReLU(), nn.Conv2d(width, width, 3, 2, padding=1)]
        super().__init__(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
""")

# %% [markdown]
# The yaml names the class and its arguments. What depends on the data set is taken from there.

# %%
(FOLDER / "conf" / "model" / "mynet.yaml").write_text("""
_target_: mynet.MyNet
in_channels: ${data.in_channels}
num_classes: ${data.num_classes}
width: 32
blocks: 3
""")

# %% [markdown]
# ## The run
#
# `--config-dir conf` adds your folder to the benchmark's own configurations, and `-m` runs all combinations of what has
# several values: here your net beside EfficientNet-B0 with batch normalization and the study's normalizer-free one, on
# scikit-learn's digits. On a command line it is
#
# ```bash
# python -m sppbench.train --config-dir conf -m model=mynet,efficientnet_bn,sn_efficientnet_mp data=digits
# ```

# %%
EPOCHS = 1 if TINY else 8
NETS = "mynet" if TINY else "mynet,efficientnet_bn,sn_efficientnet_mp"
command = [
    *(sys.executable, "-m", "sppbench.train", "--config-dir", "conf", "-m", f"model={NETS}", "data=digits"),
    *(f"trainer.max_epochs={EPOCHS}", "trainer=cpu", "logger=csv", "sweeps.name=mine", "overwrite=true"),
    *("data.image_size=16", "data.padding=1", "data.batch_size=64"),  # the digits have 8 x 8 pixels
]
if TINY:
    command += [f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    command += ["data.batch_size=16", "model.blocks=1", "model.width=8"]
done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
assert done.returncode == 0, done.stdout + done.stderr

# %% [markdown]
# A run leaves its metrics and its history in `outputs/mine/<net>/lr=<lr>/seed=<seed>`, and
# `sppbench table outputs/mine` makes a table of all of them.

# %%
runs = FOLDER / "outputs" / "mine"
for file in sorted(runs.rglob("result.json")):
    result = json.loads(file.read_text())
    print(
        f"{file.parents[2].name:18}: test accuracy {result['test']['accuracy']:.1f} % after {result['epochs']} epochs"
    )

# %% [markdown]
# The new net learns, and on these small images and in so few steps it is ahead. One seed and eight epochs say little,
# though; with `seed=868,67,472` the table has means and deviations. But the histories say something already.
#
# ## What one sees
#
# The second moment of the gradient at the output of each convolution, mean of the last epoch, from the first
# convolution to the last.

# %% alt="Gradients at the convolutions of three nets, from the first to the last, on a logarithmic axis"
figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
for file in sorted(runs.rglob("spp.parquet")):
    name = file.parents[2].name
    means = epoch_mean(read_history(file, signals="gradient"))
    convolutions = means[(means["epoch"] == EPOCHS - 1) & means["kind"].str.contains("Conv2d")].sort_values("depth")
    moments = convolutions["second_moment"].to_numpy()
    axes.plot([number / (len(moments) - 1) for number in range(len(moments))], moments, marker=".", label=name)
    print(
        f"{name:18}: the largest gradient is {moments.max() / moments.min():.1e} times the smallest, by second moment"
    )
axes.set(xlabel="place in the net: 0 is the first convolution, 1 the last", ylabel="second moment of the gradient")
axes.set_yscale("log")
axes.legend(fontsize="small")
figure.savefig(OUTPUT / "own_net.png", dpi=150)

# %% [markdown]
# Look at the shapes of the curves; how high each lies depends on the sizes of the outputs and on the loss.
#
# The new net's has three high points: its first, middle and last convolution, which are on the path of the skip
# connections. From the last to the first the gradient stays as large as it is. Inside the branches it is g² times as
# large, 4 % at first: the low points between them. Both EfficientNets go up and down within each block, by up to seven
# orders of magnitude with batch normalization, which scales gradients in each layer, and by up to five without it. Both
# learn as well: a step of Adam does not depend on the scale of a gradient.
#
# ## What to try next
#
# - `python -m sppbench look mynet.MyNet --help`: what does the net look like before any training?
# - Start `gain` at 0 (SkipInit). Adam moves it by about 0.001 a step: how many epochs does it lose?
# - `data=cifar100 data.root=path/to/cifar100`: the study's data, with the published values beside yours.
# - `model.width=64`: every argument in the yaml can be overridden, and swept.
