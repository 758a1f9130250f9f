"""Why layers of a model are not recorded: what its modules say before it runs, and when it has run without them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from sppbench.spp.probe.layers import named_modules, parents, plain_name

NEVER = "never called in training mode"
NO_GRAD = f"{NEVER} with gradients enabled: only under torch.no_grad()"
USED = f"{NEVER}: its weights are used without it"
COMPILED = (
    "it ran in a graph that was compiled before the probe was attached (call torch.compiler.reset() after attaching "
    "it), or never in training mode"
)
UNREACHED = "no gradient reached its output"
WITHOUT_GRAPH = "its output has no gradient: it ran under torch.no_grad()"


def shared(model: nn.Module) -> dict[str, str]:
    """Second names of modules, and of weights, that go by another name already, and which that is."""
    modules: dict[int, str] = {}
    weights: dict[int, str] = {}
    found: dict[str, str] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        name = plain_name(full)
        if any(name.startswith(f"{second}.") for second in found):
            continue
        if id(module) in modules:
            found[name] = f"it is the same module as {modules[id(module)]}"
            continue
        modules[id(module)] = name
        for own, weight in module._parameters.items():
            if weight is None or "bias" in own:
                continue
            parameter = f"{name}.{own}" if name else own
            if id(weight) in weights:
                found[parameter] = f"it is the same weight as {weights[id(weight)]}"
            weights.setdefault(id(weight), parameter)
    return found


class NeverCalled:
    """Says why layers have not been called.

    Args:
        model: What the probe is attached to, without what is wrapped around it.
        is_compiled: Whether ``torch.compile`` was.
    """

    def __init__(self, model: nn.Module, is_compiled: bool) -> None:
        self._modules = named_modules(model)
        inside = {plain_name(full) for full, _ in model.named_modules() if full.split(".")[-1] == "_orig_mod"}
        calls = {name for name, module in self._modules.items() if module._compiled_call_impl is not None}
        self._compiled = inside | calls | ({next(iter(self._modules))} if is_compiled else set())

    def __call__(self, layer: str, called: Collection[str]) -> str:
        """The reason; ``called`` are the layers that were."""
        around = {*parents(self._modules, layer), layer} & self._compiled
        if around and not any({*parents(self._modules, one), one} & around for one in called if one in self._modules):
            return COMPILED
        gradients = [parameter.grad for parameter in self._modules[layer].parameters(recurse=False)]
        return USED if any(bool(one.any()) for one in gradients if one is not None) else NEVER
