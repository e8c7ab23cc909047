"""Group normalisation that is as precise on channels-last maps as on others."""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._convolution import is_channels_last, is_chosen_here
from latentdiff._moments import ChannelMoments

MOST_POINTS: Final = 4096
"""Of a map that is normalised at once."""

PIECE: Final = 1024
"""Points of a piece of a larger one, at most."""

TOLERANCE: Final = 2e-5
"""Of a result, about, in units of its deviation."""

CACHED: Final = 2**17
"""Numbers that stay in a core's cache."""


class GroupNorm(nn.GroupNorm):
    r"""`torch.nn.GroupNorm`: the same constructor, weights and function.

    On channels-last maps torch's kernel adds up one point after the other, and takes the variance as mean square less
    squared mean \(m^2\). With N points and deviation s about \(\sqrt N\,(1 + m^2 / s^2)\) ulps are lost: 1e-6 on
    32 x 32 points, 1e-3 on 1024 x 1024. Large maps are therefore normalised in pieces whose moments are then put
    together; and where even that would lose too much, in the layout whose kernel is precise.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` `[batch, channels, *spatial]`."""
        return self._normalised(input, None, is_activated=False)

    def silu(self, x: Tensor, *, is_free: bool) -> Tensor:
        """The SiLU of the result, without gradients; with `is_free`, in the memory of `x` where that is sooner."""
        return self._normalised(x, x if is_free else None, is_activated=True)

    def _normalised(self, x: Tensor, out: Tensor | None, *, is_activated: bool) -> Tensor:
        if is_chosen_here(x) and is_channels_last(x):
            small = x.shape[2] * x.shape[3] <= MOST_POINTS
            y = self._at_once(x, is_activated) if small else self._in_pieces(x, out, is_activated)
            if y is not None:
                return y
            y = super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        else:
            y = super().forward(x)
        return F.silu(y, inplace=True) if is_activated else y

    def _at_once(self, x: Tensor, is_activated: bool) -> Tensor | None:
        """The result; None where it would be imprecise."""
        batch, channels, height, width = x.shape
        points = height * width
        y, mean, inverse = torch.native_group_norm(
            x, self.weight, self.bias, batch, channels, points, self.num_groups, self.eps
        )
        farthest = torch.linalg.vector_norm(mean * inverse, math.inf).item()
        if not _is_precise(points, 1 + farthest**2, x.dtype):
            return None
        return F.silu(y, inplace=True) if is_activated else y

    def _in_pieces(self, x: Tensor, out: Tensor | None, is_activated: bool) -> Tensor | None:
        """As `_at_once`, in pieces that stay in the cache from one operation to the next; None for a gradient too."""
        if torch.is_grad_enabled():
            return None
        affine = self._affine(x)
        if affine is None:
            return None
        out = torch.empty_like(x) if out is None else out
        for scale, shift, sample, result in zip(*affine, _pieces(x), _pieces(out), strict=True):
            for part, place in zip(*(_parts(each) for each in (sample, result)), strict=True):
                torch.mul(part, scale, out=place).add_(shift)
                if is_activated:
                    F.silu(place, inplace=True)
        return out

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scale and shift `[batch, channels]` that normalise `x`; None if they are imprecise."""
        batch, channels = x.shape[:2]
        whole = group_moments(x, self.num_groups, self.eps)
        if whole is None:
            return None
        inverse = (whole.variance + self.eps).rsqrt()
        repeats = channels // self.num_groups
        inverse, mean = (x.repeat_interleave(repeats).view(batch, channels) for x in (inverse, whole.mean))
        scale = inverse * self.weight
        return scale.to(x.dtype), (self.bias - mean * scale).to(x.dtype)


def group_moments(x: Tensor, groups: int, eps: float) -> ChannelMoments | None:
    """Moments of the groups of a map, by way of pieces of it, the groups taken for channels.

    Args:
        x: `[batch, channels, height, width]`, channels last in memory.
        groups: Of channels.
        eps: Added to a variance before what is lost of it is compared with it.

    Returns:
        Of `batch * groups` channels; None if they would be imprecise.
    """
    batch, channels = x.shape[:2]
    pieces = _pieces(x)
    points = pieces.shape[2]
    sums = [(part.sum(1), part.square().sum(1)) for sample in pieces for part in _parts(sample)]
    mean, square = (
        (torch.cat(part).to(torch.float64) / points)
        .view(batch, -1, groups, channels // groups)
        .transpose(1, 2)
        .flatten(2)
        .flatten(0, 1)
        .T
        for part in zip(*sums, strict=True)
    )  # [pieces * channels of a group, batch * groups]
    moments = ChannelMoments.of(mean, square - mean.square())
    if not _is_precise(points, float((square / (moments.variance + eps)).max()), x.dtype):
        return None
    return ChannelMoments(moments.count * points, moments.mean, moments.scatter * points)


def _pieces(x: Tensor) -> Tensor:
    """A channels-last map in bands of equal numbers of rows: `[batch, bands, points, channels]`."""
    batch, channels, height, width = x.shape
    rows = next(n for n in range(max(1, PIECE // width), 0, -1) if height % n == 0)
    return x.permute(0, 2, 3, 1).reshape(batch, -1, rows * width, channels)


def _parts(pieces: Tensor) -> tuple[Tensor, ...]:
    """Some of the pieces `[pieces, points, channels]` at a time."""
    parts: tuple[Tensor, ...] = pieces.split(max(1, CACHED // pieces[0].numel()))
    return parts


def _is_precise(points: int, size: float, dtype: torch.dtype) -> bool:
    """Whether sums over so many points lose little of a variance of 1, where the mean square is `size`."""
    return math.sqrt(points) * size * torch.finfo(dtype).eps / 2 < TOLERANCE
