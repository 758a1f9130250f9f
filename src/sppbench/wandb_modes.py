"""The modes of Weights & Biases that runs, tables and figures can be logged in."""

WANDB_MODES = ("online", "offline", "disabled", "shared")
