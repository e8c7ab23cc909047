"""Group normalisation that is as precise on channels-last maps as on others."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from latentdiff._convolution import is_channels_last, is_chosen_here

FARTHEST_MEAN: Final = 8.0
"""How many standard deviations the mean of a group may be from zero: the square of this many ulps is lost, 4e-6."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`: the same constructor, weights and function.

    On channels-last maps torch's kernel takes the variance as mean square less squared mean. Where the mean is large
    against the deviation, as in dark or faint pictures, that loses digits; there the map is normalised in the layout
    whose kernel does not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` `[batch, channels, *spatial]`."""
        if not (is_chosen_here(input) and is_channels_last(input)):
            return super().forward(input)
        batch, channels, height, width = input.shape
        y, mean, inverse = torch.native_group_norm(
            input, self.weight, self.bias, batch, channels, height * width, self.num_groups, self.eps
        )
        if torch.linalg.vector_norm(mean * inverse, math.inf).item() < FARTHEST_MEAN:
            return y
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)
