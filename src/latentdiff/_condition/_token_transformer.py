"""The transformer of the paper's token conditions: captions and layouts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._attention import CrossAttention
from latentdiff._checks import check_count, check_range, check_shape
from latentdiff._condition._encoder import check_integers
from latentdiff._module import Module
from latentdiff._typing import Tokens


class EncoderBlock(Module):
    """Self-attention and two linear layers with a GELU between, each normalised before and added to its input."""

    def __init__(self, *, dim: int, num_heads: int, head_dim: int) -> None:
        """Build the parts.

        Args:
            dim: Size of the tokens; the hidden layer is four times as wide.
            num_heads: Heads.
            head_dim: Channels of a head.
        """
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attention = CrossAttention(query_dim=dim, num_heads=num_heads, head_dim=head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tokens, mask: Tensor | None = None) -> Tokens:
        """Map `x` `[batch, length, dim]`; attention looks where `mask` `[batch, length]`, bool, is True."""
        x = x + self.attention(self.norm1(x), None, mask)
        y: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return y


class TokenTransformer(Module):
    """Token ids to vectors that know of each other.

    Learned positions are added to learned tokens; pre-norm blocks; a norm at the end. Attention has `num_heads` heads
    of `head_dim` channels whatever the width, as in the published models.

    References:
        Devlin et al. 2019, arXiv:1810.04805, section 3 (BERT); Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        max_length: int,
        dim: int,
        depth: int,
        num_heads: int = 8,
        head_dim: int = 64,
        vocabulary_head: bool = False,
    ) -> None:
        """Build the tables and the blocks.

        Args:
            vocabulary_size: Ids are 0 ... vocabulary_size - 1.
            max_length: Most tokens.
            dim: Size of a vector.
            depth: Number of blocks.
            num_heads: Heads.
            head_dim: Channels of a head.
            vocabulary_head: Whether there is a linear layer `to_logits` from vectors to scores of all ids. Encoding has
                no use for it; published checkpoints hold one.

        Raises:
            ValueError: If a number is not positive.
        """
        super().__init__()
        for name, value in (("vocabulary_size", vocabulary_size), ("max_length", max_length), ("dim", dim)):
            check_count(name, value)
        check_count("depth", depth)
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.vocabulary_head = vocabulary_head
        self.token_embedding: nn.Embedding = nn.Embedding(vocabulary_size, dim)
        self.position_embedding: nn.Embedding = nn.Embedding(max_length, dim)
        for table in (self.token_embedding, self.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks: nn.ModuleList = nn.ModuleList(
            EncoderBlock(dim=dim, num_heads=num_heads, head_dim=head_dim) for _ in range(depth)
        )
        self.norm: nn.LayerNorm = nn.LayerNorm(dim)
        self.to_logits: nn.Linear | None = nn.Linear(dim, vocabulary_size) if vocabulary_head else None

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encode.

        Args:
            ids: `[batch, length]`, integer, in 0 ... vocabulary_size - 1; `length` up to `max_length`.
            mask: `[batch, length]`, bool, True where attention may look; None looks everywhere.

        Returns:
            `[batch, length, dim]`.

        Raises:
            TypeError: If `ids` does not hold integers, or `mask` is not boolean.
            ValueError: If a shape does not fit, or an id is out of range (on an accelerator, torch reports it).
        """
        ids = check_integers("ids", ids, "token ids")
        check_shape("ids", ids, "batch length")
        if ids.shape[1] > self.max_length:
            raise ValueError(f"ids must have at most {self.max_length} tokens (max_length), got {ids.shape[1]}")
        check_range("ids", ids, 0, self.vocabulary_size - 1)
        ids = ids.to(self.token_embedding.weight.device, torch.int64)
        x: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        y: Tensor = self.norm(x)
        return y
