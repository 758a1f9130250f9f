"""Each fault is found in a net that is broken on purpose, with layer, step and number, and healthy nets have none."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sppbench.spp import AttentionProbe, BatchNormProbe, HistoryError, SignalProbe, diagnose, epoch_mean
from sppbench.spp.diagnosis.finding import LIMITS, Finding
from sppbench.spp.names import SIGNALS
from tests.spp.diagnosis.recorded import history, mlp, resnet, transformer


def only(findings: list[Finding], kind: str) -> Finding:
    """The one finding of a kind, which has the limit and the source of its kind."""
    [one] = [finding for finding in findings if finding.kind == kind]
    assert (one.threshold, one.source) == LIMITS[kind]
    assert one.layer in one.text
    return one


def kinds(findings: list[Finding]) -> set[str]:
    return {one.kind for one in findings}


@pytest.mark.parametrize("steps", [1, 25])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (mlp, (32,)),
        (lambda: mlp(act=nn.SELU, gain=1.0), (32,)),
        (lambda: mlp(act=nn.Tanh, gain=1.0), (32,)),
        (transformer, (16,)),
        (resnet, (3, 8, 8)),
    ],
)
def test_healthy_nets_have_none(make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int) -> None:
    net = make()
    with BatchNormProbe(net) as probe:
        frame = history(net, steps, shape, blocks=not isinstance(net[1], nn.ReLU | nn.SELU | nn.Tanh))
        gains = probe.collect()
    assert list(diagnose(frame, net, batchnorm=gains)) == []


# -- dying and exploding -----------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_found_where_and_when_it_begins() -> None:
    net = mlp(3)
    good = history(net)
    with torch.no_grad():
        net[2].weight[0, 0] = math.nan
    frame = pd.concat([good, history(net).assign(step=1)])
    found = [one for one in diagnose(frame, net) if one.kind == "not finite" and one.signal == "activation"]
    assert [(one.layer, one.step, one.others) for one in found] == [("2", 1, ("3", "4", "5", "6"))]
    assert found[0].number == 16  # one channel of 16 samples


def test_gradients_that_overflow_for_a_few_steps_are_left_out() -> None:
    """As a loss scale does that begins too large."""
    frame = history(mlp(3), 10)
    gradient = frame["signal"].isin(["gradient", "parameter_gradient"])
    bad = frame.assign(second_moment=frame["second_moment"].where(~(gradient & (frame["step"] < 2)), np.inf))
    assert list(diagnose(bad)) == []
    worse = frame.assign(second_moment=frame["second_moment"].where(~(gradient & (frame["step"] < 6)), np.inf))
    assert kinds(diagnose(worse)) == {"not finite"}


def test_a_dead_layer_is_blamed_on_its_weights_or_its_nonlinearity() -> None:
    net = mlp(3)
    with torch.no_grad():
        net[2].weight *= 1e-20
    one = next(one for one in diagnose(history(net), net) if one.kind == "dead" and one.signal == "activation")
    assert (one.layer, one.step, one.others) == ("2", 0, ("3", "4", "5"))
    assert "the scale of its weights" in one.text

    net = mlp(3)
    net[2].bias = nn.Parameter(torch.full((32,), -100.0))
    found = diagnose(history(net), net)
    one = next(one for one in found if one.kind == "dead" and one.signal == "activation")
    assert (one.layer, one.number) == ("3", 0)
    assert "the nonlinearity (ReLU) passes on nothing of 2" in one.text
    assert "mean is -1e+02" in one.text
    # Backwards: 4, without bias, gives zeros as well, at which the slope of ReLU is zero.
    one = next(one for one in found if one.kind == "dead" and one.signal == "gradient")
    assert (one.layer, one.others) == ("4", ("3", "2", "1", "0"))
    assert "(here 5, ReLU)" in one.text


def test_branches_that_begin_at_zero_are_not_dead() -> None:
    net = transformer()
    for block in net[1:5]:
        nn.init.zeros_(block.mlp[2].weight)
        nn.init.zeros_(block.mlp[2].bias)
    frame = history(net, 3, (16,), blocks=True)
    for some in (frame, frame[frame["step"] == 0]):
        assert list(diagnose(some, net)) == []
    # Without a weight that is zero, zeros are a fault.
    assert "dead" in kinds(diagnose(frame[(frame["signal"] != "parameter") & (frame["step"] == 0)]))


@pytest.mark.parametrize("act", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("given", [True, False])
def test_a_signal_that_vanishes_layer_by_layer_is_blamed_on_the_weights(act: type[nn.Module], given: bool) -> None:
    """Weights of mean square 0.1/fan-in: each layer passes on a tenth of a second moment, and ReLU a half of that."""
    net = mlp(12, width=64, act=act, gain=0.1)
    found = [one for one in diagnose(history(net, shape=(64,)), net if given else None) if one.kind == "vanishing"]
    one = next(one for one in found if one.signal == "activation")
    factor = 0.1 / (2 if act is nn.ReLU else 1)
    assert one.number == pytest.approx(factor**11, rel=0.99)
    assert one.number < one.threshold
    assert one.layer == "4"  # where a hundredth is left
    needed = 2 if act is nn.ReLU else 1
    match = re.search(r"the cause is the scale of the weights, whose factor should be about ([\d.]+)$", one.text)
    assert match is not None
    assert float(match[1]) == pytest.approx(needed, rel=0.2)
    assert ("(fan-in times mean square: 0.1)" in one.text) == given


def test_a_signal_that_vanishes_by_the_nonlinearity() -> None:
    class Shrink(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.1

    net = mlp(12, act=Shrink, gain=1.0)
    one = next(one for one in diagnose(history(net), net) if one.signal == "activation")
    assert one.kind == "vanishing"
    assert "the nonlinearity is the cause" in one.text


def test_a_signal_that_is_lost_at_one_layer() -> None:
    net = mlp(4)
    with torch.no_grad():
        net[2].weight *= 1e-5
    one = next(one for one in diagnose(history(net, lr=0.0), net) if one.signal == "activation")
    assert (one.kind, one.layer) == ("vanishing", "2")
    assert one.number == pytest.approx(2e-10, rel=0.5)
    assert "their scale is the cause" in one.text
    net[4].bias = nn.Parameter(torch.ones(32))  # which brings back a signal, but not what was lost
    assert ("vanishing", "2") in {(one.kind, one.layer) for one in diagnose(history(net, lr=0.0), net)}
    net[3] = nn.LayerNorm(32, eps=0)  # which sets the scale anew
    assert list(diagnose(history(net), net)) == []


@pytest.mark.parametrize("signal", ["activation", "gradient"])
def test_a_signal_that_explodes_layer_by_layer(signal: str) -> None:
    net = mlp(12, gain=20.0)
    one = next(one for one in diagnose(history(net), net) if one.signal == signal)
    assert one.kind == "exploding"
    assert one.number == pytest.approx(10.0**11, rel=0.9)
    assert one.layer in (("4", "6") if signal == "activation" else ("18", "16"))  # where it is 100 times as large


def test_a_gradient_that_explodes_block_by_block() -> None:
    """Batch normalization behind ReLU: π/(π - 1) a layer (Yang et al. 2019)."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(60)]
    net = nn.Sequential(*blocks)
    with SignalProbe(net) as probe:
        net(torch.randn(64, 64)).square().sum().backward()
        frame = probe.collect()
    [one] = diagnose(frame, net)
    assert (one.kind, one.signal) == ("exploding", "gradient")
    assert one.number ** (1 / 59) == pytest.approx(math.pi / (math.pi - 1), rel=0.1)


def test_a_signal_that_is_about_to_overflow() -> None:
    net = mlp(3)
    with torch.no_grad():
        net[2].weight *= 1e10
    one = next(one for one in diagnose(history(net), net) if one.kind == "overflowing")
    assert (one.layer, one.signal) == ("2", "activation")


# -- nonlinearities ----------------------------------------------------------------------------------------------------


def test_gates_that_are_saturated() -> None:
    for act, slope in ((nn.Tanh, lambda y: 1 - y**2), (nn.Sigmoid, lambda y: 4 * y * (1 - y))):
        net = mlp(3, act=act, gain=1.0)
        with torch.no_grad():
            net[2].weight *= 100
        y: list[Tensor] = []
        net[3].register_forward_hook(lambda module, args, output, y=y: y.append(output.detach().double()))
        one = only(diagnose(history(net), net), "saturated")
        assert (one.layer, one.others) == ("3", ())
        assert one.number == pytest.approx(float(slope(y[0]).mean()), abs=1e-6)  # float32 sums


def test_selu_at_its_floor() -> None:
    net = mlp(3, act=nn.SELU, gain=1.0)
    net[2].bias = nn.Parameter(torch.full((32,), -20.0))
    one = only(diagnose(history(net), net), "at its floor")
    assert (one.layer, one.number) == ("3", pytest.approx(1.0, abs=1e-6))


def test_attention_that_looks_at_one_key() -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(4, 6, 8)
    frames = []
    with AttentionProbe(net, multihead=True) as probe:
        for scale in (1.0, 1000.0, 1000.0):
            net(scale * x, scale * x, x)[0].sum().backward()
            frames.append(probe.collect())
    signals = history(mlp(2))
    assert list(diagnose(signals, attention=frames[0])) == []
    one = only(diagnose(signals, attention=pd.concat(frames)), "collapsed attention")
    assert (one.layer, one.step) == ("MultiheadAttention", 1)
    assert one.number < 0.1


def test_dead_units_are_told_from_sparse_ones() -> None:
    def net_with(bias: Tensor) -> nn.Sequential:
        net = mlp(2, width=64, gain=2.0)
        net[2].bias = nn.Parameter(bias)
        return net

    dead = torch.full((64,), -100.0)
    dead[:4] = 0
    one = only(diagnose(history(net_with(dead), shape=(64,), batch=256)), "dead units")
    assert one.layer == "3"
    assert one.number == pytest.approx(1 - 0.5 * 4 / 64, abs=0.02)
    # All units give zero as often: none is dead, also where a batch is so small that many seem to be.
    for batch in (256, 8):
        frame = history(net_with(torch.full((64,), -2.5)), shape=(64,), batch=batch)
        zeros = frame.loc[(frame["layer"] == "3") & (frame["signal"] == "activation"), "zeros"]
        assert 0.9 < float(zeros.iloc[0]) < 1
        assert list(diagnose(frame)) == []


# -- weights and their gradients ---------------------------------------------------------------------------------------


def test_updates_that_are_too_large_or_too_small() -> None:
    one = only(diagnose(history(mlp(3), 12, lr=0.1)), "large update")
    assert (one.layer, len(one.others)) == ("6", 3)
    assert one.number == pytest.approx(0.1 * math.sqrt(3 * 32), rel=0.1)  # Adam's first step is the learning rate
    assert list(diagnose(history(mlp(3), 4, lr=0.1))) == []  # too few steps to say
    found = diagnose(history(mlp(3), 12, optimizer=torch.optim.SGD, lr=1e-5))
    assert {"0", "2", "4"} <= {(one := only(found, "small update")).layer, *one.others}
    assert "raise its learning rate" in found[0].text


def test_a_weight_that_the_optimizer_does_not_have_is_found_and_a_frozen_one_is_not() -> None:
    net = mlp(3)
    some = lambda parameters, lr: torch.optim.AdamW([*parameters][1:], lr=lr)  # noqa: E731
    one = only(diagnose(history(net, 12, optimizer=some)), "small update")
    assert (one.layer, one.number, one.others) == ("0", 0, ())
    assert "is it in the optimizer" in one.text
    frozen = mlp(3)
    frozen[0].requires_grad_(False)
    assert list(diagnose(history(frozen, 12, optimizer=some))) == []


def test_gradients_that_underflow_in_half_precision() -> None:
    net = mlp(3).to(torch.float16)
    with SignalProbe(net, signals=("activation", "gradient")) as probe:
        (net(torch.randn(16, 32, dtype=torch.float16)).float().sum() * 1e-7).backward()
        frame = probe.collect()
    one = only(diagnose(frame, net), "underflow")
    assert one.signal == "gradient"
    assert one.number == pytest.approx(1.0)  # 1e-7 is below 2⁻¹⁴, as all that follows


def test_gradients_below_the_epsilon_of_adam() -> None:
    net = mlp(3)
    frames = []
    with SignalProbe(net, signals=SIGNALS) as probe:
        for _ in range(12):
            net.zero_grad()
            (net(torch.randn(16, 32)).mean() * 1e-8).backward()
            frames.append(probe.collect())
    one = only(diagnose(pd.concat(frames)), "below epsilon")
    assert one.number < 1e-8
    assert len(one.others) == 3


def test_batch_normalization_of_inputs_that_hardly_vary() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, eps=1e-12), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    with torch.no_grad():
        net[0].weight *= 1e-3
    with BatchNormProbe(net) as probe, SignalProbe(net) as signals:
        (net(torch.randn(64, 8)) * torch.randn(64, 8)).sum().backward()
        gains, frame = probe.collect(), signals.collect()
    one = only(diagnose(frame, batchnorm=gains), "batch normalization gain")
    assert (one.layer, one.others) == ("1", ())
    assert one.number == pytest.approx(gains["gain"].iloc[0])
    assert one.number > 1e4


# -- what it takes and gives -------------------------------------------------------------------------------------------


def test_an_outlier_is_no_finding_and_a_lasting_fault_late_in_training_is() -> None:
    frame = history(mlp(3), 12)
    where = (frame["signal"] == "activation") & (frame["layer"] == "1")
    spike = frame.assign(second_moment=frame["second_moment"].where(~(where & (frame["step"] == 5)), 1e20))
    assert list(diagnose(spike)) == []
    late = frame.assign(second_moment=frame["second_moment"].where(~(where & (frame["step"] >= 9)), 1e20))
    one = only(diagnose(late), "overflowing")
    assert (one.layer, one.step, one.number) == ("1", 9, 1e20)


def test_the_order_of_the_rows_does_not_matter_and_epoch_means_are_taken_too() -> None:
    net = mlp(3)
    net[2].bias = nn.Parameter(torch.full((32,), -100.0))
    frame = history(net, 4)
    found = diagnose(frame, net)
    assert list(diagnose(frame.sample(frac=1, random_state=0), net)) == list(found)
    means = diagnose(epoch_mean(frame), net)
    assert [(one.kind, one.layer) for one in means] == [(one.kind, one.layer) for one in found]
    assert {one.step for one in means} == {3}


def test_columns_of_earlier_versions_may_be_missing_and_others_may_not() -> None:
    frame = history(mlp(3))
    assert list(diagnose(frame[["depth", "layer", "signal", "acsm", "acv"]])) == []
    with pytest.raises(HistoryError, match="lacks the columns depth, signal"):
        diagnose(frame[["layer"]])


def test_what_cannot_be_judged_is_said() -> None:
    net = transformer()
    frame = history(net, 1, (16,))
    assert diagnose(frame).skipped == {"residual branches other than those of Sum modules": "the model is not given"}
    assert diagnose(frame, net).skipped == {
        "residual branches of the blocks": "the outputs of the blocks are not recorded"
    }
    assert diagnose(history(net, 1, (16,), blocks=True), net).skipped == {}
    some = diagnose(frame[frame["signal"].isin(["activation", "parameter"])], net)
    assert some.skipped["steps of the optimizer"] == "the frame lacks the signal update, parameter_gradient"
    assert str(some).splitlines()[0] == "nothing found"


def test_findings_print_as_lines_and_do_not_change() -> None:
    net = mlp(3)
    net[2].bias = nn.Parameter(torch.full((32,), -100.0))
    found = diagnose(history(net), net)
    assert str(found).splitlines()[0] == f"dead: {found[0].text}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].kind = "other"  # type: ignore[misc]
