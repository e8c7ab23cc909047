"""What a UNet is made of: stages of block and attention, the levels of the way down and of the way up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentdiff._attention import SpatialSelfAttention, SpatialTransformer
from latentdiff._layers import Downsample, ResidualBlock, Upsample
from latentdiff._typing import Tokens

Attention: TypeAlias = SpatialTransformer | SpatialSelfAttention
"""Attention among the points of a map, with or without a context."""


class Stage(nn.Module):
    """A residual block and, where there is attention, what follows it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        """Join the two."""
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, embedding: Tensor, context: Tokens | None, mask: Tensor | None) -> Tensor:
        """Map `x` `[batch, in_channels, *spatial]` to `[batch, out_channels, *spatial]`."""
        y: Tensor = self.block(x, embedding)
        if isinstance(self.attention, SpatialTransformer):
            y = self.attention(y, context, mask)
        elif self.attention is not None:
            y = self.attention(y)
        return y


class DownLevel(nn.Module):
    """The stages of one resolution on the way down, and the step to the next."""

    def __init__(self, stages: Sequence[Stage], downsample: Downsample | ResidualBlock | None) -> None:
        """Join them; the last level has no `downsample`."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.downsample = downsample

    def forward(
        self, x: Tensor, embedding: Tensor, context: Tokens | None, mask: Tensor | None, recompute: bool
    ) -> list[Tensor]:
        """What each layer makes of `x` `[batch, in_channels, *spatial]`, for the way up; the last goes on."""
        skips: list[Tensor] = []
        for stage in self.stages:
            x = call(stage, x, embedding, context, mask, recompute=recompute)
            skips.append(x)
        if isinstance(self.downsample, ResidualBlock):
            skips.append(call(self.downsample, x, embedding, recompute=recompute))
        elif self.downsample is not None:
            skips.append(self.downsample(x))
        return skips


class UpLevel(nn.Module):
    """The stages of one resolution on the way up, and the step to the next."""

    def __init__(self, stages: Sequence[Stage], upsample: Upsample | ResidualBlock | None) -> None:
        """Join them; level 0 has no `upsample`."""
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.upsample = upsample

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        embedding: Tensor,
        context: Tokens | None,
        mask: Tensor | None,
        recompute: bool,
    ) -> Tensor:
        """Map `x` `[batch, in_channels, *spatial]`, each stage taking one of `skips` off its end."""
        for stage in self.stages:
            x = call(stage, torch.cat([x, skips.pop()], dim=1), embedding, context, mask, recompute=recompute)
        if self.upsample is None:
            return x
        size = tuple(skips[-1].shape[2:])  # an odd size comes back as it was
        if isinstance(self.upsample, ResidualBlock):
            return call(self.upsample, x, embedding, size, recompute=recompute)
        y: Tensor = self.upsample(x, size)
        return y


def call(module: nn.Module, *arguments: Tensor | tuple[int, ...] | None, recompute: bool) -> Tensor:
    """The output of `module`; with `recompute` its insides are not kept but computed again in the backward pass."""
    y: Tensor
    if recompute:
        y = checkpoint(module, *arguments, use_reentrant=False)
    else:
        y = module(*arguments)
    return y
