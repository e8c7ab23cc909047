"""Maps larger than those of training, denoised in windows that overlap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentdiff._checks import check_count, working_dtype
from latentdiff._condition import Condition
from latentdiff._denoised import Denoise, Denoised
from latentdiff._schedule import NoiseSchedule
from latentdiff._typing import Latents, Times

Spans = tuple[slice, ...]
"""Where a window lies, on each spatial axis."""


@dataclass(frozen=True, eq=False)
class TiledDenoiser:
    r"""A denoiser of large maps, made of one that sees a window of them at a time.

    Windows lie evenly over the map, and where they overlap their estimates are averaged, with weights that fall
    linearly to the edges between them: the one estimate that all windows agree with best, in the mean square
    (Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5). So a network with attention or with norms over the whole map works
    at the size that it was trained at, and its memory does not grow with the map. As each step starts from one map,
    windows continue each other; what lies further apart than a window is held together by the condition alone.

    A `concat` of the map's size is cut with it; all else of a condition is for every window.

    Attributes:
        denoiser: What is asked for each window.
        size: Of a window, on each axis, in points of the latents; a shorter axis is one window.
        overlap: How many points neighbours share at least, and over how many weights fall; in 0 ... size - 1.

    Raises:
        ValueError: If `size` or `overlap` is out of range.
        TypeError: If one of them is no int.
    """

    denoiser: Denoise
    size: int
    overlap: int

    def __post_init__(self) -> None:
        check_count("size", self.size)
        check_count("overlap", self.overlap, least=0)
        if self.overlap >= self.size:
            raise ValueError(f"overlap must be less than size={self.size}, got {self.overlap}")

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the denoiser."""
        return self.denoiser.schedule

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, window by window.

        Args:
            x_t: `[batch, channels, *spatial]`, noisy.
            t: `[batch]`, `[]` or a number, in -1 ... T - 1.
            condition: As for `denoiser`; a `concat` has the spatial size of `x_t`, or 1 on each axis.

        Returns:
            Shaped and typed like `x_t`.
        """
        whole = x_t.shape[2:]
        windows = list(itertools.product(*(self._along(length) for length in whole)))
        if len(windows) == 1:
            return self.denoiser(x_t, t, condition)
        total = torch.zeros(whole, dtype=working_dtype(x_t.dtype), device=x_t.device)
        sums: dict[str, Tensor] = {}
        for spans in windows:
            weights = self._weights(total, spans)
            total[spans] += weights
            part = self.denoiser(x_t[:, :, *spans], t, _cut(condition, whole, spans))
            for name in ("sample", "noise", "log_variance"):
                estimate: Tensor | None = getattr(part, name)
                if estimate is None:
                    continue
                dtype = torch.promote_types(estimate.dtype, total.dtype)
                if name not in sums:
                    sums[name] = torch.zeros(*estimate.shape[:2], *whole, dtype=dtype, device=x_t.device)
                sums[name][:, :, *spans] += weights * estimate
        means = {name: estimate / total for name, estimate in sums.items()}
        return Denoised(means["sample"].to(x_t.dtype), means["noise"].to(x_t.dtype), means.get("log_variance"))

    def _along(self, length: int) -> list[slice]:
        """The windows of an axis: as few as the overlap allows, evenly spread."""
        if length <= self.size:
            return [slice(0, length)]
        steps = math.ceil((length - self.size) / (self.size - self.overlap))
        starts = [(length - self.size) * step // steps for step in range(steps + 1)]
        return [slice(start, start + self.size) for start in starts]

    def _weights(self, like: Tensor, spans: Spans) -> Tensor:
        """How much each point of a window counts, shaped like the window: less towards edges with a neighbour."""
        weights = torch.ones((), dtype=like.dtype, device=like.device)
        for span, length in zip(spans, like.shape, strict=True):
            places = torch.arange(span.start, span.stop, dtype=like.dtype, device=like.device) + 0.5
            from_start = places - span.start if span.start > 0 else torch.full_like(places, math.inf)
            to_stop = span.stop - places if span.stop < length else torch.full_like(places, math.inf)
            weights = weights[..., None] * (torch.minimum(from_start, to_stop) / max(self.overlap, 1)).clamp(max=1)
        return weights


def _cut(condition: object, whole: Sequence[int], spans: Spans) -> object:
    """`condition` for one window of a map of the spatial size `whole`."""
    if not isinstance(condition, Condition) or condition.concat is None or condition.concat.shape[2:] != tuple(whole):
        return condition
    return replace(condition, concat=condition.concat[:, :, *spans])
