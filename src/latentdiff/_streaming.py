"""Convolutions and group norms on bands of a map, with the result of the whole map.

A map is a list of bands across its longest axis. Between two groups of layers all bands exist, within a group one at a
time: it reads as many points of its neighbours as the group's convolutions look beyond it. The statistics of a group
norm are those of the whole map: one pass over all bands, up to that norm, gathers them for each norm of a group, and a
last pass goes through. So arithmetic is done again, instead of keeping maps of full size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff._checks import working_dtype
from latentdiff._coders import CoderStage
from latentdiff._layers import Downsample
from latentdiff._moments import ChannelMoments
from latentdiff._reach import reach, scale

THINNEST: Final = 4
"""A band has at least so many times the points that its layers look beyond it, lest it do little but look."""


def stream(layers: nn.Sequential, x: Tensor, points: int) -> Tensor:
    """Apply `layers` in sequence, band by band; the input is freed as soon as the caller lets go.

    Args:
        layers: Stages without attention, convolutions, norms, activations and resampling.
        x: `[1, channels, *spatial]`.
        points: About how many points of a map one band has.

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
        halvings = sum(isinstance(layer, Downsample) for layer in nn.Sequential(*groups[index:]).modules())
        finest = max(Fraction(1), scale(group))
        thickness = max(THINNEST * reach(group), int(points / (others * finest**dims)))
        bands = _stream(group, _recut(bands, thickness, 2**halvings, axis), axis)
        others = int(others * scale(group) ** (dims - 1))
    return torch.cat(bands, axis)


def _groups(layers: nn.Sequential) -> list[nn.Sequential]:
    """A residual block each, with what enlarges its input before it and what shrinks its result behind it."""
    groups: list[list[nn.Module]] = [[]]
    for layer in layers:
        if groups[-1] and isinstance(groups[-1][-1], CoderStage | Downsample) and not isinstance(layer, Downsample):
            groups.append([])
        groups[-1].append(layer)
    return [nn.Sequential(*group) for group in groups]


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
    told, norms = _with_gathered_norms(group)
    for _ in range(norms):
        gathering: set[_GatheredNorm] = set()
        for window in _windows(bands, margin, axis):
            try:
                told(window.x)
            except _NormReachedError as reached:
                reached.norm.gather(window.inner(reached.x))
                gathering.add(reached.norm)
        for norm in gathering:
            norm.is_gathered = True
    return [window.inner(told(window.x)).clone() for window in _windows(bands, margin, axis, consume=True)]


class _NormReachedError(Exception):
    """A pass has come to a norm whose statistics are still being gathered; `x` is its input."""

    def __init__(self, norm: _GatheredNorm, x: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.x = x


class _GatheredNorm(nn.Module):
    """A group norm whose statistics are first gathered, then given."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.moments: ChannelMoments | None = None
        self.is_gathered = False

    def gather(self, x: Tensor) -> None:
        """Add the values of `x` `[1, channels, *spatial]`."""
        groups = x.to(working_dtype(x.dtype)).reshape(self.norm.num_groups, -1)
        mean = groups.mean(1)
        scatter = (groups - mean[:, None]).square_().sum(1)
        count = torch.tensor(float(groups.shape[1]), dtype=torch.float64, device=x.device)
        part = ChannelMoments(count, mean.double(), scatter.double())
        self.moments = part if self.moments is None else self.moments.merge(part)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[1, channels, *spatial]`, once the statistics are there."""
        if not self.is_gathered or self.moments is None:
            raise _NormReachedError(self, x)
        norm, dtype = self.norm, working_dtype(x.dtype)
        repeats = norm.num_channels // norm.num_groups
        mean, variance = (m.to(dtype).repeat_interleave(repeats) for m in (self.moments.mean, self.moments.variance))
        # A batch norm in evaluation mode is the affine map of given statistics.
        return F.batch_norm(x.to(dtype), mean, variance, *_affine(norm, dtype), eps=norm.eps).to(x.dtype)


def _affine(norm: nn.GroupNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)


def _with_gathered_norms(module: nn.Module) -> tuple[nn.Module, int]:
    """A twin of `module` with the same parameters, whose group norms are gathered, and how many these are."""
    tensors = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    norms = {name: part for name, part in twin.named_modules() if isinstance(part, nn.GroupNorm)}
    for name, norm in norms.items():
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, _GatheredNorm(norm))
    return twin, len(norms)
