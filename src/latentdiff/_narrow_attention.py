r"""Attention over heads of few channels, sooner on a CPU than torch's kernel where no gradient is wanted.

With few channels a head is hardly arithmetic: its time is that of \(e^s\) for every score \(s\), and of products whose
inner or outer size is the head's. Three things save three tenths of it in one thread and a sixth in two (heads of 8 on
1024 tokens, AVX-512, float32, torch 2.13); of the gradient they save nothing, so that is left to torch:

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

from latentdiff._convolution import is_precise_on_cpu, is_transformed

MOST_CHANNELS: Final = 8
"""Of a head; at 16 torch's kernel is as fast."""

FEWEST_SCORES: Final = 2**17
"""Of a head: below, calls are what costs."""

LARGEST_SCORE: Final = 40.0
"""Up to which nothing is lost: the quotient of two exponentials, \\(e^{80}\\) at most, is a float32 still."""

QUERIES: Final = 256
"""Worked on at once, at most."""

SCORES: Final = 2**18
"""Worked on at once by a thread, about: half of a core's cache in float32."""


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
    if is_learning or not (_is_narrow(q, k) and is_precise_on_cpu(q)) or torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if torch.compiler.is_compiling():
        in_graph: Tensor = _attend_in_graph(q, k, v, mask)
        return in_graph
    if is_transformed() or not _is_bounded(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _attended(q, k, v, mask)


@torch.library.custom_op("latentdiff::attend", mutates_args=())
def _attend_in_graph(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` without gradients, one operation to a compiler, which would not do as well."""
    if _is_bounded(q, k):
        return _attended(q, k, v, mask)
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


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    queries = _channels_first(q * q.shape[-1] ** -0.5)
    keys, values = k.flatten(0, 1).contiguous(), _channels_first(_visible(_with_one(v), mask))
    out = q.new_empty(len(queries), q.shape[-1] + 1, q.shape[-2])
    size = _part(len(keys), keys.shape[1], queries.shape[2])
    room = q.new_empty(size)
    for key, value, *rest in zip(*(x.split(size[0]) for x in (keys, values, queries, out)), strict=True):
        for query, attended in zip(*(x.split(size[2], 2) for x in rest), strict=True):
            scores = _place(room, key, query)
            torch.bmm(key, query, out=scores).exp_()
            attended.copy_(torch.bmm(value, scores))
    sums, total = out.transpose(1, 2).unflatten(0, q.shape[:2]).split((q.shape[-1], 1), dim=-1)
    return _heads_side_by_side(q).copy_(sums / total)


def _part(heads: int, keys: int, queries: int) -> tuple[int, int, int]:
    """How many heads, keys and queries are worked on at once: all keys."""
    most = SCORES * torch.get_num_threads()
    some = min(queries, max(16, min(QUERIES, most // keys)))
    return max(1, min(heads, most // (keys * some))), keys, some


def _place(room: Tensor, key: Tensor, query: Tensor) -> Tensor:
    """Where the scores of `key` and `query` go: all of `room`, or a part of it at the end of heads or queries."""
    size = (len(key), key.shape[1], query.shape[2])
    return room if room.shape == size else room.flatten()[: math.prod(size)].view(size)


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
