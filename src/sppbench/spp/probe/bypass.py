"""Calls of modules that are no part of a training step, although the modules are in training mode."""

from __future__ import annotations

import torch

TRANSFORMED = "calls under a transform of torch.func (vmap, grad, jacrev, ...) are not recorded"
TRACED = "calls that torch.jit.trace, torch.export or a fake mode makes are not recorded"

_MODES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def why_bypassed() -> str | None:
    """Why what runs now must not be read: its tensors have more axes than they show, or no numbers in them; None for
    what is an ordinary call. It is asked at every call of every layer."""
    if is_transformed():
        return TRANSFORMED
    if torch.compiler.is_compiling():  # the probe is traced with the module
        return TRACED if torch.compiler.is_exporting() else None
    if torch._C._get_tracing_state() is not None:
        return TRACED
    if torch._C._len_torch_dispatch_stack() and any(torch._C._get_dispatch_mode(mode) is not None for mode in _MODES):
        return TRACED
    return None


# Dynamo enters the transforms that it traces, and asks while it does.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_transformed() -> bool:
    """Whether this runs under a transform of ``torch.func``."""
    return torch._C._functorch.maybe_current_level() is not None
