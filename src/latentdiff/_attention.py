r"""Attention: \(\mathrm{softmax}(Q K^T / \sqrt{d})\, V\), alone, in a transformer block, and over the points of a map.

Tokens are `[batch, length, dim]`; the points of a channels-last map are such tokens without a copy. Memory is linear
in the number of tokens where torch's fused kernels apply.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentdiff._checks import check_choice, check_count, check_rate, check_shape
from latentdiff._convolution import is_transformed
from latentdiff._fusion import drop_out, geglu
from latentdiff._layers import conv, group_norm, zero_
from latentdiff._module import Module
from latentdiff._narrow_attention import attend
from latentdiff._typing import SpatialDims, Tokens

QKVOrder: TypeAlias = Literal["legacy", "new", "separate"]
"""Where queries, keys and values come from; see `SpatialSelfAttention`."""

VECTOR: Final = 16
"""Floats that a CPU works on at once."""


class CrossAttention(Module):
    r"""Multi-head attention from tokens to a context, or among the tokens themselves.

    \(\mathrm{softmax}(Q K^T / \sqrt{d})\, V\) with \(Q = x W_Q\), \(K = c\, W_K\), \(V = c\, W_V\), per head of
    \(d\) = `head_dim` channels; then a linear layer and dropout.

    A masked token has no influence whatever it holds, not even infinities. Where the mask hides the whole context, the
    attention's result is zero, so the output is the bias of `to_out`.

    References:
        Vaswani et al. 2017, arXiv:1706.03762, eq. 1; Rombach et al. 2022, arXiv:2112.10752, section 3.3.
    """

    def __init__(
        self,
        *,
        query_dim: int,
        context_dim: int | None = None,
        num_heads: int = 8,
        head_dim: int = 64,
        dropout: float = 0.0,
    ) -> None:
        """Build the projections.

        Args:
            query_dim: Size of the tokens, and of the output.
            context_dim: Size of the context's tokens; None for self-attention.
            num_heads: Heads.
            head_dim: Channels of a head; `num_heads * head_dim` may differ from `query_dim`.
            dropout: Rate on the output.

        Raises:
            TypeError: If a size is not whole.
            ValueError: If a size is not positive, or `dropout` is no rate.
        """
        super().__init__()
        for name, size in (("query_dim", query_dim), ("num_heads", num_heads), ("head_dim", head_dim)):
            check_count(name, size)
        if context_dim is not None:
            check_count("context_dim", context_dim)
        check_rate("dropout", dropout)
        self.query_dim = query_dim
        self.context_dim = context_dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        inner = num_heads * head_dim
        self.to_q: nn.Linear = nn.Linear(query_dim, inner, bias=False)
        self.to_k: nn.Linear = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_v: nn.Linear = nn.Linear(context_dim or query_dim, inner, bias=False)
        self.to_out: nn.Linear = nn.Linear(inner, query_dim)

    def forward(self, x: Tokens, context: Tokens | None = None, mask: Tensor | None = None) -> Tokens:
        """Attend from `x` to `context`, or to `x` itself.

        Args:
            x: `[batch, length, query_dim]`.
            context: `[batch, context_length, context_dim]`.
            mask: `[batch, context_length]`, bool, True where attention may look; None looks everywhere. One of four
                axes is taken as `hide` returned it, with the context.

        Returns:
            `[batch, length, query_dim]`.

        Raises:
            TypeError: If `mask` is not boolean.
            ValueError: If a shape does not fit, or the context is missing.
        """
        check_shape("x", x, "batch length query_dim", query_dim=self.query_dim)
        if context is None and self.context_dim is not None:
            raise ValueError(f"context must be [batch, length, {self.context_dim}] (context_dim), got None")
        context = x if context is None else context
        dim = self.context_dim or self.query_dim
        check_shape("context", context, "batch context_length context_dim", batch=x.shape[0], context_dim=dim)
        if mask is not None and mask.ndim != 4:
            context, mask = hide(context, mask)
        q, k, v = (
            tokens.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = attend(q, k, v, mask)  # [batch, heads, length, head_dim]
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return drop_out(out, self.dropout, self.training)


def hide(context: Tokens, mask: Tensor) -> tuple[Tokens, Tensor]:
    """Prepare a context and its mask so that masked tokens are without influence.

    Hidden tokens become zero: nothing in them, be it infinite, reaches a product. Where all are hidden, all may be
    looked at: their values, projected without bias, are zero too, and so is their mean.

    Args:
        context: `[batch, context_length, context_dim]`.
        mask: `[batch, context_length]`, bool, True where attention may look.

    Returns:
        The context, and the mask `[batch, 1, 1, context_length]`, True somewhere in each row.
    """
    batch, length, _ = context.shape
    check_shape("mask", mask, "batch context_length", batch=batch, context_length=length)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True where attention may look, got {mask.dtype}")
    visible = mask | ~mask.any(dim=1, keepdim=True)
    return context.masked_fill(~mask[..., None], 0.0), rearrange(visible, "b m -> b 1 1 m")


def seen_context(context: Tokens, mask: Tensor | None) -> tuple[Tokens, Tensor | None]:
    """A context and its mask as all attentions of a network take them, made once for all.

    What is masked is hidden, as by `hide`. On a CPU hidden tokens fill the length up to a multiple of 16, the width of
    its vectors: torch's attention goes through a rest one by one, and takes for 77 tokens twice as long as for 80.

    Args:
        context: `[batch, context_length, context_dim]`.
        mask: `[batch, context_length]`, bool, True where attention may look; None looks everywhere.

    Returns:
        The context, and the mask `[batch or 1, 1, 1, length]`; None if nothing is hidden.
    """
    if mask is not None:
        context, mask = hide(context, mask)
    missing = -context.shape[1] % VECTOR
    if context.device.type != "cpu" or is_transformed() or missing == 0:
        return context, mask
    if mask is None:
        mask = context.new_ones(1, 1, 1, context.shape[1], dtype=torch.bool)
    return F.pad(context, (0, 0, 0, missing)), F.pad(mask, (0, missing))


class FeedForward(Module):
    """Two linear layers with a gated GELU between: value times gelu(gate).

    References:
        Shazeer 2020, arXiv:2002.05202, eq. 6 (GEGLU).
    """

    def __init__(self, *, dim: int, multiplier: int = 4, dropout: float = 0.0) -> None:
        """Build the layers.

        Args:
            dim: Size of the tokens.
            multiplier: Width of the hidden layer over `dim`.
            dropout: Rate on the hidden layer.
        """
        super().__init__()
        self.dim = dim
        self.multiplier = multiplier
        self.dropout = dropout
        self.proj_in = nn.Linear(dim, 2 * multiplier * dim)
        self.proj_out = nn.Linear(multiplier * dim, dim)

    def forward(self, x: Tokens) -> Tokens:
        """Map each token of `x` `[batch, length, dim]`."""
        y: Tensor = self.proj_out(drop_out(geglu(x, self.proj_in), self.dropout, self.training))
        return y


class TransformerBlock(Module):
    """Self-attention, cross-attention and feed-forward, each normalised before and added to its input."""

    def __init__(
        self, *, dim: int, num_heads: int, head_dim: int, context_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        """Build the parts.

        Args:
            dim: Size of the tokens.
            num_heads: Heads of both attentions.
            head_dim: Channels of a head.
            context_dim: Size of the context's tokens; None makes the second attention self-attention too.
            dropout: Rate in the attentions and the feed-forward.
        """
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.context_dim = context_dim
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(dim)
        self.self_attention = CrossAttention(query_dim=dim, num_heads=num_heads, head_dim=head_dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(
            query_dim=dim, context_dim=context_dim, num_heads=num_heads, head_dim=head_dim, dropout=dropout
        )
        self.norm3 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim=dim, dropout=dropout)

    def forward(self, x: Tokens, context: Tokens | None = None, mask: Tensor | None = None) -> Tokens:
        """Apply the block.

        Args:
            x: `[batch, length, dim]`.
            context: `[batch, context_length, context_dim]`.
            mask: `[batch, context_length]`, bool, True where the cross-attention may look.

        Returns:
            `[batch, length, dim]`.
        """
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context, mask)
        y: Tensor = x + self.feed_forward(self.norm3(x))
        return y


def to_tokens(x: Tensor) -> Tokens:
    """The points of a map `[batch, channels, *spatial]` as tokens `[batch, points, channels]`."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tokens, size: tuple[int, ...]) -> Tensor:
    """Tokens `[batch, points, channels]` as the map `[batch, channels, *size]`, channels last in memory."""
    channels_first = tokens.transpose(1, 2)
    return channels_first.reshape(*channels_first.shape[:2], *size)


class SpatialTransformer(Module):
    """Transformer blocks over the points of a map, between two projections, added to the map.

    References:
        Rombach et al. 2022, arXiv:2112.10752, section 3.3 and appendix E.2.1.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        head_dim: int,
        depth: int = 1,
        context_dim: int | None = None,
        use_linear_projection: bool = False,
        spatial_dims: SpatialDims = 2,
        dropout: float = 0.0,
    ) -> None:
        """Build the blocks; the output projection starts at zero, so the whole starts as the identity.

        Args:
            channels: Channels of the map.
            num_heads: Heads.
            head_dim: Channels of a head; the blocks are `num_heads * head_dim` wide.
            depth: Number of blocks.
            context_dim: Size of the context's tokens; None for self-attention alone.
            use_linear_projection: Keep the two projections as linear layers rather than as convolutions of size 1:
                the same function, with weights of another shape.
            spatial_dims: 1, 2 or 3.
            dropout: Rate in the blocks.
        """
        super().__init__()
        self.channels = channels
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.depth = depth
        self.context_dim = context_dim
        self.use_linear_projection = use_linear_projection
        self.spatial_dims = spatial_dims
        self.dropout = dropout
        inner = num_heads * head_dim
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if use_linear_projection else conv(spatial_dims, channels, inner, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim=inner, num_heads=num_heads, head_dim=head_dim, context_dim=context_dim, dropout=dropout
            )
            for _ in range(depth)
        )
        proj_out = nn.Linear(inner, channels) if use_linear_projection else conv(spatial_dims, inner, channels, 1)
        self.proj_out = zero_(proj_out)

    def forward(self, x: Tensor, context: Tokens | None = None, mask: Tensor | None = None) -> Tensor:
        """Let the points of `x` attend to each other and to the context.

        Args:
            x: `[batch, channels, *spatial]`.
            context: `[batch, context_length, context_dim]`.
            mask: `[batch, context_length]`, bool, True where attention may look.

        Returns:
            Shaped like `x`.
        """
        size = tuple(x.shape[2:])
        h = self.norm(x)
        tokens = self.proj_in(to_tokens(h)) if self.use_linear_projection else to_tokens(self.proj_in(h))
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        h = to_map(self.proj_out(tokens), size) if self.use_linear_projection else self.proj_out(to_map(tokens, size))
        return x + h


class SpatialSelfAttention(Module):
    """Self-attention among the points of a map, without a transformer around it; added to the map.

    `qkv_order` says how the projections are kept. The UNets have one for all three, `to_qkv`, whose output is split
    into heads and then each head into q, k and v (`"legacy"`, as all published models), or into q, k and v and then
    each into heads (`"new"`). The autoencoders have three, `to_q`, `to_k` and `to_v` (`"separate"`).

    References:
        Ho et al. 2020, arXiv:2006.11239, appendix B; Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int = 1,
        eps: float = 1e-5,
        qkv_order: QKVOrder = "legacy",
        zero_output: bool = False,
    ) -> None:
        """Build the projections: linear layers on the tokens, the same for any number of spatial axes.

        Args:
            channels: Channels of the map.
            num_heads: Heads; must divide `channels`.
            eps: Of the group norm: 1e-5 in the published UNets, 1e-6 in the autoencoders.
            qkv_order: How queries, keys and values are projected.
            zero_output: Start the output projection at zero, so that the block starts as the identity.

        Raises:
            ValueError: If `num_heads` does not divide `channels`, or `qkv_order` is unknown.
        """
        super().__init__()
        check_count("num_heads", num_heads)
        check_choice("qkv_order", qkv_order, ("legacy", "new", "separate"))
        if channels % num_heads:
            raise ValueError(f"num_heads must divide channels={channels}, got num_heads={num_heads}")
        self.channels = channels
        self.num_heads = num_heads
        self.eps = eps
        self.qkv_order: QKVOrder = qkv_order
        self.zero_output = zero_output
        self.norm = group_norm(channels, eps=eps)
        if qkv_order == "separate":
            self.to_q = nn.Linear(channels, channels)
            self.to_k = nn.Linear(channels, channels)
            self.to_v = nn.Linear(channels, channels)
        else:
            self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)
        if zero_output:
            zero_(self.to_out)

    def forward(self, x: Tensor) -> Tensor:
        """Let the points of `x` `[batch, channels, *spatial]` attend to each other."""
        q, k, v = self._project(to_tokens(self.norm(x)))
        attended = attend(q, k, v)
        out: Tensor = self.to_out(rearrange(attended, "b heads n d -> b n (heads d)"))
        return x + to_map(out, tuple(x.shape[2:]))

    def _project(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `tokens`, each `[batch, heads, length, head_dim]`."""
        if self.qkv_order == "separate":
            projections = (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
            q, k, v = (rearrange(y, "b n (heads d) -> b heads n d", heads=self.num_heads) for y in projections)
            return q, k, v
        axes = "heads qkv d" if self.qkv_order == "legacy" else "qkv heads d"
        q, k, v = rearrange(self.to_qkv(tokens), f"b n ({axes}) -> qkv b heads n d", qkv=3, heads=self.num_heads)
        return q, k, v
