"""The denoising network: noisy latents, time and condition to a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from latentdiff._attention import QKVOrder, SpatialSelfAttention, SpatialTransformer, seen_context
from latentdiff._checks import SPATIAL, check_choice, check_count, check_floating, check_rate, check_shape
from latentdiff._condition import Condition
from latentdiff._convolution import as_fast_map
from latentdiff._fusion import silu_of
from latentdiff._layers import (
    Conv,
    Downsample,
    EmbeddingMLP,
    Resample,
    ResidualBlock,
    Upsample,
    conv,
    group_norm,
    timestep_embedding,
    zero_,
)
from latentdiff._module import Module
from latentdiff._network_inputs import batch_times, class_vectors, fitting_condition
from latentdiff._typing import Latents, SpatialDims, Times, Tokens
from latentdiff._unet_levels import Attention, DownLevel, Stage, UpLevel, call


class UNet(Module):
    """A U-shaped convolutional network with attention.

    Residual blocks at each level, with skip connections from the way down to the way up. Levels with attention have
    plain self-attention, or, where there is a `context_dim`, spatial transformers that attend to the context too. The
    residual branches and the output start at zero. Any spatial size works and comes back: an odd one is rounded up on
    the way down.

    References:
        Rombach et al. 2022, arXiv:2112.10752, section 3.3 and appendix E.2; Dhariwal and Nichol 2021,
        arXiv:2105.05233, section 3.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int | Sequence[int] = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        num_heads: int | None = None,
        head_dim: int | None = None,
        num_heads_up: int | None = None,
        context_dim: int | None = None,
        transformer_depth: int | Sequence[int] = 1,
        use_linear_projection: bool = False,
        qkv_order: QKVOrder = "legacy",
        embedding_dim: int | None = None,
        num_classes: int | None = None,
        concat_channels: int = 0,
        scale_shift_norm: bool = False,
        residual_resampling: bool = False,
        conv_resampling: bool = True,
        spatial_dims: SpatialDims = 2,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the network.

        Args:
            in_channels: Channels of the latents.
            out_channels: Channels of the prediction; None is `in_channels`.
            base_channels: Channels before the first level, and size of the time's sinusoids; 2 or more.
            channel_multipliers: Channels of each level over `base_channels`; level 0 has full size, each next half.
            blocks_per_level: Residual blocks on the way down, one number or one for each level; one more on the way up.
            attention_levels: Levels with attention after each residual block.
            middle_attention: Whether there is attention between the two residual blocks in the middle.
            num_heads: Heads of attention; 1 if neither this nor `head_dim` is given.
            head_dim: Channels of a head. If both are given, their product must be the channels wherever there is
                attention.
            num_heads_up: Heads on the way up, where they are others than `num_heads`, which alone must then be given.
            context_dim: Size of the context's tokens; None for a network without context.
            transformer_depth: Transformer blocks at a place of attention, one number or one for each level; the middle
                takes that of the last level.
            use_linear_projection: Keep the projections around transformer blocks as linear layers rather than as
                convolutions of size 1: the same function.
            qkv_order: How plain attention keeps its projections; see `SpatialSelfAttention`.
            embedding_dim: Size of the condition's embedding; None for a network without one.
            num_classes: Size of a table of classes instead: the condition's embedding is then labels `[batch]`.
            concat_channels: Channels of the condition's `concat`.
            scale_shift_norm: Let time scale and shift the norms rather than be added before them.
            residual_resampling: Let residual blocks change the resolution, rather than single convolutions.
            conv_resampling: Whether those convolutions are there; without them pairs are averaged on the way down, and
                points repeated on the way up.
            spatial_dims: 1, 2 or 3.
            dropout: Rate in residual blocks and transformers.
            gradient_checkpointing: Keep less memory in training and compute the stages twice; may be changed later.

        Raises:
            TypeError: If a number is not whole where it counts something.
            ValueError: If a number is out of range, or two arguments do not fit together.
        """
        super().__init__()
        self.in_channels = in_channels
        self.out_channels: int = in_channels if out_channels is None else out_channels
        self.base_channels = base_channels
        self.channel_multipliers: tuple[int, ...] = _whole("channel_multipliers", channel_multipliers)
        self.blocks_per_level: int | tuple[int, ...] = _plain("blocks_per_level", blocks_per_level)
        self.attention_levels: tuple[int, ...] = _whole("attention_levels", attention_levels)
        self.middle_attention = middle_attention
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_heads_up = num_heads_up
        self.context_dim = context_dim
        self.transformer_depth: int | tuple[int, ...] = _plain("transformer_depth", transformer_depth)
        self.use_linear_projection = use_linear_projection
        self.qkv_order: QKVOrder = qkv_order
        self.embedding_dim = embedding_dim
        self.num_classes = num_classes
        self.concat_channels = concat_channels
        self.scale_shift_norm = scale_shift_norm
        self.residual_resampling = residual_resampling
        self.conv_resampling = conv_resampling
        self.spatial_dims: SpatialDims = spatial_dims
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self._check_arguments()
        self._build()

    def _check_arguments(self) -> None:
        """Require that the arguments make a network, before a layer is built."""
        check_choice("spatial_dims", self.spatial_dims, (1, 2, 3))
        check_choice("qkv_order", self.qkv_order, ("legacy", "new"))
        for name in ("in_channels", "out_channels"):
            check_count(name, getattr(self, name))
        for name in ("num_heads", "head_dim", "num_heads_up", "context_dim", "embedding_dim", "num_classes"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("base_channels", self.base_channels)
        check_count("concat_channels", self.concat_channels, least=0)
        check_rate("dropout", self.dropout)
        if self.base_channels < 2:
            raise ValueError(f"base_channels must be 2 or more, for a sine and a cosine, got {self.base_channels}")
        if self.num_heads_up is not None and (self.num_heads is None or self.head_dim is not None):
            raise ValueError(
                "num_heads_up must be None unless num_heads is given and head_dim is not, got "
                f"{self.num_heads_up} with num_heads={self.num_heads} and head_dim={self.head_dim}"
            )
        if self.residual_resampling and not self.conv_resampling:
            raise ValueError("conv_resampling must be True with residual_resampling, got False")
        if self.embedding_dim is not None and self.num_classes is not None:
            raise ValueError(
                "embedding_dim and num_classes must not both be given, as a condition's embedding is a vector or a "
                f"label, got {self.embedding_dim} and {self.num_classes}"
            )
        if self.context_dim is not None and not (self.attention_levels or self.middle_attention):
            raise ValueError(
                f"context_dim must be None without attention, got {self.context_dim}; name attention_levels, "
                "or set middle_attention"
            )
        self._check_levels()

    def _check_levels(self) -> None:
        """Require that what is said by level fits the levels there are."""
        levels = len(self.channel_multipliers)
        if not levels or min(self.channel_multipliers) < 1:
            raise ValueError(
                f"channel_multipliers must be positive numbers, one a level, got {self.channel_multipliers}"
            )
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"attention_levels must be in [0, {levels - 1}], got {self.attention_levels}")
        for name in ("blocks_per_level", "transformer_depth"):
            given: int | tuple[int, ...] = getattr(self, name)
            numbers = _per_level(given, levels)
            least = 1 if name == "blocks_per_level" else 0
            if len(numbers) != levels or min(numbers) < least:
                raise ValueError(
                    f"{name} must be a number from {least}, or one for each of {levels} levels, got {given}"
                )

    def _build(self) -> None:
        """Make the layers."""
        levels = len(self.channel_multipliers)
        widths = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        blocks = _per_level(self.blocks_per_level, levels)
        self._time_dim = 4 * self.base_channels
        self.time_embedding: EmbeddingMLP = EmbeddingMLP(in_dim=self.base_channels, out_dim=self._time_dim)
        self.vector_embedding: EmbeddingMLP | None = None
        if self.embedding_dim is not None:
            self.vector_embedding = EmbeddingMLP(in_dim=self.embedding_dim, out_dim=self._time_dim)
        self.class_embedding: nn.Embedding | None = None
        if self.num_classes is not None:
            self.class_embedding = nn.Embedding(self.num_classes, self._time_dim)
        self.conv_in: Conv = conv(self.spatial_dims, self.in_channels + self.concat_channels, self.base_channels, 3)

        width, skips = self.base_channels, [self.base_channels]  # channels of what waits for the way up
        self.down: nn.ModuleList = nn.ModuleList()
        for level in range(levels):
            stages = [self._stage(width if i == 0 else widths[level], level) for i in range(blocks[level])]
            width, last = widths[level], level == levels - 1
            self.down.append(DownLevel(stages, None if last else self._downsample(width)))
            skips += [width] * (blocks[level] + (not last))

        middle = self._attention(width, levels - 1) if self.middle_attention else None
        self.middle: nn.ModuleList = nn.ModuleList([Stage(self._block(width), middle), Stage(self._block(width), None)])

        up: list[UpLevel] = []
        for level in reversed(range(levels)):
            inputs = [width, *[widths[level]] * blocks[level]]
            stages = [self._stage(channels + skips.pop(), level, is_up=True) for channels in inputs]
            width = widths[level]
            up.append(UpLevel(stages, self._upsample(width) if level else None))
        self.up: nn.ModuleList = nn.ModuleList(reversed(up))  # numbered by level, as `down` is

        self.norm_out: nn.GroupNorm = group_norm(width, eps=1e-5)
        self.conv_out: Conv = zero_(conv(self.spatial_dims, width, self.out_channels, 3))

    def _stage(self, in_channels: int, level: int, is_up: bool = False) -> Stage:
        """A stage of `level` on `in_channels` channels, of the way down or up."""
        width = self.base_channels * self.channel_multipliers[level]
        attention = self._attention(width, level, is_up) if level in self.attention_levels else None
        return Stage(self._block(in_channels, width), attention)

    def _block(
        self, in_channels: int, out_channels: int | None = None, resample: Resample | None = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_channels=in_channels,
            out_channels=out_channels,
            embedding_dim=self._time_dim,
            spatial_dims=self.spatial_dims,
            dropout=self.dropout,
            scale_shift=self.scale_shift_norm,
            resample=resample,
            zero_output=True,
        )

    def _downsample(self, channels: int) -> Downsample | ResidualBlock:
        if self.residual_resampling:
            return self._block(channels, resample="down")
        return Downsample(channels=channels, spatial_dims=self.spatial_dims, use_conv=self.conv_resampling)

    def _upsample(self, channels: int) -> Upsample | ResidualBlock:
        if self.residual_resampling:
            return self._block(channels, resample="up")
        return Upsample(channels=channels, spatial_dims=self.spatial_dims, use_conv=self.conv_resampling)

    def _attention(self, channels: int, level: int, is_up: bool = False) -> Attention:
        heads, head_dim = self._heads(channels, is_up)
        if self.context_dim is None:
            return SpatialSelfAttention(channels=channels, num_heads=heads, qkv_order=self.qkv_order, zero_output=True)
        return SpatialTransformer(
            channels=channels,
            num_heads=heads,
            head_dim=head_dim,
            depth=_per_level(self.transformer_depth, len(self.channel_multipliers))[level],
            context_dim=self.context_dim,
            use_linear_projection=self.use_linear_projection,
            spatial_dims=self.spatial_dims,
            dropout=self.dropout,
        )

    def _heads(self, channels: int, is_up: bool) -> tuple[int, int]:
        """Number of heads over `channels`, and channels of each."""
        name = "num_heads_up" if is_up and self.num_heads_up is not None else "num_heads"
        number: int | None = getattr(self, name)
        if number is not None:
            heads, head_dim = number, self.head_dim or channels // number
        else:
            head_dim = self.head_dim or channels
            heads = channels // head_dim
        if heads * head_dim != channels:
            raise ValueError(
                f"{name} times head_dim must be the {channels} channels of a level with attention, "
                f"got {name}={number} and head_dim={self.head_dim}"
            )
        return heads, head_dim

    def forward(self, x: Latents, t: Times, condition: Condition | Tensor | None = None) -> Latents:
        """Predict.

        Floating inputs of another dtype are brought to that of the network; the time is embedded in float32 always.

        Args:
            x: `[batch, in_channels, *spatial]`, noisy latents.
            t: `[batch]`, `[]` or a number; the model's time, whole or fractional.
            condition: What this network was built for: `context` (with `context_dim`), `embedding` (with
                `embedding_dim`; with `num_classes` labels, where none is -1 or no embedding at all), `concat` (with
                `concat_channels`; of the size of `x`, or one point for all). A tensor `[batch, length, context_dim]` is
                taken as the context.

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
            network="UNet",
            context_dim=self.context_dim,
            embedding_dim=self.embedding_dim,
            num_classes=self.num_classes,
            concat_channels=self.concat_channels,
        )
        dtype = self.conv_in.weight.dtype
        embedding: Tensor = self.time_embedding(timestep_embedding(batch_times(t, x), self.base_channels).to(dtype))
        if condition.embedding is not None:
            embedding = embedding + self._embed(condition.embedding)
        x = x.to(dtype)
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(dtype)], dim=1)
        context, mask = condition.context, condition.context_mask
        if context is not None:
            context, mask = seen_context(context.to(dtype), mask)
        return self._walk(x, embedding, context, mask)

    def _walk(self, x: Tensor, embedding: Tensor, context: Tokens | None, mask: Tensor | None) -> Tensor:
        """Down, through the middle, and up: `[batch, channels, *spatial]` to `[batch, out_channels, *spatial]`."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        skips: list[Tensor] = [self.conv_in(as_fast_map(x))]
        for level in self.down:
            skips += level(skips[-1], embedding, context, mask, recompute)
        h = skips[-1]
        for stage in self.middle:
            h = call(stage, h, embedding, context, mask, recompute=recompute)
        for level in reversed(self.up):
            h = level(h, skips, embedding, context, mask, recompute)
        y: Tensor = self.conv_out(silu_of(self.norm_out, h))
        return y

    def _embed(self, embedding: Tensor) -> Tensor:
        """The condition's vector or label as a part of the time embedding, `[batch, time_dim]`."""
        part: Tensor
        if self.class_embedding is None:
            part = (
                self.vector_embedding(embedding.to(self.conv_in.weight.dtype)) if self.vector_embedding else embedding
            )
            return part
        return class_vectors(self.class_embedding, embedding)


def _plain(name: str, given: int | Sequence[int]) -> int | tuple[int, ...]:
    """One number, or one for each level as a tuple."""
    if isinstance(given, Iterable):
        return _whole(name, given)
    check_count(name, given, least=0)
    return given


def _whole(name: str, given: object) -> tuple[int, ...]:
    """Whole numbers as a tuple."""
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TypeError(f"{name} must be ints, one a level, got {given!r}")
    numbers = tuple(given)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be ints, one a level, got {numbers!r}")
    return numbers


def _per_level(given: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """A number for each level."""
    return (given,) * levels if isinstance(given, int) else given
