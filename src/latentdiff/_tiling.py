"""Images too large for memory, in pieces: tiles with blended seams, or bands without any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from latentdiff._checks import check_count
from latentdiff._layers import Downsample
from latentdiff._reach import needs_whole, reach, scale
from latentdiff._streaming import stream


@dataclass(frozen=True, slots=True)
class Tiling:
    """How an autoencoder works through images that are too large for its memory: sample by sample, in pieces.

    - With `exact`, layers whose map is no larger than a tile work on the whole map as ever. Above that they work on
      bands across the longest axis, block by block, and each norm gets the statistics of the whole map, gathered over
      all bands before. The result is that of an untiled pass, to rounding, for about twice the arithmetic.
    - Else convolutions and norms work tile by tile, but for those at the resolution of attention and below. A tile
      reads as far beyond its border as its convolutions look, so that these see no border; and tiles overlap once more
      as far, where their results are blended linearly. What differs from one tile to the next, and from an untiled
      pass, are the statistics of the norms. Without norms there is no difference.

    In both, the points of a map ask those of the whole map where there is attention, some at a time.

    Attributes:
        size: Of a tile, in points of the image on each axis. A band has half as many points as a tile.
        exact: Whether statistics of norms are those of the whole map.

    Raises:
        ValueError: If `size` is not positive.
        TypeError: If it is no int.
    """

    size: int = 256
    exact: bool = True

    def __post_init__(self) -> None:
        check_count("size", self.size)


def check_no_gradient(name: str, tensor: Tensor) -> None:
    """Require that nobody wants a gradient of `tensor`, of any shape, which work in pieces does not give.

    Raises:
        ValueError: If `tensor` requires one.
    """
    if tensor.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient with tile, got requires_grad=True; detach it, or tile=None"
        )


@torch.no_grad()
def run_tiled(layers: Sequence[nn.Module], x: Tensor, tiling: Tiling, *, upwards: bool) -> Tensor:
    """Apply `layers` in sequence, those at high resolution in pieces, without gradients.

    Args:
        layers: Those of an encoder or a decoder, in order.
        x: `[batch, channels, *spatial]`.
        tiling: How.
        upwards: Whether resolution grows (a decoder) or falls (an encoder).

    Returns:
        Shaped like the result of `nn.Sequential(*layers)`.
    """
    points = tiling.size ** (x.ndim - 2)
    if tiling.exact:
        return torch.cat([stream(layers, sample, points // 2) for sample in x.split(1)])
    whole = [index for index, needs in enumerate(needs_whole(layers, x.shape[2:], points)) if needs]
    if upwards:
        first, last = max(whole, default=-1) + 1, len(layers)
    else:
        first, last = 0, min(whole, default=len(layers))
    tiled = nn.Sequential(*layers[first:last])

    def run(sample: Tensor) -> Tensor:
        before = stream(layers[:first], sample, points // 2)
        inside = _blend(tiled, before, tiling.size, upwards) if len(tiled) else before
        return stream(layers[last:], inside, points // 2)

    return torch.cat([run(sample) for sample in x.split(1)])


def _blend(layers: nn.Sequential, x: Tensor, size: int, upwards: bool) -> Tensor:
    """`layers` of `x` `[1, channels, *spatial]` in tiles of `size` points of the image, blended where they overlap."""
    factor, far, lengths = scale(layers), reach(layers), x.shape[2:]
    unit = 2 ** sum(isinstance(layer, Downsample) for layer in layers.modules())
    seam = unit * math.ceil(far / (2 * unit))  # on each side of an edge
    margin = unit * math.ceil(far / unit)
    core = max(1, int(size / factor) if upwards else size)
    out = x.new_zeros(0)
    for tile in itertools.product(*(_cut(length, core, max(unit, 2 * seam), unit) for length in lengths)):
        kept = [_widen(span, seam, length) for span, length in zip(tile, lengths, strict=True)]
        read = [_widen(span, margin, length) for span, length in zip(kept, lengths, strict=True)]
        y = layers(_region(x, read))
        if not len(out):
            out = y.new_zeros(*y.shape[:2], *(int(length * factor) for length in lengths))
        inside = [(start - first, stop - first) for (start, stop), (first, _) in zip(kept, read, strict=True)]
        part = _region(y, inside, factor)
        for axis, (span, length) in enumerate(zip(kept, lengths, strict=True)):
            weights = _weights(part.shape[2 + axis], int(2 * seam * factor), span[0] > 0, span[1] < length)
            part = part * weights.to(part).reshape(-1, *(1,) * (len(lengths) - 1 - axis))
        _region(out, kept, factor).add_(part)
    return out


def _region(x: Tensor, spans: Sequence[tuple[int, int]], factor: Fraction = Fraction(1)) -> Tensor:
    """The part of `x` `[1, channels, *spatial]` that stands for `spans` of a map `factor` times smaller: a view."""
    for axis, (start, stop) in enumerate(spans):
        x = x.narrow(2 + axis, int(start * factor), int((stop - start) * factor))
    return x


def _cut(length: int, core: int, least: int, unit: int) -> list[tuple[int, int]]:
    """`length` points in spans of `core` or fewer, but no fewer than `least`, that start at multiples of `unit`."""
    count = max(1, min(math.ceil(length / core), length // least))
    edges = [unit * (length * i // count // unit) for i in range(count)] + [length]
    return list(itertools.pairwise(edges))


def _widen(span: tuple[int, int], margin: int, length: int) -> tuple[int, int]:
    """`span` with `margin` points more on both sides, where there are any."""
    return max(0, span[0] - margin), min(length, span[1] + margin)


def _weights(total: int, ramp: int, has_left: bool, has_right: bool) -> Tensor:
    """Weights `[total]` of a tile on one axis: they rise and fall over `ramp` points where it has neighbours."""
    weights = torch.ones(total, dtype=torch.float64)
    rise = (torch.arange(ramp, dtype=torch.float64) + 0.5) / max(ramp, 1)
    if has_left:
        weights[:ramp] *= rise
    if has_right:
        weights[total - ramp :] *= rise.flip(0)
    return weights
