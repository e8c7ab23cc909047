"""Attention over narrow heads is the softmax formula, and steps aside where it would not be or a gradient is wanted."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import latentdiff as ld
from latentdiff import _narrow_attention
from latentdiff._narrow_attention import attend


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention in float64, as the equation has it."""
    scores = (q.double() @ k.double().transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v.double()


def tokens(batch: int, heads: int, length: int, channels: int, generator: torch.Generator) -> Tensor:
    """As a projection gives them: heads side by side in memory."""
    return torch.randn(batch, length, heads, channels, generator=generator).transpose(1, 2)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 50)),
    channels=st.integers(1, 8),
    scores=st.sampled_from([64, 700, 2**17]),
    queries=st.sampled_from([3, 16, 256]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_formula_however_it_is_cut(
    batch: int,
    heads: int,
    lengths: tuple[int, int],
    channels: int,
    scores: int,
    queries: int,
    masked: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (tokens(batch, heads, n, channels, generator) for n in (lengths[0], lengths[1], lengths[1]))
    mask = None
    if masked:
        mask = torch.rand(batch, 1, 1, lengths[1], generator=generator) < 0.7
        mask[..., 0] = True
    with (
        patch.multiple(_narrow_attention, FEWEST_SCORES=0, SCORES=scores, QUERIES=queries),
        patch.object(F, "scaled_dot_product_attention", side_effect=unused),
    ):
        found = attend(q, k, v, mask)
    # sums of up to 50 terms, each rounded to 24 bits
    torch.testing.assert_close(found.double(), formula(q, k, v, mask), rtol=1e-5, atol=1e-5)


def unused(*_: object, **__: object) -> None:
    """Torch's kernel would hide that ours was not run."""
    raise AssertionError("torch's kernel was called")


@pytest.mark.parametrize("learns", [0, 1, 2])
def test_gradients_are_left_to_torch(learns: int) -> None:
    given = [tokens(2, 3, 370, 4, torch.Generator().manual_seed(i)).requires_grad_(i == learns) for i in range(3)]
    with patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as kernel:
        attend(*given).sum().backward()
        assert kernel.called
        kernel.reset_mock()
        with torch.no_grad():
            attend(*given)
        assert not kernel.called


@pytest.mark.parametrize("size", [3.0, 4.99, 5.01, 100.0, torch.inf, torch.nan])
@pytest.mark.parametrize("of", [0, 1])
def test_scores_that_would_overflow_go_to_the_kernel_of_torch(size: float, of: int) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [F.normalize(tokens(1, 2, 9, 4, generator), dim=-1) * (4.0 if i < 2 else 1.0) for i in range(3)]
    given[of][0, 1, 3] = F.normalize(given[of][0, 1, 3], dim=-1) * size * 4
    q, k, v = given
    with (
        patch.object(_narrow_attention, "FEWEST_SCORES", 0),
        patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as kernel,
    ):
        out = attend(q, k, v)
    # 4 * 4 / sqrt(4) = 8 times the size is the largest score that may be
    assert kernel.called == (not size * 8 <= 40)
    if kernel.called:
        assert torch.equal(out.nan_to_num(7.0), F.scaled_dot_product_attention(q, k, v).nan_to_num(7.0))
    else:
        torch.testing.assert_close(out.double(), formula(q, k, v), rtol=1e-5, atol=1e-5)


def test_the_largest_scores_that_are_taken_lose_nothing() -> None:
    q = torch.tensor([40.0, -40.0])[:, None].repeat(1, 4)[None, None].sqrt().nan_to_num(-(40.0**0.5)) / 2**0.5
    k, v = q.clone(), torch.tensor([[1.0, -3.0, 2.0, 5.0], [7.0, 1.0, 0.5, 2.0]])[None, None]
    assert (q @ k.transpose(-1, -2) / 2).abs().max().item() == pytest.approx(40)
    mask = torch.tensor([True, False])[None, None, None]
    with patch.multiple(_narrow_attention, FEWEST_SCORES=0, LARGEST_SCORE=40.001):
        for hidden in (None, mask):
            torch.testing.assert_close(attend(q, k, v, hidden).double(), formula(q, k, v, hidden), rtol=1e-5, atol=1e-6)


def test_networks_with_narrow_heads_take_it_and_give_the_same() -> None:
    block = ld.CrossAttention(query_dim=12, num_heads=3, head_dim=4)
    x = torch.randn(2, 370, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), patch.object(F, "scaled_dot_product_attention", side_effect=unused):
        found = block(x)
    with torch.no_grad(), patch.object(_narrow_attention, "MOST_CHANNELS", 0):
        torch.testing.assert_close(found, block(x), rtol=1e-5, atol=1e-6)


def test_memory_is_linear_in_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (tokens(1, 2, 4096, 8, generator) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        attend(q, k, v)
    largest = max(event.cpu_memory_usage for event in record.events() or ())
    assert 2 * 4096 * 8 * 4 <= largest <= 4 * _narrow_attention.SCORES * torch.get_num_threads()


@pytest.mark.parametrize("largest", [40.0, 0.0])
def test_it_is_one_operation_to_a_compiler_and_the_same_numbers(largest: float) -> None:
    block = ld.CrossAttention(query_dim=12, num_heads=3, head_dim=4)
    x = torch.randn(2, 370, 12, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with patch.object(_narrow_attention, "LARGEST_SCORE", largest):
        with torch.no_grad():
            assert torch.equal(compiled(x), block(x))
            assert torch.equal(compiled(x[:, :369]), block(x[:, :369]))
            with profile(activities=[ProfilerActivity.CPU]) as record:
                compiled(x)
        assert any(event.key == "latentdiff::attend" for event in record.key_averages())
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-6)  # with gradients, by torch's kernel


def test_the_operation_keeps_the_rules_of_operations() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (tokens(2, 3, n, 4, generator) for n in (5, 7, 7))
    mask = torch.tensor([True, False, True, True, False, True, True])[None, None, None]
    for size in (1.0, 100.0):
        for hidden in (None, mask):
            torch.library.opcheck(torch.ops.latentdiff.attend.default, (q * size, k, v, hidden))


def test_an_exported_program_knows_operations_of_torch_only() -> None:
    block = ld.CrossAttention(query_dim=12, num_heads=3, head_dim=4).eval()
    program = torch.export.export(block, (torch.randn(2, 370, 12),))
    assert not any("latentdiff" in str(node.target) for node in program.graph.nodes)
