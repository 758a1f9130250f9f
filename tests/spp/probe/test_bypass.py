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
from torch.jit._script import RecursiveScriptModule

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


# -- torch.jit --------------------------------------------------------------------------------------------------------


def with_middle(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), middle, nn.Linear(6, 2))


def middle() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def hooks_of(model: nn.Module) -> list[Any]:
    modules = [module for module in model.modules() if not isinstance(module, RecursiveScriptModule)]
    return [
        hook for module in modules for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_child_is_skipped_by_name_and_the_rest_recorded() -> None:
    model = with_middle(torch.jit.script(middle()))
    with SignalProbe(model) as probe:
        model(X).square().mean().backward()
        frame = probe.collect()
    assert list(frame.layer[frame.signal == "gradient"]) == ["0", "2"]
    assert list(frame.layer[frame.signal == "parameter"]) == ["0", "1.0", "2"]
    assert probe.skipped == {"1": "torch.jit.script has compiled it: it takes no hooks"}
    assert not hooks_of(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_traced_child_is_one_layer() -> None:
    inner = seeded(middle)
    model, plain = (
        seeded(lambda: with_middle(torch.jit.trace(inner, torch.ones(8, 6)))),
        seeded(lambda: with_middle(inner)),
    )
    frames = []
    for one, layers in ((model, None), (plain, ["0", "1", "2"])):
        with SignalProbe(one, layers, signals=("activation", "gradient")) as probe:
            one(X).square().mean().backward()
            frames.append(probe.collect().assign(kind=""))
            assert not probe.skipped
    same(*frames)
    with SignalProbe(model, ["0", "1.1"]) as probe:
        model(X).square().mean().backward()
        probe.collect()
    assert probe.skipped == {"1.1": "it runs inside 1, which torch.jit has compiled"}


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*no layer ran")
def test_a_scripted_model_has_its_weights_recorded() -> None:
    model = torch.jit.script(mlp())
    with SignalProbe(model) as probe:
        model(X).square().mean().backward()
        assert set(probe.collect().layer) == {"0", "2"}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripting_with_a_probe_attached_says_what_to_do() -> None:
    model = mlp()
    with SignalProbe(model), pytest.raises(AttributeError, match="while a probe is attached to it: close the probe"):
        torch.jit.script(model)
    torch.jit.script(model)


def test_a_probe_that_cannot_be_made_leaves_no_hooks() -> None:
    class Refuses(nn.Linear):
        def register_forward_hook(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no hooks")

    model = with_middle(Refuses(6, 6))
    with pytest.raises(RuntimeError, match="no hooks"):
        SignalProbe(model)
    assert not hooks_of(model)
