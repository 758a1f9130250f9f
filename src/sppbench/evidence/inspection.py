"""What the last weights of finished runs show: ``sppbench inspect outputs/figures``.

Beside each ``last.ckpt`` of a run that came to its end it leaves ``inspection.json``; nothing else is changed. Numbers
that are not finite are null. Runs of others are safe to inspect: weights are read without code, and only nets and data
sets of sppbench are made, unless the caller says that the runs are trusted.

- ``steps``: Optimizer steps that the weights have behind them.
- ``batch_norm``: For each batch normalization, whether its output has the moments that it should have. The net runs in
  training mode on the first batch of the run's own training data; moments are taken in float64 from the layer's float32
  input and output. For a channel whose input has the (biased) variance v they should be the mean β and the variance
  s² = γ²·v/(v + ε).

  - ``channels``: their number.
  - ``mean_error``: the largest |mean(y) − β| / s over the channels.
  - ``variance_error``: the largest |var(y) − s²| / s² over the channels.
  - ``normalized_variance``: smallest and largest v/(v + ε), the variance that the normalized input has before scale and
    shift. It is 1 only where v is much larger than ε.
  - ``unresolved``: channels where s is below 2⁻¹⁴ of the largest |y|, as where γ is (nearly) 0. Float32
    separates outputs of that size to 2⁻²⁴ of it at best, so that rounding alone may exceed 1e-3 of s. Their errors are
    divided by that threshold, and by its square, in place of s and s²; where γ = β = 0 they are 0.

- ``moved``: For each parameter, how far training has moved it from its initial value, which is drawn again from the
  run's configuration and seed. ``absolute``: root mean square of the change; ``relative``: the same over the root mean
  square of the initial value, null where that is 0.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppbench.errors import UserError
from sppbench.files import write_text
from sppbench.run.results import read_result
from sppbench.stored_files import read_yaml

if TYPE_CHECKING:
    from torch import Tensor, nn

_FINAL = ("completed", "diverged")
_RESOLUTION = 2.0**-14
# What conf/model and conf/data name; none of them runs code or writes outside the folder of its data.
SAFE_TARGETS = (
    *("sppbench.models.FFNN", "sppbench.models.CNN", "sppbench.models.EfficientNet"),
    *("sppbench.models.RegularizedEfficientNet", "sppbench.models.UNEfficientNet", "sppbench.models.NFEfficientNet"),
    *("sppbench.models.NFEfficientNetVariant", "sppbench.models.with_stem_stride"),
    *("sppbench.data.CIFAR100", "sppbench.data.Digits", "sppbench.data.Synthetic"),
)


class InspectionError(UserError):
    """A run that cannot be inspected, or no runs at all."""


def find_runs(directory: Path) -> list[Path]:
    """The directories of all runs under a directory.

    Raises:
        InspectionError: It is no directory, or there are none.
    """
    if not directory.is_dir():
        raise InspectionError(f"{directory} is not a directory")
    runs = sorted({file.parent for name in ("result.json", "last.ckpt") for file in directory.rglob(name)})
    if not runs:
        raise InspectionError(f"no runs in {directory}: looked for result.json and last.ckpt")
    return runs


def inspect_run(run: Path, data_root: Path | None = None, trusted: bool = False) -> str:
    """Inspects a finished run unless its weights have been inspected already; returns a line on it.

    Args:
        run: Its directory.
        data_root: As in `inspect`.
        trusted: As in `inspect`.

    Raises:
        InspectionError: It cannot be inspected.
    """
    try:
        return _inspect_if_needed(run, data_root, trusted)
    except Exception as error:  # damage can surface as nearly anything
        from sppbench.run.error_text import one_line

        # Of data that is missing a list follows that does not fit here: --data-root is the way out.
        raise InspectionError(one_line(error).removesuffix(" Ways out:")) from error


def _inspect_if_needed(run: Path, data_root: Path | None, trusted: bool) -> str:
    if not (run / "result.json").exists():
        return "not finished"
    result = read_result(run / "result.json")
    if result.status not in _FINAL:
        return f"not finished ({result.status})"
    checkpoint, target = run / "last.ckpt", run / "inspection.json"
    if target.exists() and not (checkpoint.exists() and checkpoint.stat().st_mtime > target.stat().st_mtime):
        return "inspected already"
    content = inspect(run, data_root, trusted)
    if content["steps"] != result.steps:
        raise ValueError(f"its checkpoint is from step {content['steps']}, its result from step {result.steps}")
    write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return _summary(content)


def inspect(run: Path, data_root: Path | None = None, trusted: bool = False) -> dict[str, Any]:
    """The content of a run's inspection.json, computed on the CPU from its configuration and checkpoint.

    Args:
        run: Its directory.
        data_root: Where the data is; by default where the run had it.
        trusted: Whether to make whatever the configuration names as net and data set, and so to run its code. By
            default only those in `SAFE_TARGETS` are made.

    Raises:
        Exception: Of any kind: a file is missing or damaged, weights and configuration do not fit, or the data cannot
            be had (it is needed for nets with batch normalization only, and never downloaded).
    """
    from omegaconf import OmegaConf

    from sppbench.run.assembly import make_data_and_net

    steps, weights = _read_checkpoint(run / "last.ckpt")
    config = read_yaml(run / "config.yaml")
    if not trusted:
        _refuse_other_targets({key: config.get(key) for key in ("data", "model")})
    cfg: Any = OmegaConf.create({str(key): value for key, value in config.items()})
    if "root" in cfg.data and data_root is not None:
        cfg.data.root = str(data_root)
    if "download" in cfg.data:
        cfg.data.download = False
    data, net = make_data_and_net(cfg)
    initial = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError("the weights in last.ckpt do not fit the net of config.yaml") from error
    return {
        "steps": steps,
        "batch_norm": batch_norm_errors(net, lambda: _first_batch(data)),
        "moved": {name: _moved(initial[name], trained.detach()) for name, trained in net.named_parameters()},
    }


def _refuse_other_targets(content: Any) -> None:
    """Refuses a part of a configuration that names anything else to be called than `SAFE_TARGETS`.

    Exact names, since a name such as sppbench.data.cifar100.os.system begins like one of ours; and no interpolation
    anywhere, since one could make up a name, or read variables of the environment.
    """
    if isinstance(content, dict):
        target = content.get("_target_")
        if "_target_" in content and target not in SAFE_TARGETS:
            raise ValueError(
                f"config.yaml names {target!r}, which is not part of sppbench: use --trusted only if you trust it"
            )
        for key, value in content.items():
            _refuse_other_targets([key, value])
    elif isinstance(content, list):
        for value in content:
            _refuse_other_targets(value)
    elif isinstance(content, str) and "${" in content:
        raise ValueError(f"config.yaml holds the interpolation {content!r}: use --trusted only if you trust it")


def _read_checkpoint(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The number of steps, and the state of the net."""
    import torch

    if not path.exists():
        raise FileNotFoundError("it has no last.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"checksum of {damaged} does not match")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
        return int(checkpoint["global_step"]), state
    except Exception as error:
        raise ValueError(f"last.ckpt is damaged ({error})") from error


def _first_batch(data: Any) -> Tensor:
    data.prepare_data()
    data.setup()
    images: Tensor = next(iter(data.train_dataloader()))[0]
    return images


def batch_norm_errors(net: nn.Module, images: Callable[[], Tensor]) -> dict[str, dict[str, Any]]:
    """The part ``batch_norm`` of an inspection. The net is left in training mode, with other running statistics.

    Args:
        net: Any net.
        images: Gives the batch, and is called only if the net has batch normalizations.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, _BatchNorm)}
    found: dict[str, dict[str, Any]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = _errors(layer, inputs[0], output)

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        if layers:
            with torch.no_grad():
                net.train()(images())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _errors(layer: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Of one layer, with input and output (N, C, ...)."""
    import torch

    others = [axis for axis in range(x.ndim) if axis != 1]
    v = x.double().var(others, correction=0)
    variance, mean = torch.var_mean(y.double(), others, correction=0)
    gamma = torch.ones_like(v) if layer.weight is None else layer.weight.double()
    beta = torch.zeros_like(v) if layer.bias is None else layer.bias.double()
    normalized = v / (v + layer.eps)
    s = gamma.abs() * normalized.sqrt()
    threshold = _RESOLUTION * y.abs().amax(others).double()
    scale = torch.maximum(s, threshold).clamp_min(torch.finfo(torch.float64).tiny)  # 0 / tiny where all is 0
    return {
        "channels": len(v),
        "mean_error": _finite(((mean - beta).abs() / scale).max()),
        "variance_error": _finite(((variance - s.square()).abs() / scale / scale).max()),
        "normalized_variance": [_finite(normalized.min()), _finite(normalized.max())],
        "unresolved": int((s < threshold).sum()),
    }


def _moved(initial: Tensor, trained: Tensor) -> dict[str, float | None]:
    change = (trained.double() - initial.double()).square().mean().sqrt()
    size = initial.double().square().mean().sqrt()
    return {"relative": _finite(change / size) if size > 0 else None, "absolute": _finite(change)}


def _finite(value: Tensor | float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _summary(content: dict[str, Any]) -> str:
    moved, layers = content["moved"].values(), content["batch_norm"].values()
    shares = [one["relative"] for one in moved if one["relative"] is not None]
    if any(one["absolute"] is None for one in moved):
        text = "weights are not finite"
    else:
        text = f"weights moved by {min(shares, default=0):.3g} to {max(shares, default=0):.3g} of their initial size"
    if not layers:
        return text
    ends = [_largest(layer[error] for layer in layers) for error in ("mean_error", "variance_error")]
    return f"{text}; {len(layers)} batch normalizations: mean within {ends[0]}, variance within {ends[1]}"


def _largest(values: Iterable[float | None]) -> str:
    found = [math.inf if value is None else value for value in values]
    return f"{max(found):.2g}"
