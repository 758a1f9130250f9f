"""Finds a net by a short name: of timm, torchvision, transformers, this benchmark, or a class of one's own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sppbench.errors import UserError
from sppbench.extras import need
from sppbench.files import config_directory
from sppbench.run.error_text import one_line

FORMS = "timm:NAME, torchvision:NAME, hf:PATH/TO/config.json, sppbench:NAME or PACKAGE.MODULE.NET"

# What timm and torchvision normalize images with, where a net says nothing else.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class LookError(UserError):
    """A net cannot be found, built or called; the message says which and why."""


@dataclass(frozen=True)
class Net:
    """A net as its library builds it, with random weights.

    Attributes:
        name: What the user called it.
        module: The net.
        shape: Of one input, without the batch, as far as its library says; of tokens (length,); None: unknown.
        tokens: How many tokens there are, if it takes these.
        arguments: The names of those that take the inputs; none: the first one does.
        normalization: Mean and standard deviation, by channel, that images are normalized with.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None = None
    tokens: int | None = None
    arguments: tuple[str, ...] = ()
    normalization: tuple[Sequence[float], Sequence[float]] = IMAGENET


def find_net(name: str) -> Net:
    """Builds the net that a name stands for.

    Args:
        name: See `FORMS`. A class or function of one's own is called without arguments; the current directory is
            looked into, too.

    Raises:
        LookError: There is none, its library is not installed, or it cannot be built.
    """
    library, colon, rest = name.partition(":")
    builders = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers, "sppbench": _sppbench}
    if not colon and "." not in name:
        raise LookError(f"{name!r} is not the name of a net; give {FORMS}")
    if colon and library not in builders:
        raise LookError(f"{library!r} is not a library that sppbench knows; give {FORMS}")
    build: Callable[[str], Net] = builders[library] if colon else _own
    try:
        return build(rest if colon else name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name in ("timm", "torchvision", "transformers"):
            raise LookError(f"{name} needs {error.name}: pip install {error.name}") from error
        raise LookError(f"{name} cannot be built: {one_line(error)}") from error
    except Exception as error:
        raise LookError(f"{name} cannot be built: {one_line(error)}") from error


def _timm(name: str) -> Net:
    import timm

    if not timm.is_model(name):
        raise LookError(_unknown("timm", name, timm.list_models()))
    module = timm.create_model(name, pretrained=False)
    about = module.pretrained_cfg
    normalization = about.get("mean", IMAGENET[0]), about.get("std", IMAGENET[1])
    return Net(f"timm:{name}", module, tuple(about["input_size"]), normalization=normalization)


def _torchvision(name: str) -> Net:
    import torchvision

    if name not in torchvision.models.list_models():
        raise LookError(_unknown("torchvision", name, torchvision.models.list_models()))
    without = {"weights": None}
    if "weights_backbone" in torchvision.models.get_model_builder(name).__annotations__:
        without["weights_backbone"] = None
    size = 299 if name == "inception_v3" else 224
    return Net(f"torchvision:{name}", torchvision.models.get_model(name, **without), (3, size, size))


def _transformers(path: str) -> Net:
    file = Path(os.path.expanduser(path))  # noqa: PTH111 - unlike Path's it leaves ~nobody as it is
    if not file.exists():
        raise LookError(f"{file} does not exist; a net from transformers is given by its config.json")
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(file))
    named = [getattr(transformers, one, None) for one in config.architectures or ()]
    kind = next((one for one in named if one is not None), None)
    module = kind(config) if kind is not None else transformers.AutoModel.from_config(config)
    arguments: tuple[str, ...] = (module.main_input_name,)
    text = config.get_text_config()
    if arguments == ("pixel_values",):
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return Net(f"hf:{path}", module, (config.num_channels, height, width), arguments=arguments)
    if arguments != ("input_ids",):
        return Net(f"hf:{path}", module, arguments=arguments)
    if config.is_encoder_decoder:
        arguments = ("input_ids", "decoder_input_ids")
    length = min(128, getattr(text, "max_position_embeddings", None) or 128)
    return Net(f"hf:{path}", module, (length,), text.vocab_size, arguments)


def _sppbench(name: str) -> Net:
    need(f"sppbench:{name}", "benchmark")
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    folder = config_directory() / "model"
    if not (folder / f"{name}.yaml").exists():
        raise LookError(_unknown("sppbench", name, sorted(path.stem for path in folder.glob("*.yaml"))))
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("train", [f"model={name}", "name=look"])
    return Net(f"sppbench:{name}", instantiate(config.model), (3, 32, 32))


def _own(path: str) -> Net:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    module, _, name = path.rpartition(".")
    found: Any = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise LookError(f"{module} has no {name!r}")
    if not callable(found):
        raise LookError(f"{path} is {_a(found)}: give a class, a function or a net")
    net = found if isinstance(found, nn.Module) else found()
    if not isinstance(net, nn.Module):
        raise LookError(f"{path} gives {_a(net)}, which is not a torch.nn.Module")
    return Net(path, net)


def _a(thing: object) -> str:
    kind = type(thing).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _unknown(library: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    return f"{library} has no {name!r}" + (f"; there are: {', '.join(near)}" if near else "")
