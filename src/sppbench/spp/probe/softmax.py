"""Where modules compute attention visibly, and how the logits are seen there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_SOFTMAX: Final = "softmax"
_FUSED: Final = "scaled_dot_product_attention"
#: What only attention refers to; the first is that of transformers.
_OF_ATTENTION: Final = {"eager_attention_forward", _FUSED}
_SOFTMAXES: Final = {F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax}
_MULTIHEAD: Final = inspect.signature(F.multi_head_attention_forward)
#: The names that a module's number of heads goes by.
_HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")

#: Takes what returns logits.
See = Callable[[Callable[[], Tensor]], None]


def may_attend(module: nn.Module) -> bool:
    """Whether the code of a module's class computes a softmax or attention; ``nn.MultiheadAttention`` is not asked."""
    if isinstance(module, nn.MultiheadAttention | nn.Softmax):
        return False
    return bool(_names(type(module)) & {_SOFTMAX, *_OF_ATTENTION})


def attends(module: nn.Module) -> bool:
    """Whether a module is one of attention, also if it has shown no softmax."""
    return isinstance(module, nn.MultiheadAttention) or bool(_names(type(module)) & _OF_ATTENTION)


def heads_of(module: nn.Module) -> int | None:
    """The number of heads that a module says that it has."""
    found = (getattr(module, name, None) for name in _HEADS)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def _names(kind: type) -> set[str]:
    """What the methods of a class of modules refer to."""
    methods = (
        inspect.unwrap(method)
        for one in kind.__mro__
        if issubclass(one, nn.Module) and one is not nn.Module
        for method in vars(one).values()
        if inspect.isfunction(method)
    )
    return {name for method in methods for code in _codes(method.__code__) for name in code.co_names}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


class Watch(TorchFunctionMode):
    """Looks at the functions of torch that one module calls while it is on.

    Each function runs as it would without, before anything is read.

    Args:
        layer: The name of the module.
        see: Called with what returns the logits of an attention, (N, H, L, S) or (N·H, L, S); without gradients.
        is_innermost: Whether no module inside this one is being watched.

    Attributes:
        has_seen: Whether it has called a softmax over keys.
        is_fused: Whether it has called a fused kernel.
    """

    def __init__(
        self, layer: str, see: Callable[[Callable[[], Tensor]], None], is_innermost: Callable[[Watch], bool]
    ) -> None:
        super().__init__()
        self.layer, self._see, self._is_innermost = layer, see, is_innermost
        self.has_seen = self.is_fused = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and reads what it was given."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function in _SOFTMAXES:
            x, dim = args[0] if args else kwargs["input"], kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(x, Tensor) and x.ndim in (3, 4) and dim in (-1, x.ndim - 1) and self._is_innermost(self):
                self._read(lambda: x)
        elif function is F.scaled_dot_product_attention:
            self.is_fused |= self._is_innermost(self)
        elif function is F.multi_head_attention_forward and self._is_innermost(self):
            self._read(lambda: multihead_logits(*args, **kwargs))
        return result

    def _read(self, logits: Callable[[], Tensor]) -> None:
        self.has_seen = True
        # Without modes: that of selective checkpointing, for one, counts what runs.
        with torch.no_grad(), _disable_current_modes():
            self._see(logits)


class _Logits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps what the last softmax was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Tensor | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function."""
        if function is torch.ops.aten._softmax.default:
            self.found = args[0]
        return function(*args, **(kwargs or {}))


def multihead_logits(*args: Any, **kwargs: Any) -> Tensor:
    """The logits, (N·H, L, S), of a call of ``torch.nn.functional.multi_head_attention_forward``, by a second one that
    computes weights, which the first need not have done; it draws no random numbers."""
    call = _MULTIHEAD.bind(*args, **kwargs)
    call.arguments |= {"need_weights": True, "training": False}
    logits = _Logits()
    with logits:
        F.multi_head_attention_forward(*call.args, **call.kwargs)
    assert logits.found is not None
    return logits.found
