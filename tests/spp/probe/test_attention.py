"""Logits and entropy of attention: closed forms, and eager attention of transformers computed again from weights."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from sppbench.spp.names import ATTENTION_COLUMNS
from sppbench.spp.probe import attention
from sppbench.spp.probe.attention import AttentionProbe

VALUES = ["logit_second_moment", "logit_absmax", "entropy"]


class Attention(nn.Module):
    """By hand: q and k are what it is given, (N, H, L, D)."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        logits = self.scale * q @ k.mT
        return F.softmax(logits if self.mask is None else logits + self.mask, dim=-1) @ k


class Blocks(nn.Module):
    """Two blocks, each with a dropout that draws random numbers."""

    def __init__(self, run: Callable[..., Tensor] | None = None, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 8, batch_first=True) for _ in range(2))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.run is None else self.run(block, x)
        return x


def causal(length: int, least: float) -> Tensor:
    return torch.full((length, length), least).triu(1)


def recorded(model: nn.Module, *inputs: Any, **options: Any) -> pd.DataFrame:
    with AttentionProbe(model, **options) as probe:
        model(*inputs).sum().backward()
        return probe.collect()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_weights_that_are_equal_have_the_entropy_of_the_number_of_keys() -> None:
    frame = recorded(Attention(), torch.zeros(2, 3, 4, 5), torch.randn(2, 3, 7, 5))
    assert dict(frame.dtypes) == ATTENTION_COLUMNS
    assert list(frame["head"]) == [0, 1, 2]
    assert (frame["logit_second_moment"] == 0).all()
    assert (frame["logit_absmax"] == 0).all()
    assert frame["entropy"].to_numpy() == pytest.approx([math.log(7)] * 3)


def test_a_key_with_all_the_weight_leaves_no_entropy() -> None:
    keys = 1000.0 * torch.eye(5).expand(2, 1, 5, 5)
    frame = recorded(Attention(), torch.eye(5).expand(2, 1, 5, 5), keys)
    assert frame[VALUES].to_numpy().tolist() == [[1000**2 / 5, 1000, 0]]


@pytest.mark.parametrize("least", [-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float16).min, -1e9])
def test_what_is_masked_counts_nowhere(least: float) -> None:
    length = 6
    q = torch.ones(2, 3, length, 1)
    k = torch.tensor([2.0, 3.0, 4.0]).view(3, 1, 1).expand(2, 3, length, 1)
    frame = recorded(Attention(causal(length, least)), q, k)
    assert frame["entropy"].to_numpy() == pytest.approx([sum(math.log(n) for n in range(1, 7)) / 6] * 3)
    assert frame["logit_second_moment"].to_numpy() == pytest.approx([4, 9, 16])
    assert frame["logit_absmax"].to_numpy() == pytest.approx([2, 3, 4])


def test_a_query_that_sees_no_key_counts_nowhere() -> None:
    mask = torch.zeros(4, 4)
    mask[1:] = torch.finfo(torch.float32).min
    frame = recorded(Attention(mask), torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    assert frame[VALUES].to_numpy() == pytest.approx(torch.tensor([[0, 0, math.log(4)]]).numpy())
    frame = recorded(Attention(torch.full((4, 4), -math.inf)), torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    assert frame[VALUES].isna().all(axis=None)


def test_logits_that_are_not_finite_show() -> None:
    frame = recorded(Attention(), torch.full((1, 1, 2, 2), math.nan), torch.ones(1, 1, 2, 2))
    assert frame[VALUES].isna().all(axis=None)


def test_calls_and_accumulated_batches_are_one() -> None:
    model, q, k = Attention(), torch.randn(4, 2, 3, 5), torch.randn(4, 2, 6, 5)
    together = recorded(model, q, k)
    with AttentionProbe(model) as probe:
        model(q[:3], k[:3]).sum().backward()
        model(q[3:], k[3:]).sum().backward()
        pd.testing.assert_frame_equal(probe.collect(), together)


def test_what_cannot_be_added_up_ends_no_run() -> None:
    model = Attention()
    with AttentionProbe(model) as probe:
        for heads in (2, 3):
            model(torch.zeros(1, heads, 2, 4), torch.zeros(1, heads, 2, 4))
        assert len(probe.collect()) == 2
        assert probe.skipped == {"Attention": "its logits cannot be read: ValueError: its number of heads changed"}


def test_only_training_with_gradients_on_the_schedule_is_recorded() -> None:
    model, x = Attention(), torch.randn(1, 2, 3, 4)
    with AttentionProbe(model, every_n_steps=2, start=1, stop=4) as probe:
        steps = []
        for _ in range(6):
            model(x, x)
            steps += list(probe.collect()["step"].unique())
        assert steps == [2]
        probe.step = 2
        with torch.no_grad():
            model(x, x)
        assert probe.collect().empty
        model.eval()
        probe.step = 2
        model(x, x)
        assert probe.collect().empty
    model.train()(x, x)
    assert probe.readings() is None


def logits_of_multihead(module: nn.MultiheadAttention, x: Tensor, mask: Tensor) -> Tensor:
    """By definition, (N, H, L, S), in double precision."""
    assert module.in_proj_bias is not None
    both = F.linear(x.double(), module.in_proj_weight.double(), module.in_proj_bias.double())
    q, k, _ = both.unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q @ k.mT / math.sqrt(module.head_dim) + mask


def expected(logits: Tensor) -> list[list[float]]:
    """The statistics of each head, query by query."""
    found = []
    for head in logits.detach().double().unbind(1):
        rows = [row[row > -1e4] for row in head.flatten(0, 1)]
        rows = [row for row in rows if len(row)]
        every = torch.cat(rows)
        entropy = sum(float(torch.distributions.Categorical(logits=row).entropy()) for row in rows) / len(rows)
        found.append([float(every.square().mean()), float(every.abs().max()), entropy])
    return found


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_on_request(need_weights: bool) -> None:
    model, x, mask = nn.MultiheadAttention(8, 2, 0.5, batch_first=True), torch.randn(3, 4, 8), causal(4, -math.inf)
    with AttentionProbe(model) as probe:
        model(x, x, x, attn_mask=mask, need_weights=need_weights, is_causal=True)
        assert probe.collect().empty
        assert probe.skipped == {"MultiheadAttention": attention.ASK}
    with AttentionProbe(model, multihead=True) as probe:
        output, weights = model(x, x, x, attn_mask=mask, need_weights=need_weights, is_causal=True)
        frame = probe.collect()
    assert probe.skipped == {}
    assert output.requires_grad
    assert (None if weights is None else weights.shape) == ((3, 4, 4) if need_weights else None)
    assert frame[VALUES].to_numpy() == pytest.approx(torch.tensor(expected(logits_of_multihead(model, x, mask))))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_no_bit_of_training_changes(reentrant: bool | None) -> None:
    """Activation checkpointing included, whose second run counts nothing twice."""
    run = None if reentrant is None else functools.partial(checkpoint, use_reentrant=reentrant)
    plain, x = Blocks(run), torch.randn(3, 4, 8, requires_grad=True)
    results, frames = [], []
    for multihead in (None, False, True):
        model = copy.deepcopy(plain)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = None if multihead is None else AttentionProbe(model, multihead=multihead)
        torch.manual_seed(1)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            frames += [] if probe is None else [probe.collect()]
        results.append([*losses, *(weight.detach() for weight in model.parameters()), torch.rand(1)])
        assert _get_current_function_mode_stack() == []
    assert all(torch.equal(one, two) for other in results[1:] for one, two in zip(results[0], other, strict=True))
    assert [len(frame) for frame in frames] == [0, 0, 4, 4]
    torch.manual_seed(1)
    attended = recorded(copy.deepcopy(plain).requires_grad_(), x, multihead=True)
    pd.testing.assert_frame_equal(frames[2], attended)


def test_an_error_in_the_model_leaves_nothing_on() -> None:
    model = Attention()
    with AttentionProbe(model) as probe:
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 4))
        assert _get_current_function_mode_stack() == []
        model(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3))
        assert len(probe.collect()) == 1


def test_copies_and_pickles_come_without_the_probe() -> None:
    model = Attention()
    with AttentionProbe(model):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        stream = io.BytesIO()
        torch.save(model, stream)
        assert b"sppbench.spp" not in stream.getvalue()
    for one in (*copies, model):
        assert not one._forward_hooks
        assert not one._forward_pre_hooks
        assert not one._forward_hooks_always_called


class Fused(nn.Module):
    """As many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.num_heads = nn.Linear(8, 24), 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_what_fused_kernels_hide_is_said() -> None:
    model, x = nn.Sequential(Fused(), Fused()), torch.randn(2, 3, 8)
    with AttentionProbe(model) as probe:
        model(x).sum().backward()
        assert probe.collect().empty
        assert probe.skipped == {"0": attention.FUSED, "1": attention.FUSED}


def test_a_softmax_that_is_no_attention_is_left_alone() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    model = nn.Sequential(nn.Linear(8, 4), Router())
    with AttentionProbe(model) as probe:
        for x in (torch.randn(3, 8), torch.randn(2, 3, 8)):
            model(x).sum().backward()
        assert probe.collect().empty
        assert probe.skipped == {}


def test_transforms_and_graphs_are_skipped_with_the_reason() -> None:
    model, x = Fused(), torch.randn(2, 3, 8)
    alone = torch.func.vmap(model)(x[:, None])
    with AttentionProbe(model) as probe:
        assert torch.equal(torch.func.vmap(model)(x[:, None]), alone)
        assert "torch.func" in probe.skipped["Fused"]
    attending, q = nn.Sequential(nn.MultiheadAttention(8, 2)), torch.randn(3, 8)
    with AttentionProbe(attending, multihead=True) as probe:
        torch.compile(lambda x: attending[0](x, x, x)[0], backend="eager", fullgraph=True)(q).sum().backward()
        assert probe.collect().empty
        assert probe.skipped == {"0": attention.IN_GRAPH}


# -- transformers -----------------------------------------------------------------------------------------------------


def tiny(kind: str, implementation: str = "eager") -> Any:
    transformers = pytest.importorskip("transformers")
    size: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "vocab_size": 11}
    size |= {"intermediate_size": 16, "max_position_embeddings": 8, "attn_implementation": implementation}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_key_value_heads=2))
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, bos_token_id=0, eos_token_id=0))
    return transformers.BertForMaskedLM(transformers.BertConfig(**size))


def query_and_key(kind: str, module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, L, D), from the weights, with the rotation of a Llama written as complex numbers."""
    if kind == "gpt2":
        q, k, _ = (x @ module.c_attn.weight + module.c_attn.bias).chunk(3, -1)
    elif kind == "bert":
        q, k = module.query(x), module.key(x)
    else:
        q, k = x @ module.q_proj.weight.T, (x @ module.k_proj.weight.T)
    q, k = (part.unflatten(-1, (-1, 4)).transpose(1, 2).double() for part in (q, k))
    if kind == "llama":
        angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** -torch.tensor([0, 0.5], dtype=torch.float64)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.view_as_real(torch.complex(*part.chunk(2, -1)) * turn).flatten(-2) for part in (q, k))
        k = k.repeat_interleave(2, 1)
    return q, k


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("llama", "model.layers.{}.self_attn"),
        ("gpt2", "transformer.h.{}.attn"),
        ("bert", "bert.encoder.layer.{}.attention.self"),
    ],
)
def test_eager_attention_of_transformers(kind: str, layers: str) -> None:
    model, inputs = tiny(kind), []
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.5)
    names = [layers.format(i) for i in range(2)]
    for name in names:
        hook = lambda module, args, kwargs: inputs.append(args[0] if args else kwargs["hidden_states"])  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    tokens, padding = torch.randint(11, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    padding[1, 4:], padding[2, :1] = 0, 0
    with AttentionProbe(model) as probe:
        model(tokens, attention_mask=padding, labels=tokens).loss.backward()
        frame = probe.collect()
    assert probe.skipped == {}
    assert list(frame["layer"]) == [name for name in names for _ in range(4)]
    mask = torch.zeros(3, 1, 6, 6).masked_fill(padding[:, None, None] == 0, -math.inf)
    if kind != "bert":
        mask = mask + causal(6, -math.inf)
    for name, x in zip(names, inputs, strict=True):
        q, k = query_and_key(kind, model.get_submodule(name), x)
        found = frame.loc[frame["layer"] == name, VALUES].to_numpy()
        assert found == pytest.approx(torch.tensor(expected(q @ k.mT / 2 + mask)).numpy(), rel=1e-4)


def test_training_of_transformers_is_untouched() -> None:
    """With dropout, which must draw the same numbers, and gradient checkpointing."""
    model, tokens = tiny("gpt2"), torch.randint(11, (3, 6))
    model.activation_checkpointing_enable()
    gradients = []
    for attach in (False, True):
        probe = AttentionProbe(model) if attach else None
        torch.manual_seed(1)
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
        assert probe is None or len(probe.collect()) == 8
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_other_attention_of_transformers_says_the_way_out() -> None:
    model, tokens = tiny("llama", "sdpa"), torch.randint(11, (3, 6))
    with AttentionProbe(model) as probe:
        model(tokens, labels=tokens).loss.backward()
        assert probe.collect().empty
        reason = attention.EAGER.format("sdpa")
        assert probe.skipped == {f"model.layers.{i}.self_attn": reason for i in range(2)}
        model.set_attn_implementation("eager")
        model(tokens, labels=tokens).loss.backward()
        assert len(probe.collect()) == 8
        assert probe.skipped == {}
