"""The autoencoder's two networks, those of the published first stages, for 1, 2 and 3 spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from latentdiff._attention import SpatialSelfAttention
from latentdiff._convolution import as_fast_map
from latentdiff._fusion import silu_of
from latentdiff._layers import Conv, Downsample, ResidualBlock, Upsample, conv, group_norm
from latentdiff._linear_attention import SpatialLinearAttention
from latentdiff._typing import SpatialDims

EPS: Final = 1e-6
"""Of every norm in the published autoencoders."""

CoderAttention: TypeAlias = SpatialSelfAttention | SpatialLinearAttention
"""Attention among the points of a map, at a cost of the square of their number or of the number."""


class CoderStage(nn.Module):
    """A residual block and, where there is attention, what follows it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        attention: bool,
        linear_attention: bool = False,
        spatial_dims: SpatialDims,
        dropout: float,
    ) -> None:
        """Build the two."""
        super().__init__()
        self.block = ResidualBlock(
            in_channels=in_channels, out_channels=out_channels, spatial_dims=spatial_dims, eps=EPS, dropout=dropout
        )
        self.attention: CoderAttention | None = None
        if attention and linear_attention:
            self.attention = SpatialLinearAttention(channels=out_channels)
        elif attention:
            self.attention = SpatialSelfAttention(channels=out_channels, eps=EPS, qkv_order="separate")

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[batch, in_channels, *spatial]` to `[batch, out_channels, *spatial]`."""
        h: Tensor = self.block(x)
        return h if self.attention is None else self.attention(h)


class CoderLevel(nn.Module):
    """The stages of one resolution, and the way to the next."""

    def __init__(self, stages: Sequence[CoderStage], resample: Downsample | Upsample | None) -> None:
        """Join them."""
        super().__init__()
        self.stages: nn.ModuleList = nn.ModuleList(stages)
        self.resample = resample

    def forward(self, x: Tensor, gradient_checkpointing: bool = False) -> Tensor:
        """Map `x` `[batch, in_channels, *spatial]` to `[batch, out_channels, *resampled]`."""
        for stage in self.stages:
            x = _run(stage, x, gradient_checkpointing)
        return x if self.resample is None else self.resample(x)

    def layers(self) -> list[nn.Module]:
        """What `forward` applies, in order."""
        return [*self.stages] if self.resample is None else [*self.stages, self.resample]


class Encoder(nn.Module):
    """Residual blocks, each level at half the size of the one before; then the middle.

    References:
        Esser et al. 2021, arXiv:2012.09841, table 7; Rombach et al. 2022, arXiv:2112.10752, appendix E.1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        base_channels: int,
        widths: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        linear_attention: bool,
        conv_resampling: bool,
        spatial_dims: SpatialDims,
        dropout: float,
    ) -> None:
        """Build the layers; `widths` are the channels of each level, from full size down."""
        super().__init__()
        self.conv_in: Conv = conv(spatial_dims, in_channels, base_channels, 3)
        self.down: nn.ModuleList = nn.ModuleList()
        width = base_channels
        for level, out_width in enumerate(widths):
            stages: list[CoderStage] = []
            for _ in range(blocks_per_level):
                attention = level in attention_levels
                stages.append(_stage(width, out_width, attention, linear_attention, spatial_dims, dropout))
                width = out_width
            is_last = level == len(widths) - 1
            down = Downsample(channels=width, spatial_dims=spatial_dims, asymmetric=True, use_conv=conv_resampling)
            self.down.append(CoderLevel(stages, None if is_last else down))
        self.middle: CoderLevel = _middle(width, middle_attention, linear_attention, spatial_dims, dropout)
        self.norm_out: nn.GroupNorm = group_norm(width, eps=EPS)
        self.conv_out: Conv = conv(spatial_dims, width, out_channels, 3)

    def forward(self, x: Tensor, gradient_checkpointing: bool = False) -> Tensor:
        """Map `x` `[batch, in_channels, *spatial]` to `[batch, out_channels, *spatial / f]`."""
        h: Tensor = self.conv_in(as_fast_map(x))
        for level in self.down:
            h = level(h, gradient_checkpointing)
        h = self.middle(h, gradient_checkpointing)
        h = self.conv_out(silu_of(self.norm_out, h))
        return h

    def layers(self) -> list[nn.Module]:
        """What `forward` applies, in order."""
        down = [layer for level in self.down for layer in cast(CoderLevel, level).layers()]
        return [self.conv_in, *down, *self.middle.layers(), nn.Sequential(self.norm_out, nn.SiLU(), self.conv_out)]


class Decoder(nn.Module):
    """The middle; then residual blocks, each level at twice the size of the one before.

    References:
        As `Encoder`.
    """

    conv_out: Conv

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        linear_attention: bool,
        conv_resampling: bool,
        spatial_dims: SpatialDims,
        dropout: float,
        tanh_output: bool,
    ) -> None:
        """Build the layers; `widths` are the channels of each level, from full size down."""
        super().__init__()
        self.tanh_output = tanh_output
        width = widths[-1]
        self.conv_in: Conv = conv(spatial_dims, in_channels, width, 3)
        self.middle: CoderLevel = _middle(width, middle_attention, linear_attention, spatial_dims, dropout)
        self.up: nn.ModuleList = nn.ModuleList()
        for level, out_width in reversed(list(enumerate(widths))):
            stages: list[CoderStage] = []
            for _ in range(blocks_per_level + 1):
                attention = level in attention_levels
                stages.append(_stage(width, out_width, attention, linear_attention, spatial_dims, dropout))
                width = out_width
            up = Upsample(channels=width, spatial_dims=spatial_dims, use_conv=conv_resampling)
            self.up.append(CoderLevel(stages, up if level else None))
        self.norm_out: nn.GroupNorm = group_norm(width, eps=EPS)
        self.conv_out = conv(spatial_dims, width, out_channels, 3)

    def forward(self, z: Tensor, gradient_checkpointing: bool = False) -> Tensor:
        """Map `z` `[batch, in_channels, *spatial]` to `[batch, out_channels, *spatial * f]`."""
        h: Tensor = self.middle(self.conv_in(as_fast_map(z)), gradient_checkpointing)
        for level in self.up:
            h = level(h, gradient_checkpointing)
        h = self.conv_out(silu_of(self.norm_out, h))
        return h.tanh() if self.tanh_output else h

    def layers(self) -> list[nn.Module]:
        """What `forward` applies, in order."""
        up = [layer for level in self.up for layer in cast(CoderLevel, level).layers()]
        out = [self.norm_out, nn.SiLU(), self.conv_out, *([nn.Tanh()] if self.tanh_output else [])]
        return [self.conv_in, *self.middle.layers(), *up, nn.Sequential(*out)]


def _stage(
    in_channels: int, out_channels: int, attention: bool, linear: bool, spatial_dims: SpatialDims, dropout: float
) -> CoderStage:
    return CoderStage(
        in_channels,
        out_channels,
        attention=attention,
        linear_attention=linear,
        spatial_dims=spatial_dims,
        dropout=dropout,
    )


def _middle(channels: int, attention: bool, linear: bool, spatial_dims: SpatialDims, dropout: float) -> CoderLevel:
    """Block, attention, block."""
    stages = [_stage(channels, channels, here, linear, spatial_dims, dropout) for here in (attention, False)]
    return CoderLevel(stages, None)


def _run(stage: nn.Module, x: Tensor, gradient_checkpointing: bool) -> Tensor:
    if gradient_checkpointing and torch.is_grad_enabled():
        again = cast(Tensor, checkpoint(stage, x, use_reentrant=False))
        return again
    y: Tensor = stage(x)
    return y
