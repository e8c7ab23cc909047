"""Repetition of each point followed by a convolution of size 3, at less than half of the arithmetic."""

from __future__ import annotations

import itertools
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._layers import Conv

CONVOLVE: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Doubling(nn.Module):
    r"""What a convolution of size 3 makes of a map whose every point is repeated on each axis, to rounding.

    With \(u_{2i} = u_{2i+1} = x_i\), the results at even and odd places need two points of x each:

    \[ y_{2i} = w_{-1} x_{i-1} + (w_0 + w_1)\, x_i, \qquad y_{2i+1} = (w_{-1} + w_0)\, x_i + w_1 x_{i+1}. \]

    So there is one convolution of size 2 for each of the \(2^d\) kinds of places, on the small map: \((4/6)^d\) of the
    arithmetic, and the repeated map is never made.
    """

    def __init__(self, conv: Conv) -> None:
        """Add up the weights of `conv`, as they are now; they get no gradient."""
        super().__init__()
        weight = conv.weight.detach()
        self.spatial_dims = weight.ndim - 2
        for axis in range(2, weight.ndim):
            before, here, after = weight.to(torch.float64).unbind(axis)
            even, odd = torch.stack([before, here + after], axis), torch.stack([before + here, after], axis)
            weight = torch.cat([even, odd])  # the last axis varies slowest
        self.weight = weight.to(conv.weight.dtype)
        self.bias = None if conv.bias is None else conv.bias.detach().repeat(2**self.spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[batch, channels, *spatial]` to `[batch, out_channels, *doubled]`."""
        kinds = CONVOLVE[self.spatial_dims](x, self.weight, self.bias, padding=1).chunk(2**self.spatial_dims, dim=1)
        size = x.shape[2:]
        y = kinds[0].new_empty(*kinds[0].shape[:2], *(2 * n for n in size))
        for kind, places in zip(kinds, itertools.product((0, 1), repeat=self.spatial_dims), strict=True):
            target = y
            for axis, (odd, length) in enumerate(zip(reversed(places), size, strict=True), start=2):
                kind = kind.narrow(axis, odd, length)
                target = target.unflatten(axis, (length, 2)).select(axis + 1, odd)
            target.copy_(kind)
        return y
