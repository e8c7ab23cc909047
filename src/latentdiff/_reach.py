"""How far layers look, by rule from the layers themselves, and which of them look at the whole map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from torch import nn

from latentdiff._attention import SpatialSelfAttention
from latentdiff._layers import Downsample, Upsample
from latentdiff._linear_attention import SpatialLinearAttention

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION: Final = (SpatialSelfAttention, SpatialLinearAttention)


def reach(layer: nn.Module) -> int:
    """Points of the input, on each side, that a point of the output depends on beyond those it stands for.

    A convolution of size k looks k // 2 points far, and k - 1 where it has a stride, at the resolution it works at.
    Norms do not count, whose statistics are another matter; nor do branches beside the longest one.

    Args:
        layer: Convolutions, resampling and residual blocks in sequence; no attention.
    """
    far, step = Fraction(0), Fraction(1)
    for part in layer.modules():
        if isinstance(part, Upsample):
            step /= 2
        elif isinstance(part, Downsample) and part.conv is None:
            step *= 2
        elif isinstance(part, CONVOLUTIONS):
            kernel, stride = part.kernel_size[0], part.stride[0]
            far += step * (kernel // 2 if stride == 1 else kernel - 1)
            step *= stride
    return math.ceil(far)


def scale(layer: nn.Module) -> Fraction:
    """Size of the output over that of the input, on each axis."""
    kinds = [type(part) for part in layer.modules()]
    return Fraction(2) ** (kinds.count(Upsample) - kinds.count(Downsample))


def needs_whole(layers: Sequence[nn.Module], size: Sequence[int], points: int) -> list[bool]:
    """Which of `layers`, in sequence, must or may as well see the whole map.

    Args:
        layers: In the order of their application.
        size: Spatial size of the input of the first.
        points: Maps of so many points, or fewer, are worked on as a whole.

    Returns:
        For each layer, whether it contains attention, or neither reads nor writes a larger map.
    """
    result: list[bool] = []
    step = Fraction(1)
    for layer in layers:
        finest = max(step, step * scale(layer))
        step *= scale(layer)
        is_small = math.prod(n * finest for n in size) <= points
        result.append(is_small or any(isinstance(part, ATTENTION) for part in layer.modules()))
    return result
