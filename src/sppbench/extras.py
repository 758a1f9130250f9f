"""The extras: packages that ``pip install sppbench`` does not bring, and the line that says how to get them."""

from __future__ import annotations

from importlib.util import find_spec

from sppbench.errors import UserError

# Of each extra, the packages that are imported: what Python calls them, and what people do.
PACKAGES: dict[str, dict[str, str]] = {
    "lightning": {"lightning": "Lightning"},
    "transformers": {"transformers": "transformers"},
    "dashboard": {"wandb_workspaces": "wandb-workspaces"},
    "benchmark": {
        "hydra": "Hydra",
        "lightning": "Lightning",
        "wandb": "W&B",
        "torchvision": "torchvision",
        "torchmetrics": "TorchMetrics",
        "tensorboard": "TensorBoard",
        "sklearn": "scikit-learn",
        "omegaconf": "OmegaConf",
        "yaml": "PyYAML",
        "plotly": "Plotly",
        "jinja2": "Jinja",
        "filelock": "filelock",
        "psutil": "psutil",
        "tqdm": "tqdm",
    },
}
_NAMED = 4  # of those that are missing


class MissingExtra(UserError, ImportError):
    """A command or a class needs packages that are not installed; the message names them and the extra."""


def need(what: str, extra: str) -> None:
    """Checks that the packages of an extra are installed; none of them is imported.

    Args:
        what: What needs them, as the user calls it.
        extra: A key of `PACKAGES`.

    Raises:
        MissingExtra: One is not installed.

    Example:
        >>> need("train", "benchmark")
    """
    missing = [title for name, title in PACKAGES[extra].items() if find_spec(name) is None]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        raise MissingExtra(f'{what} needs {named}: pip install "sppbench[{extra}]"') from None
