"""A sample held within the bounds of the data, by scaling it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from latentdiff._checks import check_positive, like, working_dtype
from latentdiff._denoised import Denoised
from latentdiff._typing import Latents, Times
from latentdiff.guidance._base import Guidance, with_sample


@dataclass(frozen=True, eq=False)
class DynamicThreshold(Guidance):
    """Dynamic thresholding: clip each sample at a percentile of its size, then scale it into the data's range.

    With s the percentile of the absolute values of a sample, at least `limit`: clip to [-s, s], divide by s (times
    `limit`) (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3). Samples within the range stay what they are. The noise
    follows from the sample. For images in [-1, 1] under large guidance scales; latents have no such bounds.

    Attributes:
        denoiser: What is guided.
        percentile: In (0, 1], of each sample's values over all axes but the batch; between two values it is linear.
        limit: The data lie in [-limit, limit]; positive.

    Raises:
        ValueError: If `percentile` is out of (0, 1] or `limit` is not positive.
    """

    holds_condition: ClassVar[bool] = False

    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}")
        check_positive("limit", self.limit)

    def __call__(self, x_t: Latents, t: Times, condition: object = None) -> Denoised:
        """Split `x_t` at time `t` into sample and noise, guided; arguments as for any denoiser."""
        denoised = self.denoiser(x_t, t, condition)
        x_0 = denoised.sample.to(working_dtype(denoised.sample.dtype))
        s = quantile(x_0.flatten(1).abs(), self.percentile).clamp(min=self.limit)
        bound = torch.as_tensor(like(s, x_0))
        sample = x_0.clamp(-bound, bound) * (self.limit / bound)
        return with_sample(denoised, sample.to(denoised.sample.dtype), t, self.schedule)


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of each row, linear between values: `torch.quantile` without its limit of 16 million values.

    Only what lies above is sorted, which is little for shares near 1.

    Args:
        values: `[batch, size]`.
        share: In [0, 1].

    Returns:
        `[batch]`.
    """
    size = values.shape[1]
    rank = share * (size - 1)
    low = min(math.floor(rank), size - 1)
    largest = values.topk(size - low, dim=1).values  # falling, so the value of rank `low` is the last
    return torch.lerp(largest[:, -1], largest[:, -2] if low < size - 1 else largest[:, -1], rank - low)
