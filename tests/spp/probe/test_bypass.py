"""Calls that are no training steps: transforms of functions, tracing, scripting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from sppbench.spp.probe.bypass import TRACED, TRANSFORMED
from sppbench.spp.probe.probe import SignalProbe
from tests.spp.reference import same, seeded


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def per_sample_gradients(model: nn.Module) -> Any:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x[None],)).square().mean()

    return vmap(grad(loss), in_dims=(None, 0))({k: v.detach() for k, v in model.named_parameters()}, X)


def ensemble(model: nn.Module) -> Any:
    parameters, buffers = stack_module_state([seeded(mlp, 1), seeded(mlp, 2)])  # type: ignore[arg-type]
    return vmap(lambda p, b: functional_call(model, (p, b), (X,)))(parameters, buffers)


def fake(model: nn.Module) -> tuple[int, ...]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return tuple(model(mode.from_tensor(X)).shape)


CALLS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "vmap": (lambda model: vmap(model)(X), TRANSFORMED),
    "jacrev": (lambda model: jacrev(model)(X[0]), TRANSFORMED),
    "jacfwd": (lambda model: jacfwd(model)(X[0]), TRANSFORMED),
    "hessian": (lambda model: hessian(lambda x: model(x).square().sum())(X[0]), TRANSFORMED),
    "jvp": (lambda model: jvp(model, (X,), (X,)), TRANSFORMED),
    "vjp": (lambda model: vjp(model, X)[1](torch.ones(8, 3)), TRANSFORMED),
    "per-sample gradients": (per_sample_gradients, TRANSFORMED),
    "ensemble": (ensemble, TRANSFORMED),
    "make_fx": (lambda model: make_fx(model)(X)(X), TRACED),
    "export": (lambda model: torch.export.export(model, (X,)).module()(X), TRACED),
    "trace": (lambda model: torch.jit.trace(model, X)(X), TRACED),
    "fake": (fake, TRACED),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_nothing_is_recorded_in_a_transform_and_its_values_stay(call: str) -> None:
    function, reason = CALLS[call]
    model = seeded(mlp)
    expected = function(model)
    with SignalProbe(model) as probe:
        found = function(model)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert probe.skipped == dict.fromkeys(("0", "1", "2"), reason)
        model(X).square().mean().backward()
        after = probe.collect()
    with SignalProbe(model) as probe:
        model(X).square().mean().backward()
        same(after, probe.collect())


@pytest.mark.parametrize("is_grads_batched", [False, True])
def test_batched_gradients_leave_a_reason(is_grads_batched: bool) -> None:
    model = seeded(mlp)
    with SignalProbe(model) as probe:
        output = model(X).sum(0)
        if is_grads_batched:
            found = torch.autograd.grad(output, [model[0].weight], torch.eye(3), is_grads_batched=True)[0]
        else:
            found = vmap(lambda v: torch.autograd.grad(output, [model[0].weight], v)[0])(torch.eye(3))
        assert set(probe.skipped) == {"0", "1", "2"}
        assert set(probe.collect().signal) == {"activation", "parameter"}
    assert torch.allclose(
        found, jacrev(lambda w: functional_call(model, {"0.weight": w}, (X,)).sum(0))(model[0].weight)
    )


def test_transform_inside_of_a_graph() -> None:
    torch.compiler.reset()
    model = seeded(mlp)
    expected = per_sample_gradients(model)
    with SignalProbe(model) as probe:
        found = torch.compile(lambda: per_sample_gradients(model), backend="aot_eager", fullgraph=True)()
        assert probe.skipped == dict.fromkeys(("0", "1", "2"), TRANSFORMED)
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()
