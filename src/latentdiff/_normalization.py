"""Group normalisation that is as precise on channels-last maps as on others."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from latentdiff._convolution import is_channels_last, is_chosen_here
from latentdiff._moments import ChannelMoments

MOST_POINTS: Final = 4096
"""Of a map that is normalised at once."""

PIECE: Final = 1024
"""Points of a piece of a larger one, at most."""

TOLERANCE: Final = 2e-5
"""Of a result, about, in units of its deviation."""


class GroupNorm(nn.GroupNorm):
    r"""`torch.nn.GroupNorm`: the same constructor, weights and function.

    On channels-last maps torch's kernel adds up one point after the other, and takes the variance as mean square less
    squared mean \(m^2\). With N points and deviation s about \(\sqrt N\,(1 + m^2 / s^2)\) ulps are lost: 1e-6 on
    32 x 32 points, 1e-3 on 1024 x 1024. Large maps are therefore normalised in pieces whose moments are then put
    together; and where even that would lose too much, in the layout whose kernel is precise.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` `[batch, channels, *spatial]`."""
        if not (is_chosen_here(input) and is_channels_last(input)):
            return super().forward(input)
        points = input.shape[2] * input.shape[3]
        y = self._at_once(input)[0] if points <= MOST_POINTS else self._in_pieces(input)
        if y is not None:
            return y
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)

    def _at_once(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """The result, None where it would be imprecise; mean and inverse deviation, both `[batch, groups]`."""
        batch, channels, height, width = x.shape
        points = height * width
        y, mean, inverse = torch.native_group_norm(
            x, self.weight, self.bias, batch, channels, points, self.num_groups, self.eps
        )
        farthest = torch.linalg.vector_norm(mean * inverse, math.inf).item()
        lost = math.sqrt(points) * (1 + farthest**2) * torch.finfo(x.dtype).eps / 2
        return (y if lost < TOLERANCE else None), mean, inverse

    def _in_pieces(self, x: Tensor) -> Tensor | None:
        """As `_at_once`, for bands of a large map; None where they are imprecise or a gradient is wanted."""
        if torch.is_grad_enabled():
            return None
        batch, channels, height, width = x.shape
        rows = next(n for n in range(max(1, PIECE // width), 0, -1) if height % n == 0)
        bands = x.permute(0, 2, 3, 1).reshape(-1, rows, width, channels).permute(0, 3, 1, 2)
        y, mean, inverse = self._at_once(bands)
        if y is None:
            return None
        mean, inverse = (
            moment.to(torch.float64).unflatten(0, (batch, -1)).movedim(1, 0).flatten(1) for moment in (mean, inverse)
        )  # [pieces, batch * groups]
        whole, repeats = ChannelMoments.of(mean, inverse**-2 - self.eps), channels // self.num_groups
        wanted = (whole.variance + self.eps).rsqrt()
        scale, shift = (
            of_group.unflatten(1, (batch, -1)).movedim(0, 1).flatten(0, 1).repeat_interleave(repeats, 1)
            for of_group in (wanted / inverse, (mean - whole.mean) * wanted)
        )
        shift = shift * self.weight + self.bias * (1 - scale)
        y.mul_(scale.to(x.dtype)[..., None, None]).add_(shift.to(x.dtype)[..., None, None])
        return y.permute(0, 2, 3, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
