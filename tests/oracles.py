"""A data distribution whose denoiser is known: each value normal, N(mean, std^2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff import Denoised, NoiseSchedule
from latentdiff._checks import like


@dataclass(frozen=True)
class NormalData:
    """E[x_0 | x_t] and E[noise | x_t] of normal data, and where the probability flow leads."""

    schedule: NoiseSchedule
    mean: float = 0.3
    std: float = 0.5

    def __call__(self, x_t: Tensor, t: Tensor | float, condition: object = None) -> Denoised:
        """The exact answer."""
        alpha, sigma = self.schedule.scales(torch.as_tensor(t, dtype=torch.float64))
        variance = (alpha * self.std) ** 2 + sigma**2
        centred = x_t - like(alpha, x_t) * self.mean
        sample = self.mean + like(alpha * self.std**2 / variance, x_t) * centred
        return Denoised(sample, like(sigma / variance, x_t) * centred)

    def flow(self, x: Tensor, t: float, next_t: float) -> Tensor:
        """The probability-flow map: the standardised value stays."""
        now, to = self.schedule.point(t), self.schedule.point(next_t)
        spread = [((p.alpha * self.std) ** 2 + p.sigma**2) ** 0.5 for p in (now, to)]
        return to.alpha * self.mean + spread[1] / spread[0] * (x - now.alpha * self.mean)
