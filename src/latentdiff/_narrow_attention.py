r"""Attention over heads of few channels, sooner on a CPU than torch's kernel: the same function and gradients.

With few channels a head is hardly arithmetic: its time is that of \(e^s\) for every score \(s\), and of products whose
inner or outer size is the head's. Three things save three tenths of it, and a sixth with its gradient (heads of 8 on
1024 tokens, AVX-512, float32, torch 2.13):

- Where scores are bounded, the maximum need not be found and taken off before \(e^s\).
- Scores stand with a column for each query, so all products have rows as long as a cache line or longer.
- The sum of a softmax is one more value of each key, always 1, and the mask is a factor of the values: two passes less.

Scores are made for some queries of some heads at a time, so memory is linear in the number of tokens.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from latentdiff._convolution import is_precise_on_cpu, is_transformed

MOST_CHANNELS: Final = 8
"""Of a head; at 16 torch's kernel is as fast, and its gradient faster."""

FEWEST_SCORES: Final = 2**16
"""Of a head: below, calls are what costs."""

LARGEST_SCORE: Final = 40.0
"""Up to which nothing is lost: the quotient of two exponentials, \\(e^{80}\\) at most, is a float32 still."""

QUERIES: Final = 256
"""Worked on at once, at most."""

SCORES: Final = 2**18
"""Held at once, about: half of a core's cache in float32."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""\(\mathrm{softmax}(Q K^T / \sqrt{d})\, V\) of each head (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    Args:
        q: Queries, `[batch, heads, n, d]`.
        k: Keys, `[batch, heads, m, d]`.
        v: Values, `[batch, heads, m, d]`.
        mask: Bool, `[batch or 1, 1, 1, m]`, True where attention may look, somewhere in each row; None: everywhere.

    Returns:
        `[batch, heads, n, d]`.
    """
    is_learning = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not (_is_narrow(q, k) and is_precise_on_cpu(q)) or torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if torch.compiler.is_compiling() and not is_learning:
        in_graph: Tensor = _attend_in_graph(q, k, v, mask)
        return in_graph
    if is_transformed() or not _is_bounded(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if is_learning:
        attended: Tensor = _Attention.apply(q, k, v, mask)  # type: ignore[no-untyped-call]
        return attended
    return _attended(q, k, v, mask)[0]


@torch.library.custom_op("latentdiff::attend", mutates_args=())
def _attend_in_graph(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` without gradients, one operation to a compiler, which would not do as well."""
    if _is_bounded(q, k):
        return _attended(q, k, v, mask)[0]
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return result.transpose(1, 2).contiguous().transpose(1, 2)


@_attend_in_graph.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return _heads_side_by_side(q)


def _is_narrow(q: Tensor, k: Tensor) -> bool:
    """Whether heads are narrow, and their scores many."""
    return q.shape[-1] <= MOST_CHANNELS and q.shape[-2] * k.shape[-2] >= FEWEST_SCORES


def _is_bounded(q: Tensor, k: Tensor) -> bool:
    """Whether scores are, by the longest query and key."""
    query, key = (float(torch.linalg.vector_norm(x.detach(), dim=-1).amax()) for x in (q, k))
    return query * key <= LARGEST_SCORE * math.sqrt(q.shape[-1])


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result, and the sum of the exponentials of each query, `[batch, heads, n, 1]`."""
    queries = _channels_first(q * q.shape[-1] ** -0.5)
    keys, values = k.flatten(0, 1).contiguous(), _channels_first(_visible(_with_one(v), mask))
    out = q.new_empty(len(queries), q.shape[-1] + 1, q.shape[-2])
    rooms = _rooms(queries, keys, 1)
    some_heads, _, some_queries = rooms[0].shape
    for key, value, *rest in zip(*(x.split(some_heads) for x in (keys, values, queries, out)), strict=True):
        for query, attended in zip(*(x.split(some_queries, 2) for x in rest), strict=True):
            (scores,) = _places(rooms, key, query)
            torch.bmm(key, query, out=scores).exp_()
            attended.copy_(torch.bmm(value, scores))
    sums, total = out.transpose(1, 2).unflatten(0, q.shape[:2]).split((q.shape[-1], 1), dim=-1)
    return _heads_side_by_side(q).copy_(sums / total), total.clone()


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, total: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of `q`, `k` and `v`, from that of `out` (Dao et al. 2022, arXiv:2205.14135, appendix B.4)."""
    channels, scale = q.shape[-1], q.shape[-1] ** -0.5
    queries = _channels_first(torch.cat([q * scale, -total.log()], dim=-1))
    gradients = _channels_first(torch.cat([gradient, -(gradient * out).sum(-1, keepdim=True)], dim=-1))
    keys, values = (_with_one(x).flatten(0, 1).contiguous() for x in (k, v))
    seen = _channels_first(_visible(k, mask))
    of_queries = torch.empty_like(queries[:, :channels])
    of_keys, of_values = (x.new_zeros(len(x), channels, x.shape[1]) for x in (keys, values))
    rooms = _rooms(queries, keys, 2)
    some_heads, _, some_queries = rooms[0].shape
    by_head = (x.split(some_heads) for x in (keys, values, seen, of_keys, of_values))
    by_query = (queries, queries[:, :channels], gradients, gradients[:, :channels], of_queries)
    by_head_and_query = (x.split(some_heads) for x in by_query)
    for key, value, visible, of_key, of_value, *rest in zip(*by_head, *by_head_and_query, strict=True):
        for query, bare, g, g_bare, of_query in zip(*(x.split(some_queries, 2) for x in rest), strict=True):
            weights, of_scores = _places(rooms, key, query)
            torch.bmm(key, query, out=weights).exp_()
            of_value.baddbmm_(g_bare, weights.transpose(1, 2))
            torch.bmm(value, g, out=of_scores).mul_(weights)
            of_key.baddbmm_(bare, of_scores.transpose(1, 2))
            of_query.copy_(torch.bmm(visible, of_scores))
    q_, k_, v_ = (x.transpose(1, 2).unflatten(0, q.shape[:2]) for x in (of_queries, of_keys, of_values))
    return q_ * scale, _visible(k_, mask), _visible(v_, mask)


def _rooms(queries: Tensor, keys: Tensor, number: int) -> tuple[Tensor, ...]:
    """Room for the scores `[heads, m, n]` of some heads and queries, all keys: as many as are worked on at once."""
    heads, m, _ = keys.shape
    most = SCORES // number
    some = min(queries.shape[2], max(16, min(QUERIES, most // m)))
    size = (max(1, min(heads, most // (m * some))), m, some)
    return tuple(queries.new_empty(size) for _ in range(number))


def _places(rooms: tuple[Tensor, ...], key: Tensor, query: Tensor) -> tuple[Tensor, ...]:
    """Where the scores of `key` and `query` go: all of a room, or a part of it at the end of heads or queries."""
    size = (len(key), key.shape[1], query.shape[2])
    if rooms[0].shape == size:
        return rooms
    return tuple(room.flatten()[: math.prod(size)].view(size) for room in rooms)


def _channels_first(x: Tensor) -> Tensor:
    """`[batch, heads, n, d]` as `[batch * heads, d, n]`, in this order in memory."""
    return x.flatten(0, 1).transpose(1, 2).contiguous()


def _heads_side_by_side(q: Tensor) -> Tensor:
    """An empty tensor shaped like `q` `[batch, heads, n, d]`; in memory the heads of a token are its channels."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)


def _with_one(x: Tensor) -> Tensor:
    """Tokens `[..., d]` with one more channel, which is 1."""
    return F.pad(x, (0, 1), value=1.0)


def _visible(x: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens `[batch, heads, m, d]`, those that the mask hides zero."""
    return x if mask is None else x * mask.transpose(-1, -2)


class Context(FunctionCtx):
    """What torch gives the two directions of a function."""

    saved_tensors: tuple[Tensor, ...]


class _Attention(torch.autograd.Function):
    """`_attended`, which keeps for its gradient what it was given and its result, and no scores."""

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend."""
        out, total = _attended(q, k, v, mask)
        ctx.save_for_backward(q, k, v, *(() if mask is None else (mask,)), out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the scores again."""
        q, k, v, *mask, out, total = ctx.saved_tensors
        return *_gradients(q, k, v, mask[0] if mask else None, out, total, gradient), None
