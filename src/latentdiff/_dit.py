"""A denoising network without a U: a transformer over patches, steered by adaptive norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from latentdiff._attention import CrossAttention, to_map, to_tokens
from latentdiff._checks import SPATIAL, check_choice, check_count, check_floating, check_shape
from latentdiff._condition import Condition
from latentdiff._layers import CONVOLUTIONS, Conv, EmbeddingMLP, timestep_embedding, zero_
from latentdiff._module import Module
from latentdiff._network_inputs import batch_times, class_vectors, fitting_condition
from latentdiff._typing import Latents, SpatialDims, Times, Tokens

TIME_DIM = 256
"""Size of the time's sinusoids (Peebles and Xie 2023, arXiv:2212.09748, appendix A)."""


class DiTBlock(nn.Module):
    r"""Self-attention and two linear layers, their input and output scaled by time and class; cross-attention between.

    \(x + g_1 A(s_1 n(x) + b_1)\), then cross-attention to a context, then \(x + g_2 F(s_2 n(x) + b_2)\), where scales
    \(s = 1 + \ldots\), shifts \(b\) and gates \(g\) are linear in the embedding and begin at 1, 0 and 0.

    References:
        Peebles and Xie 2023, arXiv:2212.09748, section 3.2 (adaLN-Zero); Chen et al. 2023, arXiv:2310.00426, section
        2.2 (the place of the cross-attention).
    """

    def __init__(self, *, dim: int, num_heads: int, context_dim: int | None, multiplier: int) -> None:
        """Build the layers; the block starts as the identity."""
        super().__init__()
        head_dim = dim // num_heads
        self.modulation: nn.Linear = zero_(nn.Linear(dim, 6 * dim))
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.self_attention: CrossAttention = CrossAttention(query_dim=dim, num_heads=num_heads, head_dim=head_dim)
        self.cross_attention: CrossAttention | None = None
        if context_dim is not None:
            self.cross_attention = CrossAttention(
                query_dim=dim, context_dim=context_dim, num_heads=num_heads, head_dim=head_dim
            )
            zero_(self.cross_attention.to_out)
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.linear1: nn.Linear = nn.Linear(dim, multiplier * dim)
        self.linear2: nn.Linear = nn.Linear(multiplier * dim, dim)

    def forward(self, x: Tokens, embedding: Tensor, context: Tokens | None, mask: Tensor | None) -> Tokens:
        """Map `x` `[batch, length, dim]`, given an embedding `[batch, dim]`."""
        numbers: Tensor = self.modulation(F.silu(embedding))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = numbers.chunk(6, dim=-1)
        x = x + gate1 * self.self_attention(self.norm1(x) * (1 + scale1) + shift1)
        if self.cross_attention is not None:
            x = x + self.cross_attention(x, context, mask)
        h: Tensor = self.norm2(x) * (1 + scale2) + shift2
        y: Tensor = x + gate2 * self.linear2(F.gelu(self.linear1(h), approximate="tanh"))
        return y


class DiT(Module):
    """A transformer over the patches of the noisy latents, as a denoising network like `UNet`.

    Patches become tokens, to which sinusoids of their places are added; time and class scale and shift what each block
    normalises, and gate what it adds. Gates and the output start at zero. Any spatial size works and comes back: it is
    filled up with zeros to whole patches, at the ends of the axes, and cut back.

    References:
        Peebles and Xie 2023, arXiv:2212.09748, section 3 and figure 3.

    Example:
        >>> dit = DiT(in_channels=4, dim=64, depth=2, num_heads=4, num_classes=10)
        >>> dit(torch.zeros(2, 4, 6, 8), 500, Condition(embedding=torch.tensor([3, -1]))).shape
        torch.Size([2, 4, 6, 8])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 2,
        context_dim: int | None = None,
        embedding_dim: int | None = None,
        num_classes: int | None = None,
        concat_channels: int = 0,
        multiplier: int = 4,
        use_positions: bool = True,
        spatial_dims: SpatialDims = 2,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the network.

        Args:
            in_channels: Channels of the latents.
            out_channels: Channels of the prediction; None is `in_channels`.
            dim: Size of the tokens.
            depth: Number of blocks.
            num_heads: Heads of attention; must divide `dim`.
            patch_size: Points of a patch on each axis.
            context_dim: Size of the context's tokens; None for a network without context.
            embedding_dim: Size of the condition's embedding; None for a network without one.
            num_classes: Size of a table of classes instead: the condition's embedding is then labels `[batch]`.
            concat_channels: Channels of the condition's `concat`.
            multiplier: Width of a block's hidden layer over `dim`.
            use_positions: Whether tokens know their places; without, a permutation of patches is one of the output.
            spatial_dims: 1, 2 or 3.
            gradient_checkpointing: Keep less memory in training and compute the blocks twice; may be changed later.

        Raises:
            ValueError: If a number is out of range, or two arguments do not fit together.
        """
        super().__init__()
        check_choice("spatial_dims", spatial_dims, (1, 2, 3))
        self.in_channels = in_channels
        self.out_channels: int = in_channels if out_channels is None else out_channels
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.context_dim = context_dim
        self.embedding_dim = embedding_dim
        self.num_classes = num_classes
        self.concat_channels = concat_channels
        self.multiplier = multiplier
        self.use_positions = use_positions
        self.spatial_dims: SpatialDims = spatial_dims
        self.gradient_checkpointing = gradient_checkpointing
        self._check_arguments()
        kernel = self.patch_size
        wide = self.in_channels + self.concat_channels
        self.patches: Conv = CONVOLUTIONS[spatial_dims](wide, dim, kernel, stride=kernel)
        self.time_embedding: EmbeddingMLP = EmbeddingMLP(in_dim=TIME_DIM, out_dim=dim)
        self.vector_embedding: EmbeddingMLP | None = None
        if embedding_dim is not None:
            self.vector_embedding = EmbeddingMLP(in_dim=embedding_dim, out_dim=dim)
        self.class_embedding: nn.Embedding | None = None if num_classes is None else nn.Embedding(num_classes, dim)
        self.blocks: nn.ModuleList = nn.ModuleList(
            DiTBlock(dim=dim, num_heads=num_heads, context_dim=context_dim, multiplier=multiplier) for _ in range(depth)
        )
        self.modulation: nn.Linear = zero_(nn.Linear(dim, 2 * dim))
        self.norm_out: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.linear_out: nn.Linear = zero_(nn.Linear(dim, self.out_channels * kernel**spatial_dims))

    def _check_arguments(self) -> None:
        """Require that the arguments make a network, before a layer is built."""
        for name in ("in_channels", "out_channels", "dim", "depth", "num_heads", "patch_size", "multiplier"):
            check_count(name, getattr(self, name))
        for name in ("context_dim", "embedding_dim", "num_classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("concat_channels", self.concat_channels, least=0)
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim={self.dim}, got num_heads={self.num_heads}")
        if self.embedding_dim is not None and self.num_classes is not None:
            raise ValueError(
                "embedding_dim and num_classes must not both be given, as a condition's embedding is a vector or a "
                f"label, got {self.embedding_dim} and {self.num_classes}"
            )

    def forward(self, x: Latents, t: Times, condition: Condition | Tensor | None = None) -> Latents:
        """Predict.

        Floating inputs of another dtype are brought to that of the network; the time is embedded in float32 always.

        Args:
            x: `[batch, in_channels, *spatial]`, noisy latents.
            t: `[batch]`, `[]` or a number; the model's time, whole or fractional.
            condition: What this network was built for, as for `UNet`. A tensor `[batch, length, context_dim]` is taken
                as the context.

        Returns:
            `[batch, out_channels, *spatial]`.

        Raises:
            TypeError: If `x` is not floating, labels are not integer, or the condition is something else.
            ValueError: If a shape does not fit, or a part of the condition is missing or has no use here.
        """
        check_floating("x", x)
        check_shape("x", x, f"batch channels {SPATIAL[self.spatial_dims]}", channels=self.in_channels)
        condition = fitting_condition(
            condition,
            x,
            network="DiT",
            context_dim=self.context_dim,
            embedding_dim=self.embedding_dim,
            num_classes=self.num_classes,
            concat_channels=self.concat_channels,
        )
        dtype = self.linear_out.weight.dtype
        embedding = self._embed(batch_times(t, x), condition.embedding)
        size = tuple(x.shape[2:])
        x = x.to(dtype)
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(dtype)], dim=1)
        context = None if condition.context is None else condition.context.to(dtype)
        y = self._walk(x, embedding, context, condition.context_mask)
        for axis, n in enumerate(size, start=2):
            y = y.narrow(axis, 0, n)
        return y

    def _walk(self, x: Tensor, embedding: Tensor, context: Tokens | None, mask: Tensor | None) -> Tensor:
        """Through the blocks: a map `[batch, channels, *spatial]` to `[batch, out_channels, *whole patches]`."""
        missing = [-n % self.patch_size for n in x.shape[2:]]
        h = self.patches(F.pad(x, [n for count in reversed(missing) for n in (0, count)]))
        grid = tuple(h.shape[2:])
        tokens = to_tokens(h)
        if self.use_positions:
            tokens = tokens + positions(grid, self.dim, h.device).to(h.dtype)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                tokens = cast(Tensor, checkpoint(block, tokens, embedding, context, mask, use_reentrant=False))
            else:
                tokens = block(tokens, embedding, context, mask)
        numbers: Tensor = self.modulation(F.silu(embedding))[:, None]
        shift, scale = numbers.chunk(2, dim=-1)
        return self._unpatch(self.linear_out(self.norm_out(tokens) * (1 + scale) + shift), grid)

    def _embed(self, t: Tensor, embedding: Tensor | None) -> Tensor:
        """Time and the condition's vector or label as one vector, `[batch, dim]`."""
        dtype = self.linear_out.weight.dtype
        y: Tensor = self.time_embedding(timestep_embedding(t, TIME_DIM).to(dtype))
        if embedding is not None and self.vector_embedding is not None:
            y = y + self.vector_embedding(embedding.to(dtype))
        if embedding is not None and self.class_embedding is not None:
            y = y + class_vectors(self.class_embedding, embedding)
        return y

    def _unpatch(self, tokens: Tokens, grid: tuple[int, ...]) -> Tensor:
        """Tokens `[batch, patches, channels * patch]`, the patch's axes last, as a map of whole patches."""
        p, dims = self.patch_size, self.spatial_dims
        x = to_map(tokens, grid).unflatten(1, (self.out_channels, *(p,) * dims))
        order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
        y: Tensor = x.permute(0, 1, *order).reshape(x.shape[0], self.out_channels, *(p * n for n in grid))
        return y


def positions(grid: Sequence[int], dim: int, device: torch.device) -> Tensor:
    """Sinusoids of the places on a grid, `[points, dim]`, float32: the axes share the channels.

    References:
        Peebles and Xie 2023, arXiv:2212.09748, section 3.2 ("frequency-based positional embeddings").
    """
    share = dim // len(grid)
    shares = [share] * (len(grid) - 1) + [dim - share * (len(grid) - 1)]
    parts: list[Tensor] = []
    for axis, (size, channels) in enumerate(zip(grid, shares, strict=True)):
        line = timestep_embedding(torch.arange(size, device=device), channels)
        spread = line.reshape(*(1,) * axis, size, *(1,) * (len(grid) - axis - 1), channels)
        parts.append(spread.expand(*grid, channels))
    return torch.cat(parts, dim=-1).reshape(-1, dim)
