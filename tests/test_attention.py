"""Attention against the plain formula, its laws, and an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import latentdiff as ld
from latentdiff._attention import (
    FeedForward,
    QKVOrder,
    SpatialSelfAttention,
    SpatialTransformer,
    TransformerBlock,
    hide,
)
from latentdiff._typing import SpatialDims
from networks import normal, randomised

HUGE = [3e38, -3e38, math.inf, -math.inf, math.nan]


def attention(
    *, context_dim: int | None = 5, num_heads: int = 3, head_dim: int = 4, dropout: float = 0.0
) -> ld.CrossAttention:
    """A cross-attention with unequal sizes, float64."""
    block = ld.CrossAttention(
        query_dim=6, context_dim=context_dim, num_heads=num_heads, head_dim=head_dim, dropout=dropout
    )
    return randomised(block).double()


def softmax_formula(block: ld.CrossAttention, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, head by head, and the output layer."""
    d = block.head_dim
    heads: list[Tensor] = []
    for head in range(block.num_heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = (c @ w.weight[rows].T for c, w in ((x, block.to_q), (context, block.to_k), (context, block.to_v)))
        logits = q @ k.transpose(1, 2) / math.sqrt(d)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, :], -math.inf)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        heads.append(weights @ v)
    return torch.cat(heads, -1) @ block.to_out.weight.T + block.to_out.bias


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    context_length=st.integers(1, 9),
    num_heads=st.integers(1, 4),
    head_dim=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_cross_attention_follows_the_softmax_formula(
    batch: int, length: int, context_length: int, num_heads: int, head_dim: int, seed: int
) -> None:
    block = attention(num_heads=num_heads, head_dim=head_dim)
    x, context = normal((batch, length, 6), seed), normal((batch, context_length, 5), seed + 1)
    mask = torch.rand(batch, context_length, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[:, seed % context_length] = True
    torch.testing.assert_close(block(x, context), softmax_formula(block, x, context), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        block(x, context, mask), softmax_formula(block, x, context, mask), rtol=1e-10, atol=1e-12
    )


def test_without_context_tokens_attend_to_each_other() -> None:
    block = attention(context_dim=None)
    x = normal((2, 7, 6))
    torch.testing.assert_close(block(x), softmax_formula(block, x, x), rtol=1e-10, atol=1e-12)
    assert torch.equal(block(x), block(x, x))


def test_the_order_of_the_context_does_not_matter() -> None:
    block, x, context = attention(), normal((2, 3, 6)), normal((2, 7, 5), seed=1)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1, 0]]).bool()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(
        block(x, context[:, order], mask[:, order]), block(x, context, mask), rtol=1e-12, atol=1e-13
    )


def test_self_attention_moves_with_the_order_of_its_tokens() -> None:
    block, x = attention(context_dim=None), normal((2, 7, 6))
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-12, atol=1e-13)


def test_a_context_of_one_token_is_what_everybody_gets() -> None:
    block, x, context = attention(), normal((2, 3, 6)), normal((2, 1, 5), seed=1)
    expected = block.to_out(block.to_v(context)).expand(2, 3, 6)
    torch.testing.assert_close(block(x, context), expected, rtol=1e-12, atol=1e-13)


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    block, x, context = attention(), normal((4, 3, 6)), normal((4, 7, 5), seed=1)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1], mask[2, 3:] = False, False
    together = block(x, context, mask)
    alone = torch.cat([block(x[i : i + 1], context[i : i + 1], mask[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("value", [0.0, 1.0, *HUGE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_token_changes_no_bit_whatever_it_holds(value: float, dtype: torch.dtype) -> None:
    block = attention().to(dtype)
    x, context = normal((2, 3, 6), dtype=dtype), normal((2, 7, 5), seed=1, dtype=dtype)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    other = context.masked_fill(~mask[..., None], value)
    assert torch.equal(block(x, other, mask), block(x, context, mask))


def test_masking_tokens_is_leaving_them_out() -> None:
    block, x, context = attention(), normal((2, 3, 6)), normal((2, 7, 5), seed=1)
    mask = torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool()
    torch.testing.assert_close(block(x, context, mask.expand(2, 7)), block(x, context[:, mask]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("value", [1.0, *HUGE])
def test_a_row_without_visible_tokens_gives_the_bias_and_finite_gradients(value: float) -> None:
    block = attention()
    x, context = normal((2, 3, 6)).requires_grad_(), normal((2, 7, 5), seed=1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0] = False
    context[0] = value
    context.requires_grad_()
    y = block(x, context, mask)
    assert torch.equal(y[0], block.to_out.bias.expand(3, 6))
    y.square().sum().backward()
    for tensor in (x, context, *block.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert x.grad is not None
    assert context.grad is not None
    assert not x.grad[0].any()
    assert not context.grad[0].any()
    assert context.grad[1].any()


def test_no_kernel_is_given_a_row_in_which_everything_is_masked() -> None:
    """What a fused kernel does then is its own affair: some give NaN."""
    context, mask = hide(normal((2, 3, 5)), torch.tensor([[1, 0, 1], [0, 0, 0]]).bool())
    assert mask[:, 0, 0].tolist() == [[True, False, True], [True, True, True]]
    assert context.any(dim=-1).tolist() == [[True, False, True], [False, False, False]]


def test_gradients_of_masked_attention_are_right() -> None:
    block, x, context = attention(), normal((2, 3, 6)).requires_grad_(), normal((2, 4, 5), seed=1).requires_grad_()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda a, b: block(a, b, mask), (x, context))


def test_attention_compiles_in_one_graph() -> None:
    block = attention().eval()
    x, context = normal((2, 3, 6)), normal((2, 7, 5), seed=1)
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context, mask), block(x, context, mask))
    torch.testing.assert_close(compiled(x, context), block(x, context))


def test_attention_runs_under_autocast() -> None:
    block = attention().float()
    x, context = normal((2, 3, 6), dtype=torch.float32), normal((2, 7, 5), seed=1, dtype=torch.float32)
    mask = torch.arange(7) < torch.tensor([[4], [0]])
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x, context, mask)
    assert y.dtype == torch.bfloat16
    # Four products of bfloat16 numbers, each with a relative error of 2^-9 of values around 1.
    torch.testing.assert_close(y.float(), block(x, context, mask), rtol=0, atol=0.05)


def test_attention_drops_out_in_training_only() -> None:
    block, x, context = attention(dropout=0.5), normal((2, 3, 6)), normal((2, 7, 5), seed=1)
    dropped = block(x, context)
    kept = dropped != 0
    block.eval()
    assert not kept.all()
    torch.testing.assert_close(dropped[kept], 2 * block(x, context)[kept])


def test_memory_is_not_quadratic_in_the_tokens() -> None:
    block, tokens = ld.CrossAttention(query_dim=4, num_heads=1, head_dim=8), torch.zeros(1, 8192, 4)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        block(tokens)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < allocated < 8192 * 8192 * 4 / 10  # the table of all pairs would take 268 MB


def test_cross_attention_is_built_again_from_its_config() -> None:
    block = attention(dropout=0.25)
    assert block.config == {"query_dim": 6, "context_dim": 5, "num_heads": 3, "head_dim": 4, "dropout": 0.25}
    ld.CrossAttention(**block.config).load_state_dict(block.state_dict())  # type: ignore[arg-type]
    assert list(block.state_dict()) == ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"]


@pytest.mark.parametrize(
    ("x", "context", "mask", "message"),
    [
        ((2, 3, 7), (2, 4, 5), None, r"x must have query_dim=6, got query_dim=7 .* = \[2, 3, 7\]"),
        ((2, 6), (2, 4, 5), None, r"x must have 3 axes \[batch, length, query_dim\], got 2: \[2, 6\]"),
        ((2, 3, 6), (2, 4, 6), None, "context must have context_dim=5, got context_dim=6"),
        ((2, 3, 6), (1, 4, 5), None, "context must have batch=2, got batch=1"),
        ((2, 3, 6), None, None, r"context must be \[batch, length, 5\] \(context_dim\), got None"),
        ((2, 3, 6), (2, 4, 5), (2, 3), "mask must have context_length=4, got context_length=3"),
    ],
)
def test_a_wrong_shape_is_named(
    x: tuple[int, ...], context: tuple[int, ...] | None, mask: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ld.CrossAttention(query_dim=6, context_dim=5)(
            torch.zeros(x),
            None if context is None else torch.zeros(context),
            None if mask is None else torch.ones(mask, dtype=torch.bool),
        )


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be bool, True where attention may look, got torch.float64"):
        attention()(normal((2, 3, 6)), normal((2, 4, 5)), torch.ones(2, 4, dtype=torch.float64))


def test_there_must_be_heads() -> None:
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        ld.CrossAttention(query_dim=6, num_heads=0)


def test_the_feed_forward_gates_its_first_half_by_its_second() -> None:
    block, x = randomised(FeedForward(dim=3)).double(), normal((2, 5, 3))
    value, gate = (x @ block.proj_in.weight.T + block.proj_in.bias).split(12, dim=-1)
    gelu = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
    expected = (value * gelu) @ block.proj_out.weight.T + block.proj_out.bias
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-13)


def test_the_transformer_block_adds_three_normalised_branches() -> None:
    block = randomised(TransformerBlock(dim=6, num_heads=3, head_dim=4, context_dim=5)).double()
    x, context = normal((2, 7, 6)), normal((2, 4, 5), seed=1)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    y = x + softmax_formula(block.self_attention, block.norm1(x), block.norm1(x))
    y = y + softmax_formula(block.cross_attention, block.norm2(y), context, mask)
    y = y + block.feed_forward(block.norm3(y))
    torch.testing.assert_close(block(x, context, mask), y, rtol=1e-11, atol=1e-12)
    assert block.norm1.eps == block.norm2.eps == block.norm3.eps == 1e-5


def transformer(spatial_dims: SpatialDims, linear: bool, context_dim: int | None = 5) -> SpatialTransformer:
    """A spatial transformer wider inside than outside."""
    return SpatialTransformer(
        channels=6,
        num_heads=2,
        head_dim=4,
        depth=2,
        context_dim=context_dim,
        use_linear_projection=linear,
        spatial_dims=spatial_dims,
    )


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("linear", [False, True])
def test_a_spatial_transformer_starts_as_the_identity(spatial_dims: SpatialDims, linear: bool) -> None:
    x, context = torch.randn(2, 6, *(3, 4, 5)[:spatial_dims]), torch.randn(2, 7, 5)
    assert torch.equal(transformer(spatial_dims, linear)(x, context), x)


@pytest.mark.parametrize("linear", [False, True])
def test_a_spatial_transformer_sees_points_and_no_axes(linear: bool) -> None:
    flat = randomised(transformer(1, linear)).double()
    x, context = normal((2, 6, 3, 4, 5)), normal((2, 7, 5), seed=1)
    expected = flat(x.flatten(2), context)
    sizes: dict[SpatialDims, tuple[int, ...]] = {2: (12, 5), 3: (3, 4, 5)}
    for spatial_dims, size in sizes.items():
        block = transformer(spatial_dims, linear).double()
        state = block.state_dict()
        block.load_state_dict({k: v.reshape(state[k].shape) for k, v in flat.state_dict().items()})
        y = block(x.reshape(2, 6, *size), context)
        torch.testing.assert_close(y.flatten(2), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("context_dim", [5, None])
def test_linear_and_convolutional_projections_are_the_same_function(context_dim: int | None) -> None:
    one, other = (transformer(2, linear, context_dim).double() for linear in (True, False))
    randomised(one)
    state = other.state_dict()
    other.load_state_dict({k: v.reshape(state[k].shape) for k, v in one.state_dict().items()})
    x, context = normal((2, 6, 3, 4)), None if context_dim is None else normal((2, 7, 5), seed=1)
    assert one.norm.eps == 1e-6
    torch.testing.assert_close(one(x, context), other(x, context), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(one(x, context), x)


def test_attention_keeps_channels_last_in_memory() -> None:
    x = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last)
    blocks = [transformer(2, True, None), SpatialSelfAttention(channels=6)]
    for block in blocks:
        assert block(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_self_attention_of_a_map_follows_the_softmax_formula_in_every_order(num_heads: int) -> None:
    separate = randomised(SpatialSelfAttention(channels=6, num_heads=num_heads, qkv_order="separate")).double()
    x = normal((2, 6, 3, 4))
    tokens = separate.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (
        layer(tokens).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for layer in (separate.to_q, separate.to_k, separate.to_v)
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) * (6 // num_heads) ** -0.5, -1)
    attended = separate.to_out((weights @ v).transpose(1, 2).flatten(2))
    expected = x + attended.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(separate(x), expected, rtol=1e-11, atol=1e-12)

    layers = (separate.to_q, separate.to_k, separate.to_v)
    orders: tuple[QKVOrder, ...] = ("new", "legacy")
    for order in orders:
        fused = SpatialSelfAttention(channels=6, num_heads=num_heads, qkv_order=order).double()
        state = {k: p for k, p in separate.state_dict().items() if k.startswith(("norm", "to_out"))}
        for name in ("weight", "bias"):
            parts = [getattr(layer, name).unflatten(0, (num_heads, -1)) for layer in layers]
            joined = torch.stack(parts, dim=1 if order == "legacy" else 0)  # heads first, or q, k, v first
            state[f"to_qkv.{name}"] = joined.flatten(0, 2)
        fused.load_state_dict(state)
        torch.testing.assert_close(fused(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_self_attention_of_a_map_normalises_with_its_epsilon(eps: float) -> None:
    block = SpatialSelfAttention(channels=4, eps=eps)
    assert block.norm.eps == eps
    assert torch.equal(SpatialSelfAttention(channels=4, zero_output=True)(torch.ones(2, 4, 3)), torch.ones(2, 4, 3))


def test_self_attention_of_a_map_refuses_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="num_heads must divide channels=6, got num_heads=4"):
        SpatialSelfAttention(channels=6, num_heads=4)
    with pytest.raises(ValueError, match="qkv_order must be one of 'legacy', 'new', 'separate', got 'old'"):
        SpatialSelfAttention(channels=6, qkv_order="old")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_transformer_block_is_that_of_diffusers() -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    block = randomised(TransformerBlock(dim=6, num_heads=3, head_dim=4, context_dim=5)).double()
    theirs = attention.BasicTransformerBlock(6, 3, 4, cross_attention_dim=5, activation_fn="geglu").double()
    names = (
        ("self_attention.to_out", "attn1.to_out.0"),
        ("cross_attention.to_out", "attn2.to_out.0"),
        ("self_attention", "attn1"),
        ("cross_attention", "attn2"),
        ("feed_forward.proj_in", "ff.net.0.proj"),
        ("feed_forward.proj_out", "ff.net.2"),
    )
    state = {}
    for key, value in block.state_dict().items():
        state[next((key.replace(ours, name) for ours, name in names if key.startswith(ours)), key)] = value
    theirs.load_state_dict(state)
    x, context = normal((2, 7, 6)), normal((2, 4, 5), seed=1)
    expected = theirs(x, encoder_hidden_states=context)
    torch.testing.assert_close(block(x, context), expected, rtol=1e-10, atol=1e-11)


def test_exact_gelu_is_used() -> None:
    block = FeedForward(dim=1, multiplier=1).double()
    with torch.no_grad():
        block.proj_in.weight.copy_(torch.tensor([[0.0], [1.0]]))
        block.proj_in.bias.copy_(torch.tensor([1.0, 0.0]))
        block.proj_out.weight.fill_(1.0)
        block.proj_out.bias.zero_()
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(block(x), F.gelu(x, approximate="none"), rtol=1e-12, atol=1e-13)
