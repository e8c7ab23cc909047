"""Convolutions and group norms on bands of a map, with the result of the whole map.

A map is a list of bands across its longest axis. Between two groups of layers all bands exist, within a group one at a
time: it reads as many points of its neighbours as the group's convolutions look beyond it. The statistics of a group
norm are those of the whole map: one pass over all bands, up to that norm, gathers them for each norm of a group, and a
last pass goes through. So arithmetic is done again, instead of keeping maps of full size. In attention the points of a
band ask those of all bands. A small map is one band, and nothing is done again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, cast

import torch
from torch import Tensor, nn

from latentdiff._attention import SpatialSelfAttention
from latentdiff._coders import CoderStage
from latentdiff._gathered_norm import GatheredNorm, NormReachedError
from latentdiff._layers import Downsample, ResidualBlock
from latentdiff._reach import ATTENTION, reach, scale
from latentdiff._streamed_attention import attend

THINNEST: Final = 4
"""A band has at least so many times the points that its layers look beyond it, lest it do little but look."""


ATTENDING: Final = 4
"""The points of a band, over those that attend at a time: each is projected several times."""


def stream(layers: Iterable[nn.Module], x: Tensor, points: int) -> Tensor:
    """Apply `layers` in sequence, band by band; the input is freed as soon as the caller lets go.

    Args:
        layers: Stages, convolutions, norms, activations and resampling.
        x: `[1, channels, *spatial]`.
        points: About how many points of a map one band has; maps of twice as many, or fewer, stay whole.

    Returns:
        As `nn.Sequential(*layers)(x)`, to rounding.
    """
    dims, size = x.ndim - 2, list(x.shape[2:])
    axis = 2 + size.index(max(size))
    others = math.prod(size) // max(size)
    bands = [x]
    del x
    groups = _groups(layers)
    for index, group in enumerate(groups):
        finest = max(Fraction(1), scale(group))
        if _is_streamable_attention(group[0]):
            parts = bands if index else [band.clone() for band in bands]  # they are written over
            bands = _recut(parts, max(1, points // (ATTENDING * others)), 1, axis)
            attend(cast(SpatialSelfAttention, group[0]), bands)
        elif isinstance(group[0], ATTENTION) or _points(bands) * finest**dims <= 2 * points:
            bands = _whole(group, bands, axis)
        else:
            halvings = sum(isinstance(layer, Downsample) for layer in nn.Sequential(*groups[index:]).modules())
            thickness = max(THINNEST * reach(group), int(points / (others * finest**dims)))
            bands = _stream(group, _recut(bands, thickness, 2**halvings, axis), axis)
        others = int(others * scale(group) ** (dims - 1))
    return torch.cat(bands, axis)


def _groups(layers: Iterable[nn.Module]) -> list[nn.Sequential]:
    """A residual block each, with what enlarges its input before it and what shrinks its result behind it.

    Attention stands alone.
    """
    groups: list[list[nn.Module]] = []
    for layer in _parts(layers):
        last = groups[-1][-1] if groups else None
        is_end = isinstance(last, (CoderStage, ResidualBlock, Downsample)) and not isinstance(layer, Downsample)
        if last is None or is_end or isinstance(last, ATTENTION) or isinstance(layer, ATTENTION):
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups]


def _parts(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """`layers`, stages with attention as their two parts."""
    for layer in layers:
        if isinstance(layer, CoderStage) and layer.attention is not None:
            yield from (layer.block, layer.attention)
        else:
            yield layer


def _is_streamable_attention(layer: nn.Module) -> bool:
    """Whether `attend` does what `layer` does."""
    return isinstance(layer, SpatialSelfAttention) and layer.num_heads == 1 and layer.qkv_order == "separate"


def _points(bands: list[Tensor]) -> int:
    """Points of a map in `bands` `[1, channels, *spatial]`."""
    return sum(band.shape[2:].numel() for band in bands)


def _whole(group: nn.Sequential, bands: list[Tensor], axis: int) -> list[Tensor]:
    """The one band that `group` makes of the map in `bands`, which is emptied."""
    x = torch.cat(bands, axis) if len(bands) > 1 else bands[0]
    bands.clear()
    return [group(x)]


def _recut(bands: list[Tensor], thickness: int, unit: int, axis: int) -> list[Tensor]:
    """The same map in bands of about `thickness`, not less but for the last, in multiples of `unit`.

    `bands` is emptied: what was copied may be freed.
    """
    thickness = unit * math.ceil(thickness / unit)
    recut: list[Tensor] = []
    pending: list[Tensor] = []
    while bands:
        pending.append(bands.pop(0))
        length = sum(band.shape[axis] for band in pending)
        if bands and length < thickness:
            continue
        joined = torch.cat(pending, axis) if len(pending) > 1 else pending[0]
        pending = []
        count = max(1, length // thickness)
        units = [len(part) for part in torch.arange(math.ceil(length / unit)).tensor_split(count)]
        sizes = [unit * n for n in units]
        sizes[-1] = length - sum(sizes[:-1])
        recut.extend(joined.split(sizes, axis))
    return recut


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """A band and a margin of its neighbours: `x`, in which the band is `start ... start + length` on `axis`."""

    x: Tensor
    start: int
    length: int
    axis: int

    def inner(self, y: Tensor) -> Tensor:
        """The part of `y`, computed from `x` at whatever resolution, that stands for the band."""
        total = self.x.shape[self.axis]
        size = y.shape[self.axis]
        return y.narrow(self.axis, self.start * size // total, self.length * size // total)


def _windows(bands: list[Tensor], margin: int, axis: int, *, consume: bool = False) -> Iterator[_Window]:
    """The bands in order, each with `margin` points of both neighbours; `consume` empties the list on the way."""
    bands = bands if consume else list(bands)
    before: Tensor | None = None
    while bands:
        band = bands.pop(0)
        parts = [] if before is None else [before]
        parts.append(band)
        if bands:
            parts.append(bands[0].narrow(axis, 0, min(margin, bands[0].shape[axis])))
        start = 0 if before is None else before.shape[axis]
        yield _Window(torch.cat(parts, axis), start, band.shape[axis], axis)
        kept = min(margin, band.shape[axis])
        before = band.narrow(axis, band.shape[axis] - kept, kept).clone()


def _stream(group: nn.Sequential, bands: list[Tensor], axis: int) -> list[Tensor]:
    """The bands that `group` makes of `bands`, which is emptied."""
    margin = 2 * math.ceil(reach(group) / 2)  # a window starts at an even point, as strides need it
    told, norms = _twin(group)
    for _ in range(norms):
        gathering: set[GatheredNorm] = set()
        for window in _windows(bands, margin, axis):
            try:
                told(window.x)
            except NormReachedError as reached:
                reached.norm.gather(window.inner(reached.x))
                gathering.add(reached.norm)
        for norm in gathering:
            norm.is_gathered = True
    return [window.inner(told(window.x)).clone() for window in _windows(bands, margin, axis, consume=True)]


def _twin(module: nn.Module) -> tuple[nn.Module, int]:
    """A twin of `module` with the same parameters, whose group norms are gathered, and how many these are."""
    tensors = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    norms = {name: GatheredNorm(part) for name, part in twin.named_modules() if isinstance(part, nn.GroupNorm)}
    for name, part in norms.items():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, part)
    return twin, len(norms)
